import pytest

from tests.support import ROOT
from utils import optional
from utils.errors import UserError


@pytest.mark.parametrize("is_installed", [True, False])
def test_the_command_installs_from_where_the_project_is(is_installed, monkeypatch):
    def version(name):
        if not is_installed:
            raise optional.PackageNotFoundError(name)

    monkeypatch.setattr(optional, "version", version)
    command = "pip install 'centroids-reid[search]'" if is_installed else f"pip install -e '{ROOT}[search]'"
    assert optional.installation("search") == command
    with pytest.raises(UserError) as error:
        optional.require("no_such_package.part", "search", "--index faiss")
    assert str(error.value).startswith("--index faiss needs the package no_such_package, which cannot be imported (")
    assert str(error.value).endswith(f"): {command}")


def test_what_is_installed_is_found_without_an_import():
    assert optional.is_installed("torch") and not optional.is_installed("no_such_package")
