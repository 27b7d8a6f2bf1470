"""The whole CTL step in a class of one's own, over ModelBase, with its own optimisation; trained beside today's script.

Prints:
same losses, and every name is in the log
"""
import os
import sys

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from config import cfg
from modelling.bases import ModelBase
from train_ctl_model import CTLModel as Today
from utils.misc import run_main


class CTLModel(ModelBase):
    def __init__(self, cfg=None, **kwargs):
        super().__init__(cfg, **kwargs)
        self.losses_names = ["query_xent", "query_triplet", "query_center", "centroid_triplet"]
        self.losses_dict = {name: [] for name in self.losses_names}

    def training_step(self, batch, batch_idx, optimizer_idx=None):
        opt, opt_center = self.optimizers(use_pl_optimizer=True)
        solver = self.hparams.SOLVER
        if solver.USE_WARMUP_LR and self.trainer.current_epoch < solver.WARMUP_EPOCHS:
            scale = min(1.0, float(self.trainer.current_epoch + 1) / float(solver.WARMUP_EPOCHS))
            for group in opt.param_groups:
                group["lr"] = scale * solver.BASE_LR
        opt.zero_grad()
        opt_center.zero_grad()

        x, class_labels, camid, is_real = batch
        unique_classes = len(np.unique(class_labels.detach().cpu()))
        _, features = self.backbone(x)
        triplet, _, _ = self.contrastive_loss(features, class_labels, mask=is_real)
        triplet = triplet * solver.QUERY_CONTRASTIVE_WEIGHT
        center = solver.CENTER_LOSS_WEIGHT * self.center_loss(features[is_real], class_labels[is_real])
        logits = self.fc_query(self.bn(features[is_real]))
        xent = solver.QUERY_XENT_WEIGHT * self.xent(logits, class_labels[is_real])

        masks, labels_list = self.create_masks_train(class_labels)
        masks = masks.to(features.device)
        rounds, aps, ans, norms = [], [], [], []
        for i in range(len(masks)):
            held_out = [rows[i] for rows in labels_list if i < len(rows) and is_real[rows[i]]]
            ids = set(class_labels[held_out].tolist())
            if len(ids) <= 1:
                continue
            centroids, ys = [], []
            for rows in labels_list:
                kept = [r for r in rows if masks[i][r] and is_real[r] and int(class_labels[r]) in ids]
                if kept:
                    vecs = features[kept].view(1, len(kept), -1)
                    centroids.append(self._calculate_centroids(vecs, dim=1))
                    ys.append(int(class_labels[rows[0]]))
            centroids = torch.cat(centroids)
            both = torch.cat([features[held_out], centroids])
            labels = torch.cat([class_labels[held_out], torch.tensor(ys, device=features.device)])
            loss, ap, an = self.contrastive_loss(both, labels)
            rounds.append(loss)
            aps.append(float(ap.detach().mean()))
            ans.append(float(an.detach().mean()))
            norms.append(float(centroids.detach().norm(dim=1).mean()))
        centroid = solver.CENTROID_CONTRASTIVE_WEIGHT * torch.mean(torch.stack(rounds))

        total = centroid + xent + triplet + center
        self.manual_backward(total, optimizer=opt)
        opt.step()
        for param in self.center_loss.parameters():
            param.grad.data *= 1.0 / self.hparams.SOLVER.CENTER_LOSS_WEIGHT
        opt_center.step()

        for name, value in zip(self.losses_names, [xent, triplet, center, centroid]):
            self.losses_dict[name].append(value.detach().cpu())
        log_data = {"step_dist_ap": np.mean(aps), "step_dist_an": np.mean(ans), "l2_mean_centroid": np.mean(norms)}
        return {"loss": total.detach().cpu(), "other": log_data}


def read(folder):
    events = EventAccumulator(folder)
    events.Reload()
    return {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


if __name__ == "__main__":
    root = os.path.dirname(os.path.dirname(os.path.abspath(sys.modules["config"].__file__)))
    cfg.merge_from_file(os.path.join(root, "configs", "toy_resnet18_cpu.yml"))
    cfg.merge_from_list(["DATASETS.ROOT_DIR", sys.argv[1], "INPUT.SIZE_TRAIN", [32, 16], "INPUT.SIZE_TEST", [32, 16],
                         "SOLVER.MAX_EPOCHS", 2, "SOLVER.EVAL_PERIOD", 2, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.LR_STEPS", (1,), "SOLVER.LR_SCHEDULER_NAME", "multistep_lr",
                         "SOLVER.WARMUP_EPOCHS", 1, "SOLVER.BASE_LR", 1e-4, "REPRODUCIBLE", True, "REPRODUCIBLE_NUM_RUNS", 1, "LOGGING.MLFLOW", False,
                         "TRAINER.PROGRESS_BAR", False, "OUTPUT_DIR", "out"])
    torch.set_num_threads(1)
    run_main(cfg, CTLModel, "own")
    run_main(cfg, Today, "today")
    own, today = read("out/own/version_0"), read("out/today/version_0")
    assert set(own) == set(today), set(own) ^ set(today)
    for name in ("epoch_train_loss", "epoch_dist_ap", "epoch_dist_an", "l2_mean_centroid", "lr", *CTLModel(cfg, num_classes=2).losses_names):
        np.testing.assert_allclose(own[name], today[name], rtol=1e-3, atol=1e-3, err_msg=name)
    np.testing.assert_allclose(own["lr"], [1e-4, 1e-4 * cfg.SOLVER.GAMMA], rtol=1e-5)
    print("same losses, and every name is in the log")
