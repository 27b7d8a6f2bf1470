"""The data sets that a run tests on: that of its training, or each of DATASETS.TESTS."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytorch_lightning.utilities import rank_zero_info
from yacs.config import CfgNode

from config.origins import naming_the_default_folder
from config.validate import split_names
from datasets import init_dataset
from datasets.bases import ReidDataModule
from datasets.checking.checks import Finding, check_labels
from datasets.registry import family_of
from engine.start import StartPoint
from evaluation.places import EvaluationPlace
from modelling.bases import ModelBase
from utils.errors import UserError

log = logging.getLogger(__name__)

COMBINED = "those of images that were trained on, by DATASETS.COMBINEALL"


@dataclass(frozen=True)
class EvaluatedSet:
    """A data set that is tested by itself.

    Attributes:
        place: where its evaluation is kept.
        data: set up.
        keep_camids: MODEL.KEEP_CAMID_CENTROIDS for it, if it has cameras.
    """

    place: EvaluationPlace
    data: ReidDataModule
    keep_camids: bool = True

    def prepare(self, model: ModelBase) -> None:
        """Let the model evaluate this set: its number of queries and its cameras are its own."""
        model.evaluate_at(self.place)
        hparams = model.hparams
        hparams.num_query, hparams.has_cameras = self.data.num_query, self.data.has_cameras
        hparams.MODEL.KEEP_CAMID_CENTROIDS = self.keep_camids and self.data.has_cameras
        if self.keep_camids and not self.data.has_cameras:
            line = "MODEL.KEEP_CAMID_CENTROIDS True is taken as False: the data has no cameras."
            rank_zero_info("%s: %s", self.place.test_set, line)


def read_test_set(cfg: CfgNode, name: str, seed: int) -> ReidDataModule:
    """A data set of DATASETS.TESTS, set up and checked; data of the user's own may lack training images.

    Raises:
        UserError: there is no such data set, or it cannot be read or evaluated.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.NAMES, cfg.TEST.ONLY_TEST = name, True  # as for a run that tests it alone
    try:
        data = init_dataset(name, cfg=cfg, num_workers=cfg.DATALOADER.NUM_WORKERS, seed=seed)
        with naming_the_default_folder(cfg):
            data.setup("test")
    except UserError as error:  # whatever makes data sets names the key that usually does
        raise type(error)(str(error).replace("DATASETS.NAMES", "DATASETS.TESTS")) from error
    heed(check_labels((), data.query_list, data.gallery_list, data.one_numbering), f"{name}: ")
    return data


def heed(findings: Sequence[Finding], before: str = "") -> None:
    """Warn of what was found, each with a text before it. Raises a UserError for what makes a run impossible."""
    for finding in findings:
        if finding.is_fatal:
            raise UserError(before + finding.text)
        log.warning("%s%s", before, finding.text)


def read_test_sets(
    cfg: CfgNode, start: StartPoint, data: ReidDataModule, run: int | None, keep_camids: bool
) -> list[EvaluatedSet]:
    """What the run tests on, in order; the set of the training if DATASETS.TESTS names none.

    Args:
        cfg: configuration of the run.
        start: where it begins.
        data: the data set of the training or, of a run that only tests, the first of those that it tests on.
        run: number of the run; None for a single one.
        keep_camids: MODEL.KEEP_CAMID_CENTROIDS as the user has it.

    Raises:
        UserError: a data set is not there, or cannot be read or evaluated.
    """
    names = split_names(cfg.DATASETS.TESTS)
    if not names:
        return [EvaluatedSet(training_place(cfg, start, run), data)]
    is_read = split_names(cfg.DATASETS.NAMES)[0] if start.trains else names[0]
    sets = []
    for number, name in enumerate(names):
        place = EvaluationPlace(
            run, name, number == 0, describe_training(cfg, start), caveat_of_training(cfg, start, name)
        )
        module = data if name == is_read else read_test_set(cfg, name, start.seed)
        sets.append(EvaluatedSet(place, module, keep_camids))
    return sets


def training_place(cfg: CfgNode, start: StartPoint, run: int | None) -> EvaluationPlace:
    """Where validations, and tests without DATASETS.TESTS, are kept: all of them are of the first of DATASETS.NAMES."""
    return EvaluationPlace(run, caveat=caveat_of_training(cfg, start, split_names(cfg.DATASETS.NAMES)[0]))


def describe_training(cfg: CfgNode, start: StartPoint) -> str:
    """The data sets that the network was or will be trained on; the file's name if it does not tell."""
    known: Any = cfg if start.trains else start.recorded
    return str(known.get("DATASETS", {}).get("NAMES") or start.path)


def caveat_of_training(cfg: CfgNode, start: StartPoint, name: str) -> str:
    """What is said beside the numbers of a data set whose images were trained on; "" if they were not.

    Args:
        cfg: configuration of the run.
        start: where it begins; what a tested checkpoint was trained on stands in the checkpoint.
        name: the data set.
    """
    recorded = (cfg if start.trains else start.recorded).get("DATASETS", {})
    if not recorded.get("COMBINEALL"):
        return ""
    trained = split_names(recorded.get("NAMES") or "")
    # Data of one's own has no name of its own: it is the same if it is read from the same place.
    place = {"csv": "CSV_PATH", "folder": "ROOT_DIR"}.get(name)
    if place and os.path.realpath(recorded.get(place) or "") != os.path.realpath(cfg.DATASETS[place]):
        return ""
    return COMBINED if family_of(name) in map(family_of, trained) else ""
