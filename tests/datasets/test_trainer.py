"""The loaders under a real Trainer: the epoch's own draws, all of them, and a validation after every epoch."""

from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from datasets import init_dataset
from tests.datasets.conftest import write_folders

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytorch_lightning.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]

EPOCHS = 5


class Recorder(LightningModule):
    """Notes the training batches of each epoch, and the epochs after which it was validated."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {}
        self.validated = []

    def training_step(self, batch, batch_idx):
        images, pids, _, _ = batch
        self.seen.setdefault(self.current_epoch, []).append((pids.tolist(), images.double().sum().item()))
        return self.weight * 0

    def validation_step(self, batch, batch_idx):
        if batch_idx == 0:
            self.validated.append(self.current_epoch)
            self.log("score", 1.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def uneven(tmp_path, make_cfg):
    """A data set whose epochs differ in length, one after the other both ways."""
    train = {pid: [1, 2] * half for pid, half in enumerate([1, 1, 5, 1, 3, 1])}
    write_folders(tmp_path / "market1501", {"train": train, "query": {7: [1]}, "gallery": {7: [2]}})
    return make_cfg(tmp_path)


def fit(cfg, folder, num_workers, epochs=EPOCHS, checkpoint=None, **options):
    module = init_dataset("market1501", cfg=cfg, num_workers=num_workers)
    saver = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, **options)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=epochs,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        callbacks=[saver],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    recorder = Recorder()
    trainer.fit(recorder, datamodule=module, ckpt_path=checkpoint)
    return recorder


def expect(cfg):
    """What the loader yields when it is run by hand."""
    loader: Any = init_dataset("market1501", cfg=cfg, num_workers=0).train_dataloader()
    seen = {}
    for epoch in range(EPOCHS):
        loader.sampler.set_epoch(epoch)
        seen[epoch] = [(pids.tolist(), images.double().sum().item()) for images, pids, _, _ in loader]
    return seen


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_epoch_is_drawn_whole_and_validated(uneven, tmp_path, num_workers):
    expected = expect(uneven)
    lengths = [len(batches) for batches in expected.values()]
    assert max(lengths[1:]) > lengths[0]
    assert min(lengths[1:]) < lengths[0]
    recorder = fit(uneven, tmp_path / "run", num_workers)
    assert recorder.seen == expected
    assert recorder.validated == list(range(EPOCHS))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    "options", [{"save_on_train_epoch_end": True}, {"monitor": "score"}], ids=["end", "validation"]
)
def test_a_resumed_fit_sees_the_batches_of_an_uninterrupted_one(uneven, tmp_path, num_workers, options):
    expected = expect(uneven)
    fit(uneven, tmp_path / "run", 0, epochs=2, **options)
    recorder = fit(uneven, tmp_path / "more", num_workers, checkpoint=tmp_path / "run" / "epoch=1.ckpt", **options)
    assert recorder.seen == {epoch: expected[epoch] for epoch in range(2, EPOCHS)}
    assert recorder.validated[-3:] == [2, 3, 4]
