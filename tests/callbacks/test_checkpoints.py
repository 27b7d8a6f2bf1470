import torch
from pytorch_lightning import Trainer
from pytorch_lightning.demos.boring_classes import BoringModel

from callbacks import ModelCheckpointBest


class Scored(BoringModel):
    def validation_step(self, batch, batch_idx):
        self.log("mAP", 0.5)


def test_an_epoch_that_is_done_again_writes_its_file_anew_under_the_same_name(tmp_path):
    weights = []
    for _ in range(2):  # the second run starts over, as after an interruption, with what the first left in the folder
        model = Scored()
        Trainer(
            default_root_dir=tmp_path,
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            limit_train_batches=1,
            limit_val_batches=1,
            num_sanity_val_steps=0,
            logger=False,
            callbacks=[ModelCheckpointBest("mAP", "max", 1)],
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(model)
        (path,) = tmp_path.glob("**/*.ckpt")
        assert path.name == "epoch=0.ckpt"
        written = torch.load(path, weights_only=True)["state_dict"]["layer.weight"]
        assert torch.equal(written, model.layer.weight)
        weights.append(written)
    assert not torch.equal(*weights)
