"""Train, resume or test the baseline: triplet, centre and cross-entropy losses, without centroids in training.

python train_base_model.py --config_file=configs/256_resnet50.yml GPU_IDS [0] DATASETS.ROOT_DIR /data
"""

from pathlib import Path
from typing import Any

from config.cli import build_parser, clean_exit, parse_args

if __name__ == "__main__":  # before the heavy imports, so that --help and a wrong option are answered at once
    with clean_exit():
        _, CONFIG = parse_args(build_parser(__doc__, prog="python train_base_model.py"))

from torch import Tensor

from engine.run import run_script
from modelling.bases import ModelBase


class BaseModel(ModelBase):
    """Bag-of-tricks baseline (Luo et al. 2019): every row of a batch counts in every loss."""

    is_of_this_project = True

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> dict[str, Any]:
        """One step on P identities with K images each."""
        solver = self.hparams.SOLVER
        images, labels, _, _ = batch  # [P*K, 3, H, W], [P*K]
        _, features = self.backbone(images)  # [P*K, D]

        query_triplet, dist_ap, dist_an = self.query_triplet(features, labels)
        query_center = self.center_loss(features, labels)
        query_xent = self.xent(self.classify(features), labels)

        losses = {
            "query_xent": solver.QUERY_XENT_WEIGHT * query_xent,
            "query_triplet": solver.QUERY_CONTRASTIVE_WEIGHT * query_triplet,
            "query_center": solver.CENTER_LOSS_WEIGHT * query_center,
            **self.extra_losses(features, labels),
        }
        return self.optimize(losses, {"step_dist_ap": dist_ap.detach().mean(), "step_dist_an": dist_an.detach().mean()})


CTLModel = BaseModel  # the original's name for the class of this script

if __name__ == "__main__":
    run_script(BaseModel, CONFIG, Path(__file__).stem)
