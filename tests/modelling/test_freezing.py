"""Frozen parts: no gradient, no decay, no moving statistics, as long as they are frozen; and label smoothing."""

from itertools import pairwise

import pytest
import torch
from pytorch_lightning import Callback
from torch import nn
from torch.nn import functional as F

from modelling.freezing import Frozen
from tests import workers
from tests.launch import run_processes
from tests.modelling.test_computation import batch, fit, make_model
from utils.errors import UserError

NORM = "backbone.base.1."
WHOLE = {"SOLVER.FREEZE_EPOCHS": 1, "SOLVER.WEIGHT_DECAY": 0.1}


class Watch(Callback):
    """The state at the end of each epoch, and the modules in eval mode and parameters with a gradient in its steps."""

    def __init__(self):
        self.states, self.in_eval, self.graded = [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.in_eval.append({name for name, module in pl_module.named_modules() if not module.training})
        self.graded.append({name for name, p in pl_module.named_parameters() if p.grad is not None})

    def on_train_epoch_end(self, trainer, pl_module):
        self.states.append({name: value.clone() for name, value in pl_module.state_dict().items()})


def watched(options, epochs=2, model=None):
    model = model or make_model(**options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    watch = Watch()
    fit(model, batch(), watch, max_epochs=epochs)
    states = [before, *watch.states]
    moved = [{k for k in before if not torch.equal(one[k], two[k])} for one, two in pairwise(states)]
    return model, watch, moved


def below(names, prefix):
    return {name for name in names if name.startswith(prefix)}


def test_the_backbone_is_frozen_in_the_first_epochs_and_then_trained():
    model, watch, moved = watched(WHOLE)
    assert below(moved[0], "backbone.") == set()
    assert {"fc_query.weight", "bn.weight", "bn.running_mean", "center_loss.centers"} <= moved[0]
    assert below(moved[1], "backbone.") == below(model.state_dict(), "backbone.")
    assert below(watch.graded[0], "backbone.") == set()
    assert below(watch.graded[1], "backbone.") == below(dict(model.named_parameters()), "backbone.")
    modules = below(dict(model.named_modules()), "backbone")
    assert watch.in_eval[0] == modules
    assert watch.in_eval[1] == set()


def test_what_is_named_alone_is_frozen_for_good():
    model, watch, moved = watched({"MODEL.FREEZE_AT": ["backbone.base.0.*", f"{NORM}*"], "SOLVER.WEIGHT_DECAY": 0.1})
    for found in moved:
        assert below(found, "backbone.") == {"backbone.base.3.weight", "backbone.base.3.bias"}
    assert watch.in_eval == [{"backbone.base.0", "backbone.base.1"}] * 2
    # As it was given: another fit builds the same optimisers.
    assert all(p.requires_grad for name, p in model.named_parameters() if name != "bn.bias")
    assert all(module.training for module in model.backbone.modules())


def test_a_run_that_is_frozen_to_its_end_is_told_so():
    keys = {"MODEL.FREEZE_AT": ["bn.*"], "SOLVER.FREEZE_EPOCHS": 2}
    said = [Frozen(make_model(**keys, **{"SOLVER.MAX_EPOCHS": epochs})).describe() for epochs in (2, 3)]
    assert said[0].startswith(
        "frozen in the first 2 epoch(s), which are all (SOLVER.MAX_EPOCHS 2): 2 (bn.weight, bn.bias)"
    )
    assert said[1].startswith("frozen in the first 2 epoch(s): 2 (bn.weight, bn.bias)")


def test_patterns_and_epochs_together():
    options = {"MODEL.FREEZE_AT": ["fc_query.*", "bn.*"], "SOLVER.FREEZE_EPOCHS": 1}
    model, watch, moved = watched(options)
    assert below(moved[0], ("fc_query.", "bn.")) == set()
    assert below(moved[1], ("fc_query.", "bn.")) == below(model.state_dict(), ("fc_query.", "bn.")) - {"bn.bias"}
    assert not model.bn.bias.requires_grad  # it never needs one
    assert watch.in_eval == [{"fc_query", "bn"}, set()]


def test_a_norm_of_which_a_part_learns_stays_in_training_mode():
    _, watch, moved = watched({"MODEL.FREEZE_AT": [f"{NORM}bias"]}, epochs=1)
    assert below(moved[0], NORM) == {
        f"{NORM}{name}" for name in ("weight", "running_mean", "running_var", "num_batches_tracked")
    }
    assert watch.in_eval == [set()]


def test_frozen_modules_stay_in_eval_mode_whoever_switches_the_model():
    class Switch(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.train()

    model, watch = make_model(**{"MODEL.FREEZE_AT": [f"{NORM}*"]}), Watch()
    model.backbone.base[0].eval()  # the user's own doing
    fit(model, batch(), Switch(), watch, max_epochs=2)
    assert watch.in_eval == [{"backbone.base.1"}] * 2


def test_modules_that_were_in_eval_mode_stay_there_when_the_rest_is_released():
    model = make_model(**WHOLE)
    model.backbone.base[1].eval()
    frozen = Frozen(model)
    assert [frozen.set_epoch(model, epoch) for epoch in (0, 0, 1, 2)] == [True, False, True, False]
    assert [module.training for module in model.backbone.base] == [True, False, True, True]


def test_frozen_parameters_are_in_the_groups_all_the_same():
    """So that a training can be continued with other parts frozen."""
    (plain, _), (frozen, _) = (make_model(**o).configure_optimizers()[0] for o in ({}, {"MODEL.FREEZE_AT": ["b*"]}))
    assert len(plain.param_groups[0]["params"]) == len(frozen.param_groups[0]["params"])


def test_what_is_frozen_is_said_once(caplog):
    with caplog.at_level("INFO"):
        fit(make_model(**WHOLE), batch(), max_epochs=2)
    said = [record.getMessage() for record in caplog.records if "frozen" in record.getMessage()]
    assert said == [
        "frozen in the first 1 epoch(s): 6 (backbone.base.0.weight, backbone.base.0.bias, backbone.base.1.weight, ...) "
        "of the model's parameters"
    ]
    assert Frozen(make_model(**{"MODEL.FREEZE_AT": ["fc_query.*"]})).describe() == (
        "frozen for good: 1 (fc_query.weight) of the model's parameters"
    )
    assert Frozen(make_model()).describe() == ""


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_names():
    model = make_model(**{"MODEL.FREEZE_AT": ["fc_query.*", "backbone.bas.0.weight"]})
    with pytest.raises(UserError) as refusal:
        fit(model, batch())
    assert str(refusal.value) == (
        "MODEL.FREEZE_AT: no parameter of the model matches 'backbone.bas.0.weight'; the nearest names are "
        "backbone.base.0.weight, backbone.base.3.weight, backbone.base.1.weight. A * stands for any text."
    )
    with pytest.raises(UserError, match=r"MODEL.FREEZE_AT is \['\*'\], which freezes every parameter"):
        Frozen(make_model(**{"MODEL.FREEZE_AT": ["*"]}))


def test_processes_exchange_gradients_before_and_after_the_release(tmp_path):
    """What DDP was not told of at its start would be trained by each process alone."""
    one, two = run_processes(workers.train_frozen, 2, tmp_path / "run")
    for epoch, (ours, theirs) in enumerate(zip(one, two, strict=True)):
        for name, value in ours.items():
            assert torch.equal(value, theirs[name]), (epoch, name)
    backbone = [name for name in one[0] if name.startswith("backbone.")]
    assert all(torch.equal(one[0][name], one[1][name]) for name in backbone)
    assert not any(torch.equal(one[1][name], one[2][name]) for name in backbone)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4])
def test_label_smoothing_is_that_of_the_configuration(share):
    model = make_model(**{"SOLVER.LABEL_SMOOTHING": share})
    logits, labels = torch.randn(5, 6), torch.tensor([0, 5, 1, 1, 3])
    target = (1 - share) * F.one_hot(labels, 6) + share / 6
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(model.xent(logits, labels), expected)
    if share == 0:
        assert torch.equal(model.xent(logits, labels), nn.CrossEntropyLoss()(logits, labels))
