"""What other tests rest on: a forbidden module ends a program."""

from tests.launch import forbid_modules, run_code


def test_a_forbidden_module_ends_the_program(tmp_path):
    done = run_code("import torch", cwd=tmp_path.parent, env=forbid_modules(tmp_path, "torch"))
    assert (done.returncode, done.stderr) == (1, "torch was imported\n")
