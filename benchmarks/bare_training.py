"""The least that a user would write to train on a Market-1501 folder; bench_startup.py compares its start with ours.

python benchmarks/bare_training.py data/market1501/bounding_box_train
"""

import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

SIZE = (128, 64)


class Images(Dataset[tuple[Tensor, int]]):
    """The images of a folder; the identity stands at the head of a file's name."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.jpg"))
        names = [path.name.split("_")[0] for path in self.paths]
        number = {name: i for i, name in enumerate(sorted(set(names)))}
        self.labels, self.num_classes = [number[name] for name in names], len(number)
        self.transform = transforms.Compose(
            [
                transforms.Resize(SIZE),
                transforms.RandomHorizontalFlip(),
                transforms.Pad(10),
                transforms.RandomCrop(SIZE),
                transforms.ToTensor(),
                transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
                transforms.RandomErasing(),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.open(self.paths[index]).convert("RGB")), self.labels[index]


class Classifier(pl.LightningModule):
    """A ResNet-18 with cross-entropy."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.network = torchvision.models.resnet18(num_classes=num_classes)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3.5e-4)


def main() -> None:
    images = Images(Path(sys.argv[1]))
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1)
    trainer.fit(Classifier(images.num_classes), DataLoader(images, batch_size=32, shuffle=True))


if __name__ == "__main__":
    main()
