# mypy: ignore-errors
"""A program as people wrote them around the original: its own file elsewhere, the code base put on sys.path.

legacy_program.py ROOT CHECKPOINT OUTPUT IMAGE... [--patch-load] [--patch-hparams] [--no-cfg] [--utils]
"""

import sys

FLAGS = [argument for argument in sys.argv[1:] if argument.startswith("--")]
ROOT, CHECKPOINT, OUTPUT, *IMAGES = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
# A program that lies in inference/ has that folder on the path, and not the root.
sys.path.append(ROOT + "/inference" if "--utils" in FLAGS else ROOT)

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

if "--patch-load" in FLAGS:  # against "Weights only load failed", as forums advise
    original_load = torch.load

    def patched_load(*args, **kwargs):
        kwargs["weights_only"] = False
        return original_load(*args, **kwargs)

    torch.load = patched_load

if "--patch-hparams" in FLAGS:  # against "can't set attribute 'hparams'", likewise
    import pytorch_lightning as pl

    def get_hparams(self):
        return self.__dict__.get("kept_hparams")

    def set_hparams(self, value):
        self.__dict__["kept_hparams"] = value

    pl.LightningModule.hparams = property(get_hparams, set_hparams)

if "--utils" in FLAGS:
    from inference_utils import ImageDataset, _inference, make_inference_data_loader, run_inference

from config import cfg  # noqa: E402
from datasets.transforms import ReidTransforms  # noqa: E402
from train_ctl_model import CTLModel  # noqa: E402
from utils.reid_metric import get_dist_func  # noqa: E402

cfg.merge_from_file(ROOT + "/configs/256_resnet50.yml")
cfg.merge_from_list(
    [
        *("MODEL.PRETRAIN_PATH", CHECKPOINT),
        *("MODEL.PRETRAINED", True),
        *("TEST.ONLY_TEST", True),
        *("MODEL.RESUME_TRAINING", False),
    ]
)
cfg.freeze()
model = (
    CTLModel.load_from_checkpoint(CHECKPOINT)
    if "--no-cfg" in FLAGS
    else CTLModel.load_from_checkpoint(CHECKPOINT, cfg=cfg)
)
model.eval()
assert model.hparams.MODEL.NAME == "resnet50"

transform = ReidTransforms(cfg).build_transforms(is_train=False)
pictures = [Image.fromarray(cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)) for path in IMAGES]
x = torch.stack([transform(picture) for picture in pictures])
with torch.no_grad():
    _, f = model.backbone(x)
    f = model.bn(f)
np.save(OUTPUT, f.cpu().numpy())
np.save(OUTPUT.replace(".npy", "_distances.npy"), get_dist_func("cosine")(f, f).numpy())

if "--utils" in FLAGS:
    loader = make_inference_data_loader(cfg, IMAGES[0], ImageDataset)
    embeddings, paths = run_inference(model, loader, cfg, 10, use_cuda=False)
    assert list(paths) == IMAGES[:1], paths
    features, _ = _inference(model, next(iter(loader)), False)
    assert np.allclose(embeddings, f[:1], rtol=1e-3, atol=1e-3)
    assert np.allclose(features, f[:1], rtol=1e-3, atol=1e-3)
print("done")
