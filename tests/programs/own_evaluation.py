"""Steps called by hand, metrics of embeddings, a model saved whole, a trace: all without a Trainer; then a validation of one's own.

Prints:
mAP: \\d+\\.\\d%
Rank-1: \\d+\\.\\d%
by hand and by the Trainer: the same mAP
"""
import os
import sys

import pytorch_lightning as pl
import torch

from config import cfg
from datasets import init_dataset
from modelling.bases import weights_init_classifier, weights_init_kaiming
from train_base_model import BaseModel
from train_ctl_model import CTLModel


class Flipped(CTLModel):
    """Averages an image and its mirror image, in a validation step of its own."""

    def validation_step(self, batch, batch_idx):
        self.backbone.eval()
        self.bn.eval()
        x, class_labels, camid, idx = batch
        with torch.no_grad():
            _, emb = self.backbone(x)
            _, mirrored = self.backbone(torch.flip(x, dims=[3]))
            emb = self.bn((emb + mirrored) / 2)
        return {"emb": emb, "labels": class_labels, "camid": camid, "idx": idx}


if __name__ == "__main__":
    root = os.path.dirname(os.path.dirname(os.path.abspath(sys.modules["config"].__file__)))
    cfg.merge_from_file(os.path.join(root, "configs", "toy_resnet18_cpu.yml"))
    cfg.merge_from_list(["DATASETS.ROOT_DIR", sys.argv[1], "INPUT.SIZE_TRAIN", [32, 16], "INPUT.SIZE_TEST", [32, 16],
                         "LOGGING.MLFLOW", False, "MODEL.KEEP_CAMID_CENTROIDS", True])
    torch.manual_seed(0)
    dm = init_dataset(cfg.DATASETS.NAMES, cfg=cfg, num_workers=0)
    dm.setup()
    model = CTLModel(cfg, num_query=dm.num_query, num_classes=dm.num_classes)
    model.fc_query.apply(weights_init_classifier)
    model.fc_query.apply(weights_init_kaiming)

    model.train()
    before = model.bn.running_mean.clone(), model.backbone.base.bn1.running_mean.clone()
    outputs = [model.test_step(batch) for batch in dm.test_dataloader()]
    assert torch.equal(before[0], model.bn.running_mean) and torch.equal(before[1], model.backbone.base.bn1.running_mean)
    assert not outputs[0]["emb"].requires_grad and outputs[0]["emb"].shape[1] == 512
    assert torch.equal(torch.cat([o["idx"] for o in outputs]), torch.arange(len(dm.val)))
    again = [model.validation_step(batch, i) for i, batch in enumerate(dm.val_dataloader())]
    assert all(torch.equal(a["emb"], b["emb"]) for a, b in zip(outputs, again))
    embeddings = torch.cat([o["emb"] for o in outputs]).cpu()
    embeddings += 0  # in place: not inference tensors
    labels = torch.cat([o["labels"] for o in outputs]).numpy()
    camids = torch.cat([o["camid"] for o in outputs]).numpy()
    model.get_val_metrics(embeddings, labels, camids)
    for respect in (True, False):
        centroids, pids, cams = model.validation_create_centroids(embeddings, labels, camids, respect_camids=respect)
        model.get_val_metrics(centroids, pids, cams)

    # the same numbers from a Trainer, with the model and with a validation step of one's own
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.test(model, dataloaders=dm.test_dataloader(), verbose=False)
    found = dict(trainer.callback_metrics)
    from utils.reid_metric import R1_mAP

    cmc, mAP, topk = R1_mAP(dm.num_query, feat_norm=cfg.TEST.FEAT_NORM).compute(embeddings, labels, camids)
    assert abs(found["mAP"] - mAP) < 1e-5, (found, mAP)
    flipped = Flipped(cfg, num_query=dm.num_query, num_classes=dm.num_classes)
    flipped.load_state_dict(model.state_dict())
    trainer.validate(flipped, dataloaders=dm.val_dataloader(), verbose=False)
    mirrored = dict(trainer.callback_metrics)
    assert 0 < mirrored["mAP"] <= 1 and mirrored["mAP"] != found["mAP"]
    print("by hand and by the Trainer: the same mAP")

    # saved whole, as a trace, and from a dictionary that is already loaded
    images = torch.randn(2, 3, 32, 16)
    model.configure_optimizers()
    assert abs(model.lr_scheduler.get_last_lr()[0] - cfg.SOLVER.BASE_LR / cfg.SOLVER.WARMUP_EPOCHS) < 1e-12
    torch.save(model, "model.pt")
    expected = model.eval()(images)
    loaded = torch.load("model.pt", weights_only=False).eval()
    assert torch.equal(loaded(images), expected)
    traced = model.to_torchscript(method="trace", example_inputs=torch.randn(1, 3, 32, 16))
    torch.testing.assert_close(traced(images), expected)
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    other = CTLModel._load_model_state(checkpoint, strict=True, cfg=cfg).eval()
    assert torch.equal(other(images), expected)
    assert BaseModel(cfg, num_classes=3).center_loss_weight == cfg.SOLVER.CENTER_LOSS_WEIGHT
