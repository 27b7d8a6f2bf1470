"""What the CTL model and the baseline share: parameters, members, optimisation, validation and logging."""

import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from numbers import Real
from typing import Any, Self, cast

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.callbacks import Checkpoint, ProgressBar
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data.distributed import DistributedSampler
from yacs.config import CfgNode

from checkpoints.plain import to_plain
from checkpoints.reading import count_identities, load_ctl_checkpoint
from checkpoints.weights import describe, find_unusable, shorten, what_differs
from config.defaults import _C as DEFAULTS
from config.recorded import check_recorded
from config.validate import check_keys
from datasets.draws import GalleryDraw
from datasets.loading import BaseDatasetLabelled
from evaluation.centroid_protocols import create_centroids
from evaluation.draws import Rows, with_draws
from evaluation.metrics import evaluate, metrics_dict
from evaluation.notes import caveat_of
from evaluation.places import EvaluationPlace
from evaluation.retrieval import TOPK_RANKS, EvalResult, RankingOptions, RetrievalSet
from evaluation.tables import describe as describe_result
from losses.center_loss import CenterLoss
from losses.centroid_triplet_loss import create_masks_train
from losses.extra import ExtraLosses
from losses.gathered_triplet import gathered_triplet_loss
from losses.triplet_loss import CrossEntropyLabelSmooth, TripletLoss
from modelling.averaging import AverageKeeper, WeightAverage
from modelling.backbones.imagenet import starts_from_weights
from modelling.baseline import Baseline, weights_init_classifier, weights_init_kaiming
from modelling.epochs import EpochKeeper
from modelling.evaluation import (
    OwnImages,
    evaluate_protocols,
    leave_out_unreadable,
    ranking_options,
    write_strips,
    write_tables,
)
from modelling.from_weights import load_head
from modelling.hyperparameters import (
    NOT_STORED,
    construct,
    merge_hparams,
    refuse_code_elsewhere,
    with_trained_size,
)
from modelling.lightning_1_1 import (
    HiddenHook,
    OldTrainerParts,
    adapt_subclass,
    is_adapted,
    monitor_of,
    refuse_gone_hooks,
    wants_outputs,
    warn_of_uncalled,
)
from modelling.mirroring import embed_views
from modelling.modes import in_eval_mode
from modelling.origin import describe_origin, epochs_in, network_origin
from modelling.parameters import find_parts
from solver.build import build_optimizer, build_scheduler
from solver.gradients import scale_gradients, stepping_together, without_reduction
from utils.distributed import Processes, gather_in_order, is_first_process, mean_over_processes, running_processes
from utils.errors import UserError
from utils.labels import Cameras, Names
from utils.origin import origin, versions

__all__ = ["ModelBase", "merge_hparams", "weights_init_classifier", "weights_init_kaiming"]


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

    losses_names: Sequence[str] = ("query_xent", "query_triplet", "query_center")

    #: Whether a validation is the one before the first epoch (TEST.BEFORE_TRAINING), which is logged at step -1.
    before_training = False

    #: Which run and test set evaluations are of, see :meth:`evaluate_at`.
    evaluation_place = EvaluationPlace()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Adapt a class that was written for Lightning 1.1, see :mod:`modelling.lightning_1_1`."""
        super().__init_subclass__(**kwargs)
        adapt_subclass(cls)

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
        self.losses_names = (*type(self).losses_names, *self.extra_losses.weights)
        self.losses_dict: dict[str, list[Any]] = {}  # of the epoch: name -> one number or scalar for each step
        self.train_outputs: list[dict[str, Any]] = []  # of the epoch: what the steps returned
        self.evaluation_outputs: list[tuple[Tensor, ...]] = []  # embeddings, pids and camids of each batch
        self.lr_scheduler: Any = None  # of the network, once configure_optimizers has made it
        self.loaded_from = ""  # the checkpoint of the weights
        self.loaded_epochs: int | None = None  # how long they were trained
        self._own_images = OwnImages()
        self._marks: dict[str, list[tuple[Any, int]]] = {}
        self.start_records()
        self._results: dict[str, EvalResult] = {}
        self.accumulated = 0  # batches whose gradients wait for the next step
        self.average: WeightAverage | None = None  # of the weights, with SOLVER.EMA_DECAY

    def _build_members(self, load_imagenet: bool) -> None:
        hparams = self.hparams
        check_keys(hparams)
        if "num_classes" not in hparams:
            raise UserError("num_classes is missing: give the number of training identities, num_classes=N.")
        if hparams.SOLVER.USE_AUTOMATIC_OPTIM:
            raise UserError("SOLVER.USE_AUTOMATIC_OPTIM True is not supported: the centres need a step of their own.")
        self.backbone = Baseline(hparams, load_weights=load_imagenet)
        width = hparams.MODEL.EMBED_DIM or hparams.MODEL.BACKBONE_EMB_SIZE or self.backbone.embedding_size
        self.backbone.choose_computation(
            channels_last=hparams.MODEL.CHANNELS_LAST, grad_checkpoint=hparams.MODEL.GRAD_CHECKPOINT
        )
        margin = None if hparams.SOLVER.SOFT_MARGIN else hparams.SOLVER.MARGIN
        self.contrastive_loss = TripletLoss(margin, hparams.SOLVER.DISTANCE_FUNC)
        self.xent = CrossEntropyLabelSmooth(hparams.num_classes, hparams.SOLVER.LABEL_SMOOTHING)
        self.center_loss = CenterLoss(num_classes=hparams.num_classes, feat_dim=width)
        self.bn = nn.BatchNorm1d(width)
        self.bn.bias.requires_grad_(False)
        self.fc_query = nn.Linear(width, hparams.num_classes, bias=False)
        nn.init.normal_(self.fc_query.weight, std=0.001)
        extra = hparams.LOSSES
        wanted = (extra.EXTRA, extra.EXTRA_WEIGHTS, extra.EXTRA_ARGS)
        names, weights, arguments = ((), (), ()) if hparams.TEST.ONLY_TEST else wanted  # only training computes them
        self.extra_losses = ExtraLosses(names, weights, hparams.num_classes, width, arguments)
        taken = {"loss", "l2_mean_centroid", "mINP", *self.metric_names()}
        clash = [name for name in self.extra_losses.weights if name.removeprefix("strict_") in taken]
        if clash:
            raise UserError(
                f"LOSSES.EXTRA {list(extra.EXTRA)}: a loss would be logged as {min(clash)}, which is the name of "
                "something else; give yours another."
            )
        if load_imagenet and hparams.MODEL.PRETRAIN_HEAD and starts_from_weights(hparams):
            load_head(self, hparams.MODEL.PRETRAIN_PATH)

    @property
    def center_loss_weight(self) -> float:
        """SOLVER.CENTER_LOSS_WEIGHT of the hyper-parameters; may be set."""
        return self.hparams.SOLVER.CENTER_LOSS_WEIGHT

    @center_loss_weight.setter
    def center_loss_weight(self, value: float) -> None:
        self.hparams.SOLVER.CENTER_LOSS_WEIGHT = value

    @is_adapted
    def configure_callbacks(self) -> list[Callback]:
        """Callbacks that come with the model, whatever Trainer there is; a subclass may override it."""
        self.attach_keeper()
        return []

    def attach_keeper(self) -> None:
        """Give the Trainer the callbacks that do the model's work around its steps; see :mod:`modelling.epochs`."""
        refuse_gone_hooks(self)
        warn_of_uncalled(self, ModelBase)
        OldTrainerParts.attach(self.trainer)
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, EpochKeeper) for callback in callbacks):
            # A progress bar shows, and a checkpoint saves, what the keeper has done.
            later = [i for i, callback in enumerate(callbacks) if isinstance(callback, ProgressBar | Checkpoint)]
            place = min(later, default=len(callbacks))
            callbacks[place:place] = [EpochKeeper(), AverageKeeper()]

    # ------------------------------------------------------------------------------------- parameters, checkpoints

    @property
    def hparams(self) -> CfgNode:
        """The configuration of this model, with num_classes and num_query at its top level."""
        return self._hyper_parameters

    @hparams.setter
    def hparams(self, value: Any) -> None:
        self._hyper_parameters = merge_hparams(DEFAULTS, to_plain(value))

    # Where Lightning keeps the hyper-parameters.
    _hparams = hparams

    def save_hyperparameters(self, *args: Any, frame: Any = None, **kwargs: Any) -> None:
        """Add the arguments of a subclass's own constructor to the hyper-parameters; the others are there already.

        Args:
            args, kwargs: as for Lightning's method.
            frame: that of the constructor; the caller's when None.
        """
        frame = frame or sys._getframe(1)
        super().save_hyperparameters(*args, frame=frame, **kwargs | {"logger": False})  # the run logs all of them

    def _set_hparams(self, hp: Any) -> None:
        added = {
            key: value for key, value in self._to_hparams_dict(hp).items() if key not in (*self.hparams, *NOT_STORED)
        }
        self._hyper_parameters = merge_hparams(self.hparams, added)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store plain containers only, so that any version of torch can read the file without running code."""
        checkpoint["hyper_parameters"] = to_plain(self.hparams)
        if self.average is not None:
            self.average.store(checkpoint)

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
        try:
            checkpoint = load_ctl_checkpoint(checkpoint_path)
            check_recorded(checkpoint["hyper_parameters"], checkpoint_path)
            model = cls._load_model_state(checkpoint, strict, **kwargs)
        except UserError as error:
            if str(checkpoint_path) in str(error):
                raise
            raise type(error)(f"{checkpoint_path}: {error}") from error
        model.loaded_from = str(checkpoint_path)
        return model if map_location is None else model.to(map_location)

    @classmethod
    def _load_model_state(cls, checkpoint: dict[str, Any], strict: bool = True, **kwargs: Any) -> Self:
        """The model of a checkpoint that is already loaded; arguments and errors as for load_from_checkpoint."""
        stored, weights = to_plain(checkpoint["hyper_parameters"]), checkpoint["state_dict"]
        for name in NOT_STORED:
            stored.pop(name, None)
        refuse_code_elsewhere(stored, to_plain(kwargs.get("cfg") or {}))
        parameters = {**stored, **kwargs, "num_classes": count_identities(checkpoint), "load_imagenet": False}
        model = construct(cls, with_trained_size(parameters.pop("cfg", None), stored), parameters)
        # Only training needs the extra losses: what the checkpoint has of them fits those that the caller names.
        own = {key: value for key, value in model.state_dict().items() if key.startswith("extra_losses.")}
        weights = own | {k: v for k, v in weights.items() if k in own or not k.startswith("extra_losses.")}
        if unusable := find_unusable(weights, model):
            raise UserError(f"this is {describe(checkpoint)}, but {unusable}.")
        try:
            found = model.load_state_dict(weights, strict=strict)
        except RuntimeError as error:
            settings, name = model.hparams.MODEL, stored.get("MODEL", {}).get("NAME")
            raise UserError(
                f"this is {describe(checkpoint, name)}, which does not fit MODEL.NAME {settings.NAME} with "
                f"BACKBONE_EMB_SIZE {settings.BACKBONE_EMB_SIZE}, EMBED_DIM {settings.EMBED_DIM} and PATCH_STRIDE "
                f"{settings.PATCH_STRIDE} ({what_differs(weights, model.state_dict())}): set these to the values it "
                "was trained with."
            ) from error
        model.loaded_epochs = epochs_in(checkpoint)
        if found.missing_keys or found.unexpected_keys:
            rank_zero_warn(
                f"strict=False: missing in the checkpoint, and left as they start: {shorten(found.missing_keys)}; left "
                f"out, without a place in the model: {shorten(found.unexpected_keys)}"
            )
        return model

    # ------------------------------------------------------------------------------------------------ optimisation

    @is_adapted
    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[Any]]:
        """SOLVER.OPTIMIZER_NAME for the network with the epoch schedule, SGD for the centres."""
        parts = find_parts(self, with_distances=self.hparams.SOLVER.LAYER_DECAY != 1)
        optimizers = build_optimizer(self.named_parameters(), self.hparams, parts=parts)
        self.lr_scheduler = build_scheduler(optimizers[0], self.hparams)
        return optimizers, [self.lr_scheduler]

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

    create_masks_train = staticmethod(create_masks_train)

    def _calculate_centroids(self, vecs: Tensor, dim: int = 1) -> Tensor:
        return vecs.mean(dim)

    def compile_backbone(self) -> None:
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

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's; an optimiser among the arguments, which Lightning 1.1 wanted, is accepted and ignored."""
        kwargs.pop("optimizer", None)
        args = tuple(arg for arg in args if not isinstance(arg, torch.optim.Optimizer | LightningOptimizer))
        super().manual_backward(loss, *args, **kwargs)

    def optimize(self, losses: dict[str, Tensor], statistics: dict[str, Tensor]) -> dict[str, Any]:
        """One backward pass over the sum of the weighted losses; a step of the network, then one of the centres.

        With SOLVER.ACCUMULATE N these steps follow every N-th batch, and the last one of an epoch.

        Args:
            losses: name -> scalar, each already multiplied by its weight.
            statistics: name -> detached scalar, recorded beside the losses.

        Returns:
            What training_step returns: the detached total under "loss", the statistics under "other".
        """
        optimizer, *others = self._all_optimizers()
        total = torch.stack(list(losses.values())).sum()
        if self.accumulated == 0:
            for each in (optimizer, *others):
                each.zero_grad()
        self.accumulated += 1
        is_whole = self.accumulated >= self.hparams.SOLVER.ACCUMULATE or self.trainer.is_last_batch
        with nullcontext() if is_whole else without_reduction(self.trainer):
            self.manual_backward(total)
        if is_whole:
            self._step(optimizer, *others)
        detached = {name: loss.detach() for name, loss in losses.items()}
        for name, value in detached.items():
            self.losses_dict.setdefault(name, []).append(value)
        return {"loss": total.detach(), "other": statistics}

    def _step(self, optimizer: LightningOptimizer, *others: LightningOptimizer) -> None:
        """A step of the network, then one of the centres, with the mean gradients of the batches since the last one."""
        if self.accumulated > 1:
            for each in (optimizer, *others):
                scale_gradients(each.optimizer, 1.0 / self.accumulated)
        self.accumulated = 0
        weight = self.center_loss_weight
        stepping = (optimizer, *(others if weight > 0 else ()))
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        with stepping_together(scaler, [each.optimizer for each in stepping]):
            optimizer.step()
            for optimizer_center in stepping[1:]:
                # They learn at CENTER_LR whatever the weight of their loss.
                scale_gradients(optimizer_center.optimizer, 1.0 / weight)
                optimizer_center.step()

    def _all_optimizers(self) -> list[LightningOptimizer]:
        """Those of configure_optimizers, of which a subclass may have one only."""
        found = self.optimizers()
        return cast(list[LightningOptimizer], found if isinstance(found, list) else [found])

    def mark_schedules(self, interval: str) -> None:
        """Note where the schedules of an interval ("epoch", "step") stand, to see whether the model steps them."""
        configs = [config for config in self.trainer.lr_scheduler_configs if config.interval == interval]
        self._marks[interval] = [(config, config.scheduler.last_epoch) for config in configs]

    def step_schedules(self, interval: str = "epoch", count: int | None = None) -> None:
        """Step the schedules that the model has not stepped itself since they were marked.

        Args:
            interval: "epoch" or "step".
            count: finished epochs or steps, of which every ``frequency``-th counts; None takes the epoch.
        """
        count = self.current_epoch + 1 if count is None else count
        for config, before in self._marks.get(interval, ()):
            schedule = config.scheduler
            if schedule.last_epoch != before or count % config.frequency:
                continue
            if not isinstance(schedule, ReduceLROnPlateau):
                schedule.step()
            elif (monitor := monitor_of(schedule)) is None:
                raise UserError(
                    'ReduceLROnPlateau needs the metric that it watches: let configure_optimizers return {"scheduler": '
                    'schedule, "monitor": "mAP"}, or step the schedule yourself.'
                )
            elif monitor in self.trainer.callback_metrics:  # not before the first validation
                schedule.step(self.trainer.callback_metrics[monitor])
            elif self._results:
                rank_zero_warn(
                    f"ReduceLROnPlateau monitors {monitor!r}, which nothing has logged in an epoch with a validation: "
                    f"the rate stays as it is. Logged are {', '.join(sorted(self.trainer.callback_metrics))}."
                )
        if self._marks.get(interval):
            self.mark_schedules(interval)

    def start_records(self) -> None:
        """Begin the records of an epoch."""
        self._results = {}
        self.train_outputs = []
        for name in (*self.losses_names, *self.losses_dict):
            self.losses_dict[name] = []

    def record_step(self, outputs: Any) -> None:
        """Record what a training step returned: a dictionary with "loss" and, under "other", its statistics.

        The rest of it is kept only for a subclass that asks for the outputs at the end of the epoch.
        """
        returned = {"loss": outputs} if isinstance(outputs, Tensor) else dict(outputs or {})
        if not wants_outputs(type(self), ModelBase):
            returned = {name: returned[name] for name in ("loss", "other") if name in returned}
        self.train_outputs.append(returned)
        for values in self.losses_dict.values():
            if values and isinstance(values[-1], Tensor):
                values[-1] = values[-1].detach()  # the graph of a step is not kept for the whole epoch

    def training_epoch_end(self, outputs: Sequence[dict[str, Any]]) -> None:
        """Log the means of an epoch. A subclass may override it, to log something else; Lightning does not see it.

        Args:
            outputs: what the steps returned, see :meth:`record_step`.
        """
        names = {"loss": "epoch_train_loss", "step_dist_ap": "epoch_dist_ap", "step_dist_an": "epoch_dist_an"}
        records: dict[str, list[Any]] = {}
        for output in outputs:
            for name, value in {**output.get("other", {}), "loss": output.get("loss")}.items():
                if isinstance(value, Tensor | np.ndarray | Real):
                    records.setdefault(names.get(name, name), []).append(value)
        records |= {name: values for name, values in self.losses_dict.items() if values}
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        self._log_epoch(
            mean_over_processes({name: self._mean(values) for name, values in records.items()}) | {"lr": lr}
        )

    training_epoch_end = HiddenHook(training_epoch_end)  # type: ignore[assignment,arg-type]

    def _mean(self, values: Sequence[Any]) -> Tensor:
        """The mean of numbers and tensors, on the device of the model."""
        return torch.stack([torch.as_tensor(v, dtype=torch.float32, device=self.device).mean() for v in values]).mean()

    def _log_epoch(self, metrics: dict[str, float]) -> None:
        """Pass metrics to every logger, with the epoch as the step, and to the callbacks.

        The loggers get those of a test under names of their own, such as test_centroids/mAP: the validation of the
        same epoch has logged others as mAP.
        """
        # The test pass comes after the last epoch, when current_epoch is already one higher.
        epoch = self.current_epoch
        if self.trainer.testing:
            epoch = max(epoch - 1, 0)
        elif self.before_training:
            epoch = -1
        # The callbacks of all processes must reach the same decisions, so the numbers must agree to the last bit.
        metrics = self.trainer.strategy.broadcast(metrics)
        self.log_dict(metrics, logger=False, sync_dist=True)
        if self.trainer.testing:
            kind = "centroids" if self.hparams.MODEL.USE_CENTROIDS else "instances"
            prefix = f"{self.evaluation_place.prefix}test_{kind}"
            metrics = {f"{prefix}/{name}": value for name, value in metrics.items()}
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

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings of images as they are, [B, 3, H, W] -> [B, D]: what validation, inference and export build on.

        They are the BN neck's output, or with MODEL.NECK_FEAT "before" what goes into it. A subclass may override it;
        it finds its own modules and ``hparams`` there, and no Trainer.
        """
        _, features = self.backbone(images)
        return self.bn(features) if self.hparams.MODEL.NECK_FEAT == "after" else features

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings as validation and inference use them: those of :meth:`embed`, with TEST.FLIP averaged."""
        return embed_views(self.embed, x, self.hparams.TEST.FLIP)

    def validation_step(self, batch: Any, batch_idx: int = 0) -> dict[str, Any]:
        """Embed a batch in eval mode and without gradient, also outside a Trainer.

        Args:
            batch: images [B, 3, H, W], pids [B], camids [B], positions in the data set [B].
            batch_idx: not used.

        Returns:
            "emb": embeddings [B, D]; "labels", "camid" and "idx": the rest of the batch. A Trainer collects them for
            the evaluation at the end of the epoch.
        """
        images, pids, camids, positions = batch
        with in_eval_mode(self.backbone, self.bn), torch.no_grad():
            embeddings = embed_views(self.embed, images, self.hparams.TEST.FLIP)
        return {"emb": embeddings, "labels": pids, "camid": camids, "idx": positions}

    def test_step(self, batch: Any, batch_idx: int = 0) -> dict[str, Any]:
        """As validation_step."""
        return self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Rank the gallery for every query, then log and print the metrics."""
        if not self.trainer.sanity_checking:  # the first batches alone cannot be ranked
            stage = "before training" if self.before_training else "validation"
            self._evaluate(stage, self.trainer.val_dataloaders)

    def on_test_start(self) -> None:
        """Say once which network is tested, unless it has just been trained."""
        is_loaded = self.loaded_from or self.hparams.TEST.ONLY_TEST
        if is_loaded and not self._results and self.evaluation_place.is_first and self.trainer.is_global_zero:
            network = network_origin(self)
            if network["checkpoint"]:
                rank_zero_info("test of %s", describe_origin(network, versions()))

    def on_test_epoch_end(self) -> None:
        """As on_validation_epoch_end."""
        self._evaluate("test", self.trainer.test_dataloaders)

    def _collect(self, loader: Any, processes: Processes | None) -> list[Tensor]:
        """Embeddings, pids and camids of the whole set, in its order, gathered from all processes."""
        outputs, self.evaluation_outputs = self.evaluation_outputs, []
        none = torch.empty(0, dtype=torch.int64)  # this process may have no batch
        width = outputs[0][0].shape[1] if outputs else 0
        if processes is not None:
            width = int(processes.gather(torch.tensor([width])).max())
        embeddings = torch.cat([torch.empty(0, width), *(output[0] for output in outputs)])
        pids, camids = (torch.cat([none, *(output[i] for output in outputs)]) for i in (1, 2))
        if processes is None:
            if len(embeddings) == 0:
                raise UserError(
                    f"The steps of {type(self).__name__} returned no embeddings: validation_step and test_step return "
                    'a dictionary with "emb" [B, D], "labels" and "camid" [B].'
                )
            return [embeddings, pids, camids]
        positions = torch.tensor(list(loader.sampler), dtype=torch.int64)[: len(embeddings)]
        return gather_in_order(positions, len(loader.dataset), embeddings, pids, camids)

    def evaluate_at(self, place: EvaluationPlace) -> None:
        """Let what follows be the evaluation of another run or test set, which keeps no result of the one before."""
        self.evaluation_place, self._results = place, {}

    def _evaluate(self, stage: str, loader: Any) -> None:
        place = self.evaluation_place
        label = place.label(stage)
        loader = loader[0] if isinstance(loader, list) else loader
        # Unless the loader is divided among the processes, each of them has the whole set and evaluates it.
        processes = running_processes() if isinstance(getattr(loader, "sampler", None), DistributedSampler) else None
        embeddings, pids, camids = self._collect(loader, processes)
        if len(embeddings) != len(loader.dataset):
            rank_zero_warn(
                f"{label}: no metrics, since only {len(embeddings)} of {len(loader.dataset)} images were embedded "
                "(fast_dev_run, a limit of batches, or steps that return nothing)."
            )
            return
        # A data set of another program may not know its files.
        paths = (
            [sample[0] for sample in loader.dataset.data] if isinstance(loader.dataset, BaseDatasetLabelled) else None
        )
        rows = Rows(embeddings, pids, camids, self.hparams.num_query, paths)
        draws: Sequence[GalleryDraw] = getattr(loader.dataset, "gallery_draws", ())
        among = paths if len(draws) > 1 else None
        retrieval, left_out = leave_out_unreadable(*(rows.of_draw(draws[0]) if draws else rows))
        if left_out:
            rank_zero_info("%s, %s", label, left_out)
        retrieval = replace(retrieval, names=getattr(loader.dataset, "names", Names()))
        retrieval = self._own_images.leave_out(retrieval, self.hparams, label, processes, among)
        results = evaluate_protocols(retrieval, self.hparams, processes)

        def evaluate_draw(draw: GalleryDraw) -> dict[str, EvalResult]:
            drawn, _ = leave_out_unreadable(*rows.of_draw(draw))
            drawn = self._own_images.leave_out(drawn, self.hparams, label, processes, among)
            return evaluate_protocols(drawn, self.hparams, processes)

        if len(draws) > 1:
            results = with_draws(chain([results], map(evaluate_draw, draws[1:])))
        results = {protocol: place.with_caveat(result) for protocol, result in results.items()}
        for result in results.values():
            rank_zero_info("%s, %s", label, describe_result(result, with_intervals=stage == "test"))
        metrics = metrics_dict(*results.values())
        # The metric that selects the best checkpoint must exist even if the published protocol has nothing to rank.
        self._log_epoch({name.removeprefix("strict_"): value for name, value in metrics.items()} | metrics)
        # The tables also keep the results of the same weights by the other protocols. They come last, so that metrics
        # that both have are those of the first evaluation.
        self._results = results | {name: old for name, old in self._results.items() if name not in results}
        if self.trainer.is_global_zero and self.hparams.OUTPUT_DIR:
            about = {"network": network_origin(self), **origin()}
            write_tables(retrieval, self._results, self.hparams, about, place)
            if stage == "test" and self.hparams.TEST.VISUALIZE == "yes" and paths is not None:
                part = "" if place.is_first else place.name
                for page in write_strips(retrieval, results, self.hparams, part, self):
                    rank_zero_info("ranked results: %s", page)

    def validation_create_centroids(
        self, embeddings: Tensor, labels: Any, camids: Any, respect_camids: bool = False
    ) -> tuple[Tensor, Any, Any]:
        """Queries and gallery centroids of the published protocol, see :mod:`evaluation.centroid_protocols`."""
        return create_centroids(embeddings, labels, camids, self.hparams.num_query, respect_camids)

    def get_val_metrics(self, embeddings: Tensor, labels: Any, camids: Any) -> None:
        """Rank and measure embeddings, print Rank-k and mAP, and log them if there is a Trainer.

        Args:
            embeddings: [M + N, D], the ``num_query`` queries first; N images, or the centroids that
                :meth:`validation_create_centroids` gives.
            labels: [M + N] pids.
            camids: M + N cameras, surplus entries are ignored; those of a centroid are a set or list.
        """
        retrieval = RetrievalSet.of_rows(embeddings, labels, camids[: len(embeddings)], self.hparams.num_query)
        result = evaluate(retrieval, ranking_options(self.hparams, "instance"))
        if is_first_process():
            # Only centroids of the published protocol have sets of cameras.
            single = Cameras("camids", retrieval.g_camids, retrieval.num_gallery).single
            caveat = "" if single else f"  ({caveat_of(retrieval, RankingOptions(protocol='centroid'))})"
            numbers = {"mAP": result.mAP} | {f"Rank-{k}": value for k, value in result.topk.items()}
            sys.stdout.write("".join(f"{name}: {value:.1%}{caveat}\n" for name, value in numbers.items()))
        if self._trainer is not None:
            self._log_epoch(metrics_dict(result))

    # -------------------------------------------------------------------------------------------- as files, as a trace

    def __getstate__(self) -> dict[str, Any]:
        """For ``torch.save(model, path)``, without what belongs to a training: schedules hold the optimiser."""
        training: dict[str, Any] = {"lr_scheduler": None, "_marks": {}, "average": None, "accumulated": 0}
        return {**super().__getstate__(), **training, "_own_images": OwnImages()}

    def to_torchscript(  # type: ignore[override]
        self, file_path: Any = None, method: str = "trace", example_inputs: Any = None, **kwargs: Any
    ) -> torch.jit.ScriptModule:
        """Trace the way from images to embeddings; ``python -m inference.export`` has more formats, and checks them.

        Args:
            file_path: where to save the trace; None does not.
            method: "trace".
            example_inputs: images [B, 3, H, W]; None takes black ones of INPUT.SIZE_TEST.
            **kwargs: passed on to torch.jit.trace.

        Raises:
            UserError: any other method.
        """
        if method != "trace":
            raise UserError(f"to_torchscript: method is {method!r}; the network can only be traced: method='trace'.")
        if example_inputs is None:
            example_inputs = torch.zeros(1, 3, *self.hparams.INPUT.SIZE_TEST, device=self.device)
        with in_eval_mode(self), torch.no_grad():
            traced = torch.jit.trace(EmbeddingPath(self, self.hparams.TEST.FLIP), example_inputs, **kwargs)
        if file_path is not None:
            torch.jit.save(traced, file_path)
        return traced


class EmbeddingPath(nn.Module):
    """A model's way from images to embeddings, :meth:`ModelBase.embed`, without the rest of it.

    A whole model can neither be traced nor copied while it is in a Trainer.

    Args:
        model: its modules are shared, not copied.
        flip: whether to take the mean with the mirror image, as TEST.FLIP does.
    """

    def __init__(self, model: ModelBase, flip: bool = False) -> None:
        super().__init__()
        self.hparams, self.flip = model.hparams, flip
        self.method = type(model).embed
        for name, module in model.named_children():
            if name in ("backbone", "bn") or self.is_overridden:
                self.add_module(name, module)

    @property
    def is_overridden(self) -> bool:
        """Whether the model's class computes embeddings in a way of its own."""
        return self.method is not ModelBase.embed

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] floating -> embeddings [B, D]."""
        return embed_views(partial(self.method, self), images, self.flip)  # type: ignore[arg-type]


def is_own_model(cls: type) -> bool:
    """Whether a class is one of this project's, whose steps give every parameter a gradient."""
    return cls.__dict__.get("is_of_this_project", False)


def _get_loader(loader: Any) -> Any:
    return loader() if callable(loader) else loader
