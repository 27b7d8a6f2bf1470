"""Train, resume or test a CTL model: the baseline's losses plus the centroid triplet loss.

python train_ctl_model.py --config_file=configs/256_resnet50.yml GPU_IDS [0] DATASETS.ROOT_DIR /data
"""

from pathlib import Path
from typing import Any

from config.cli import build_parser, clean_exit, parse_args

if __name__ == "__main__":  # before the heavy imports, so that --help and a wrong option are answered at once
    with clean_exit():
        _, CONFIG = parse_args(build_parser(__doc__, prog="python train_ctl_model.py"))

from torch import Tensor

from engine.run import run_script
from losses.centroid_triplet_loss import CentroidTripletLoss, CentroidTripletResult
from losses.gathered_triplet import gathered_centroid_loss
from losses.layout import BatchLayout, batch_layout
from modelling.bases import ModelBase, is_own_model
from utils.distributed import running_processes


class CTLModel(ModelBase):
    """The model of "On the Unreasonable Effectiveness of Centroids in Image Retrieval" (ICONIP 2021)."""

    is_of_this_project = True
    losses_names = (*ModelBase.losses_names, "centroid_triplet")

    def __init__(self, cfg: Any = None, test_dataloader: Any = None, **kwargs: Any) -> None:
        super().__init__(cfg, test_dataloader, **kwargs)
        self.centroid_loss = CentroidTripletLoss(self.contrastive_loss.margin, self.hparams.SOLVER.DISTANCE_FUNC)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Work out the layout of a training batch while it is on the CPU, so that no step waits for the accelerator.

        A subclass gets the batch as it is, with four parts.
        """
        if not self.trainer.training or not is_own_model(type(self)):
            return batch
        _, labels, _, is_real = batch
        return *batch, batch_layout(labels, is_real, self.device)

    def centroid_triplet(
        self, features: Tensor, labels: Tensor, is_real: Tensor, layout: BatchLayout
    ) -> CentroidTripletResult:
        """Centroid triplet loss of the batch; SOLVER.GATHER_NEGATIVES mines across the batches of all processes.

        Args and Returns: as for CentroidTripletLoss.
        """
        if self.hparams.SOLVER.GATHER_NEGATIVES and running_processes() is not None:
            return gathered_centroid_loss(self.centroid_loss, features, labels, is_real)
        return self.centroid_loss(features, labels, is_real, layout)

    def training_step(self, batch: tuple[Any, ...], batch_idx: int) -> dict[str, Any]:
        """One step on P identities with K images each; is_real is False for images that only pad an identity."""
        solver = self.hparams.SOLVER
        images, labels, _, is_real = batch[:4]  # [P*K, 3, H, W], [P*K], [P*K], [P*K]
        layout = batch[4] if len(batch) > 4 else batch_layout(labels, is_real)
        _, features = self.backbone(images)  # [P*K, D]

        query_triplet, _, _ = self.query_triplet(features, labels, layout.real)

        real_features, real_labels = layout.only_real(features), layout.only_real(labels)  # [R, D], [R]
        query_center = self.center_loss(real_features, real_labels)
        query_xent = self.xent(self.classify(real_features), real_labels)

        centroid = self.centroid_triplet(features, labels, is_real, layout)

        losses = {
            "query_xent": solver.QUERY_XENT_WEIGHT * query_xent,
            "query_triplet": solver.QUERY_CONTRASTIVE_WEIGHT * query_triplet,
            "query_center": solver.CENTER_LOSS_WEIGHT * query_center,
            "centroid_triplet": solver.CENTROID_CONTRASTIVE_WEIGHT * centroid.loss,
            **self.extra_losses(real_features, real_labels),
        }
        return self.optimize(
            losses,
            {
                "step_dist_ap": centroid.dist_ap,
                "step_dist_an": centroid.dist_an,
                "l2_mean_centroid": centroid.l2_mean_centroid,
            },
        )


if __name__ == "__main__":
    run_script(CTLModel, CONFIG, Path(__file__).stem)
