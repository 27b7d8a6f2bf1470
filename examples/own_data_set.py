"""Train on a data set of your own: read its files, give it a name, and start a run that names it.
Usage: python examples/own_data_set.py FOLDER configs/toy_resnet18_cpu.yml [KEY VALUE ...]"""

import sys
from pathlib import Path

from config.load import load_config
from datasets import register_dataset
from datasets.bases import Annotation, ReidDataModule, Splits
from engine.run import run_main
from train_ctl_model import CTLModel


class NumberedFiles(ReidDataModule):
    """Files such as train/17_2_0005.jpg: identity 17, camera 2, image 5; likewise below query/ and gallery/."""

    def read_splits(self) -> Splits:
        return Splits(self.read_folder("train"), self.read_folder("query"), self.read_folder("gallery"))

    def read_folder(self, name: str) -> list[Annotation]:
        annotations = []
        for path in sorted(Path(self.cfg.DATASETS.ROOT_DIR, name).glob("*.jpg")):
            pid, camid, _ = path.stem.split("_")
            annotations.append((str(path), int(pid), int(camid) - 1))  # cameras count from 0
        return annotations


def main() -> None:
    folder, config_file, *pairs = sys.argv[1:]
    register_dataset("numbered", NumberedFiles)
    cfg = load_config(config_file, ["DATASETS.NAMES", "numbered", "DATASETS.ROOT_DIR", folder, *pairs])
    for metrics in run_main(cfg, CTLModel, "own_data_set"):
        for kind, values in metrics.items():  # "instances": single images; "centroids"
            print(f"{kind}: mAP {values['mAP']:.4f}, Top-1 {values['Top-1']:.4f}")


if __name__ == "__main__":
    main()
