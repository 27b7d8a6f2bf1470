r"""Periodic checkpoints in a Trainer of one's own, by the callback under its old (misspelt) module name.

Prints:
    kept: model_1\.pth model_3\.pth
"""
import os

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.demos.boring_classes import BoringModel

from callbacks import ModelCheckpointPeriodic as Today
from callbacks.chechpointer_callback import ModelCheckpointPeriodic


class Periodic(ModelCheckpointPeriodic):
    def on_train_end(self, trainer, pl_module):
        super().on_train_end(trainer, pl_module)
        print('last written:', self.best_model_path)


def run(callback, epochs=5, ckpt_path=None):
    trainer = Trainer(max_epochs=epochs, limit_train_batches=2, limit_val_batches=0, accelerator='cpu', devices=1, logger=False,
                      enable_progress_bar=False, enable_model_summary=False, callbacks=[callback, Today()])
    trainer.fit(BoringModel(), ckpt_path=ckpt_path)
    return trainer


dirname = os.path.join(os.getcwd(), 'weights')
try:
    ModelCheckpointPeriodic(dirname, 'model', save_interval=2, n_saved=2, create_dir=False)
except (OSError, ValueError) as error:
    assert 'create_dir' in str(error)
else:
    raise AssertionError('the folder does not exist')

run(Periodic(dirname=dirname, filename_prefix='model', save_interval=2, n_saved=2, create_dir=True))
files = sorted(os.listdir(dirname))
print('kept:', *files)
assert os.listdir('auto_checkpoints') == ['checkpoint_4.pth']
checkpoint = torch.load(os.path.join(dirname, files[-1]))
assert checkpoint['epoch'] == 3 and 'layer.weight' in checkpoint['state_dict']

trainer = run(ModelCheckpointPeriodic(dirname, 'model', 2, 1, False), epochs=6, ckpt_path=os.path.join(dirname, files[-1]))
assert trainer.global_step == 12
assert os.listdir(dirname) == ['model_5.pth']
