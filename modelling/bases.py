"""What the CTL model and the baseline share: parameters, members, optimisation, validation and logging."""

import os
import shutil
import sys
from functools import partial
from typing import Any, Self, cast

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data.distributed import DistributedSampler
from yacs.config import CfgNode

from checkpoints.plain import to_plain
from checkpoints.reading import load_ctl_checkpoint
from checkpoints.weights import describe
from config.defaults import _C as DEFAULTS
from evaluation.centroid_protocols import create_centroids
from evaluation.metrics import metrics_dict
from evaluation.retrieval import TOPK_RANKS, EvalResult
from evaluation.tables import describe as describe_result
from losses.center_loss import CenterLoss
from losses.gathered_triplet import gathered_triplet_loss
from losses.triplet_loss import CrossEntropyLabelSmooth, TripletLoss
from modelling.baseline import Baseline
from modelling.evaluation import evaluate_protocols, leave_out_unreadable, write_strips, write_tables
from solver.build import build_optimizer, build_scheduler
from solver.optimizers import has_fused_adam
from solver.schedules import set_epoch
from utils.distributed import Processes, broadcast_from_first, gather_in_order, running_processes
from utils.errors import UserError


def merge_hparams(base: CfgNode, overlay: dict[str, Any]) -> CfgNode:
    """``base`` with the values of ``overlay`` on top, section by section; neither is modified."""
    merged = base.clone()
    merged.defrost()
    for key, value in overlay.items():
        if isinstance(value, dict) and isinstance(merged.get(key), CfgNode):
            merged[key] = merge_hparams(merged[key], value)
        else:
            merged[key] = CfgNode(to_plain(value)) if isinstance(value, dict) else value
    return merged


class ModelBase(LightningModule):
    """Backbone, BN neck, identity classifier, class centres, and everything around the training step.

    Args:
        cfg: configuration (yacs node or nested dict); defaults stand in for None and for missing keys.
        test_dataloader: the loader for ``trainer.test(model)`` when none is passed there.
        load_imagenet: False leaves MODEL.PRETRAIN_PATH unread, for weights that come from elsewhere.
        **kwargs: ``num_classes`` (identities in training), ``num_query`` (queries at the start of the validation set),
            and whatever else a checkpoint recorded. They override cfg; with cfg.TEST.ONLY_TEST, cfg overrides them.

    Raises:
        UserError: num_classes is missing, or the configuration names something that does not exist.
    """

    losses_names: tuple[str, ...] = ("query_xent", "query_triplet", "query_center")

    def __init__(self, cfg: Any = None, test_dataloader: Any = None, load_imagenet: bool = True, **kwargs: Any) -> None:
        super().__init__()
        given = {} if cfg is None else to_plain(cfg)
        only_test = given.get("TEST", {}).get("ONLY_TEST", False)
        layers = (kwargs, given) if only_test else (given, kwargs)
        self._hyper_parameters = merge_hparams(merge_hparams(DEFAULTS, layers[0]), layers[1])
        if test_dataloader is not None:
            self.test_dataloader = partial(_get_loader, test_dataloader)  # type: ignore[method-assign]
        self.automatic_optimization = False
        self._build_members(load_imagenet)
        self.losses_dict: dict[str, list[Tensor]] = {}
        self._reset_epoch_records()
        self._outputs: list[tuple[Any, ...]] = []
        self._results: dict[str, EvalResult] = {}

    def _build_members(self, load_imagenet: bool) -> None:
        hparams = self.hparams
        if "num_classes" not in hparams:
            raise UserError("num_classes is missing: give the number of training identities, num_classes=N.")
        if hparams.SOLVER.USE_AUTOMATIC_OPTIM:
            raise UserError("SOLVER.USE_AUTOMATIC_OPTIM True is not supported: the centres need a step of their own.")
        width = hparams.MODEL.BACKBONE_EMB_SIZE
        self.backbone = Baseline(hparams, load_weights=load_imagenet)
        self.backbone.choose_computation(
            channels_last=hparams.MODEL.CHANNELS_LAST, grad_checkpoint=hparams.MODEL.GRAD_CHECKPOINT
        )
        self.contrastive_loss = TripletLoss(hparams.SOLVER.MARGIN, hparams.SOLVER.DISTANCE_FUNC)
        self.xent = CrossEntropyLabelSmooth(num_classes=hparams.num_classes)
        self.center_loss = CenterLoss(num_classes=hparams.num_classes, feat_dim=width)
        self.bn = nn.BatchNorm1d(width)
        self.bn.bias.requires_grad_(False)
        self.fc_query = nn.Linear(width, hparams.num_classes, bias=False)
        nn.init.normal_(self.fc_query.weight, std=0.001)

    # ------------------------------------------------------------------------------------- parameters, checkpoints

    @property
    def hparams(self) -> CfgNode:
        """The configuration of this model, with num_classes and num_query at its top level."""
        return self._hyper_parameters

    @hparams.setter
    def hparams(self, value: Any) -> None:
        self._hyper_parameters = merge_hparams(DEFAULTS, to_plain(value))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store plain containers only, so that any version of torch can read the file without running code."""
        checkpoint["hyper_parameters"] = to_plain(self.hparams)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        strict: bool = True,
        weights_only: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Load the model of a checkpoint, ours or the original's; reads no ImageNet weights, runs no code of the file.

        Args:
            checkpoint_path: file path.
            map_location: device to put the model on; the CPU when None.
            strict: require the weights to match exactly.
            weights_only: ignored, accepted because Lightning's callers pass it; reading never runs code.
            **kwargs: as for the constructor; ``cfg=`` as described there. The number of training identities is
                always the checkpoint's.

        Raises:
            UserError: the file is missing, cut off, not a CTL checkpoint, or does not fit the configuration.
        """
        checkpoint = load_ctl_checkpoint(checkpoint_path)
        weights = checkpoint["state_dict"]
        parameters = {**checkpoint["hyper_parameters"], **kwargs, "num_classes": weights["fc_query.weight"].shape[0]}
        model = cls(load_imagenet=False, **parameters)
        try:
            model.load_state_dict(weights, strict=strict)
        except RuntimeError as error:
            settings = model.hparams.MODEL
            raise UserError(
                f"{checkpoint_path} holds {describe(checkpoint)}, which does not fit MODEL.NAME {settings.NAME} with "
                f"BACKBONE_EMB_SIZE {settings.BACKBONE_EMB_SIZE}: set both to the values it was trained with."
            ) from error
        return model if map_location is None else model.to(map_location)

    # ------------------------------------------------------------------------------------------------ optimisation

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[Any]]:
        """Adam for the network with the epoch schedule, SGD for the centres."""
        optimizers = build_optimizer(self.named_parameters(), self.hparams)
        return optimizers, [build_scheduler(optimizers[0], self.hparams)]

    def query_triplet(
        self, features: Tensor, labels: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Triplet loss of the batch; SOLVER.GATHER_NEGATIVES mines across the batches of all processes.

        Args and Returns: as for TripletLoss.
        """
        if self.hparams.SOLVER.GATHER_NEGATIVES and running_processes() is not None:
            loss = self.contrastive_loss
            return gathered_triplet_loss(features, labels, mask, loss.margin, loss.dist_func)
        return self.contrastive_loss(features, labels, mask=mask)

    def on_fit_start(self) -> None:
        """Compile the backbone if MODEL.COMPILE is True; the names in checkpoints do not change.

        Raises:
            UserError: there is no C++ compiler.
        """
        if self.hparams.MODEL.COMPILE:
            compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
            if shutil.which(compiler) is None:
                raise UserError(
                    f"MODEL.COMPILE is True, but the C++ compiler {compiler!r} is not on PATH: install one, name one "
                    "in the environment variable CXX, or set MODEL.COMPILE False."
                )
            self.backbone.base.compile()

    def on_train_start(self) -> None:
        """Drop ``fused`` from an optimiser state that comes from another machine, if this one has no fused Adam."""
        for group in self.trainer.optimizers[0].param_groups:
            if group.get("fused") and not has_fused_adam(self.device):
                group["fused"] = None

    def optimize(self, losses: dict[str, Tensor], statistics: dict[str, Tensor]) -> dict[str, Any]:
        """One backward pass over the sum of the weighted losses; a step of the network, then one of the centres.

        Args:
            losses: name -> scalar, each already multiplied by its weight.
            statistics: name -> detached scalar, recorded beside the losses.

        Returns:
            What training_step returns: the detached total under "loss", the statistics under "other".
        """
        optimizer, optimizer_center = cast(list[LightningOptimizer], self.optimizers())
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        optimizer_center.zero_grad()
        self.manual_backward(total)
        optimizer.step()
        weight = self.hparams.SOLVER.CENTER_LOSS_WEIGHT
        if weight > 0:  # the centres learn at CENTER_LR whatever the weight of their loss
            for group in optimizer_center.param_groups:
                for center in group["params"]:
                    center.grad.mul_(1.0 / weight)
            optimizer_center.step()
        return self._record_step(total.detach(), losses, statistics)

    def _record_step(self, total: Tensor, losses: dict[str, Tensor], statistics: dict[str, Tensor]) -> dict[str, Any]:
        detached = {name: loss.detach() for name, loss in losses.items()}
        for name, value in detached.items():
            self.losses_dict[name].append(value)
        for name, value in {"loss": total, **statistics}.items():
            self._epoch_records.setdefault(name, []).append(value)
        if (len(self._epoch_records["loss"]) - 1) % self.hparams.LOGGING.EVERY_N_STEPS == 0:
            self.log("loss", total, prog_bar=True, logger=False)
            self.log_dict(detached, logger=False)
        return {"loss": total, "other": statistics}

    def _reset_epoch_records(self) -> None:
        self.losses_dict = {name: [] for name in self.losses_names}
        self._epoch_records: dict[str, list[Tensor]] = {}

    @property
    def _schedule(self) -> LambdaLR:
        return cast(LambdaLR, self.lr_schedulers())

    def on_train_epoch_start(self) -> None:
        """Set the schedule to this epoch, even after resuming from a checkpoint saved before the schedule's step."""
        set_epoch(self._schedule, self.current_epoch)
        self._results = {}
        self._reset_epoch_records()

    def on_train_epoch_end(self) -> None:
        """Log the epoch, then step the schedule, which Lightning does not do under manual optimisation."""
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        self._log_train_epoch(lr)
        self._schedule.step()

    def _log_train_epoch(self, lr: float) -> None:
        names = {"loss": "epoch_train_loss", "step_dist_ap": "epoch_dist_ap", "step_dist_an": "epoch_dist_an"}
        records = {names.get(name, name): values for name, values in self._epoch_records.items()} | self.losses_dict
        means = torch.stack([torch.stack(values).float().mean() for values in records.values()])
        means = self.trainer.strategy.reduce(means, reduce_op="mean")  # all processes take equally many steps
        self._log_epoch(dict(zip(records, means.tolist(), strict=True)) | {"lr": lr})

    def _log_epoch(self, metrics: dict[str, float]) -> None:
        """Pass metrics to every logger, with the epoch as the step, and to the callbacks."""
        # The test pass comes after the last epoch, when current_epoch is already one higher.
        epoch = self.current_epoch
        if self.trainer.testing:
            epoch = max(epoch - 1, 0)
        # The callbacks of all processes must reach the same decisions, so the numbers must agree to the last bit.
        metrics = self.trainer.strategy.broadcast(metrics)
        self.log_dict(metrics, logger=False, sync_dist=True)
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=epoch)

    def metric_names(self) -> set[str]:
        """The metrics that a run logs; SOLVER.MONITOR_METRIC_NAME can be any of them."""
        retrieval = {"mAP", *(f"Top-{k}" for k in TOPK_RANKS)}
        if self.hparams.MODEL.USE_CENTROIDS:
            retrieval |= {f"strict_{name}" for name in retrieval}
        else:
            retrieval |= {"mINP"}
        return retrieval | {*self.losses_names, "epoch_train_loss", "epoch_dist_ap", "epoch_dist_an", "lr"}

    # -------------------------------------------------------------------------------------------------- evaluation

    def classify(self, features: Tensor) -> Tensor:
        """Identity logits from the BN neck and the classifier, without autocast: [B, D] -> [B, num_classes]."""
        with torch.autocast(features.device.type, enabled=False):
            return self.fc_query(self.bn(features))

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings as validation and inference use them: the BN neck's output, [B, 3, H, W] -> [B, D]."""
        _, features = self.backbone(x)
        return self.bn(features)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Keep the embeddings of a batch (images, pids, camids, positions in the data set)."""
        images, pids, camids, positions = batch
        labels = (torch.as_tensor(pids).cpu(), torch.as_tensor(camids).cpu())
        self._outputs.append((self(images).float().cpu(), *labels, positions))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """As validation_step."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        """Discard what an interrupted validation left; give every process the network that will be saved."""
        self._outputs.clear()
        if running_processes() is None:
            return
        # In training each process keeps running statistics of its own batches; those of the first process are saved.
        broadcast_from_first(self.buffers())
        if isinstance(self.trainer.strategy.model, DistributedDataParallel):
            # Otherwise the wrapper's forward pass waits for all processes, whose numbers of batches may differ.
            self.trainer.strategy.model.require_forward_param_sync = False

    def on_test_epoch_start(self) -> None:
        """As on_validation_epoch_start."""
        self.on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        """Rank the gallery for every query, then log and print the metrics."""
        self._evaluate("validation", self.trainer.val_dataloaders)

    def on_test_epoch_end(self) -> None:
        """As on_validation_epoch_end."""
        self._evaluate("test", self.trainer.test_dataloaders)

    def _collect(self, loader: Any, processes: Processes | None) -> list[Tensor]:
        """Embeddings, pids and camids of the whole set, in its order, gathered from all processes."""
        outputs, self._outputs = self._outputs, []
        if processes is None:
            return [torch.cat(parts) for parts in list(zip(*outputs, strict=True))[:3]]
        none = torch.empty(0, dtype=torch.int64)  # this process may have no batch
        positions = torch.cat([none, *(torch.as_tensor(output[3]).cpu() for output in outputs)])
        embeddings = torch.cat([torch.empty(0, self.bn.num_features), *(output[0] for output in outputs)])
        pids, camids = (torch.cat([none, *(output[i] for output in outputs)]) for i in (1, 2))
        return gather_in_order(positions, len(loader.dataset), embeddings, pids, camids)

    def _evaluate(self, stage: str, loader: Any) -> None:
        loader = loader[0] if isinstance(loader, list) else loader
        # Unless the loader is divided among the processes, each of them has the whole set and evaluates it.
        processes = running_processes() if isinstance(getattr(loader, "sampler", None), DistributedSampler) else None
        embeddings, pids, camids = self._collect(loader, processes)
        samples = getattr(loader.dataset, "data", None)  # the loader of another program may not know its files
        paths = None if samples is None else [sample[0] for sample in samples]
        retrieval, left_out = leave_out_unreadable(embeddings, pids, camids, self.hparams.num_query, paths)
        if left_out:
            rank_zero_info("%s, %s", stage, left_out)
        results = evaluate_protocols(retrieval, self.hparams, processes)
        for result in results.values():
            rank_zero_info("%s, %s", stage, describe_result(result))
        metrics = metrics_dict(*results.values())
        # The metric that selects the best checkpoint must exist even if the published protocol has nothing to rank.
        self._log_epoch({name.removeprefix("strict_"): value for name, value in metrics.items()} | metrics)
        # The tables also keep the results of the same weights by the other protocols. They come last, so that metrics
        # that both have are those of the first evaluation.
        self._results = results | {name: old for name, old in self._results.items() if name not in results}
        if self.trainer.is_global_zero and self.hparams.OUTPUT_DIR:
            write_tables(retrieval, self._results, self.hparams)
            if stage == "test" and self.hparams.TEST.VISUALIZE == "yes" and paths is not None:
                for page in write_strips(retrieval, results, self.hparams):
                    rank_zero_info("ranked results: %s", page)

    def validation_create_centroids(
        self, embeddings: Tensor, labels: Any, camids: Any, respect_camids: bool = False
    ) -> tuple[Tensor, Any, Any]:
        """Queries and gallery centroids of the published protocol, see :mod:`evaluation.centroid_protocols`."""
        return create_centroids(embeddings, labels, camids, self.hparams.num_query, respect_camids)


def _get_loader(loader: Any) -> Any:
    return loader() if callable(loader) else loader
