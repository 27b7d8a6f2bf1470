"""Train a ResNet-18 with the triplet loss and the centroid triplet loss in a plain PyTorch loop, without Lightning.
Usage: python scripts/make_toy_dataset.py data/toy, then python examples/train_own_loop.py data/toy --epochs 5"""

import argparse

import torch
from torchvision.models import resnet18

from config.load import load_config
from datasets import init_dataset
from losses.centroid_triplet_loss import CentroidTripletLoss
from losses.triplet_loss import TripletLoss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", help="folder that holds market1501/")
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    pairs = ["DATASETS.ROOT_DIR", args.root, "INPUT.SIZE_TRAIN", [64, 32], "SOLVER.IMS_PER_BATCH", 4]
    loader = init_dataset("market1501", cfg=load_config(opts=pairs), num_workers=0).train_dataloader()
    network = resnet18(num_classes=128)  # its last layer gives the embedding
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-4)
    triplet, centroid_triplet = TripletLoss(margin=0.5), CentroidTripletLoss(margin=0.5)
    for epoch in range(args.epochs):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # other draws in every epoch
        losses = []
        for images, pids, _, is_real in loader:  # [P*K, 3, H, W]; P*K each
            embeddings = network(images)  # [P*K, D]
            loss = triplet(embeddings, pids, mask=is_real)[0] + centroid_triplet(embeddings, pids, is_real).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: mean loss {sum(losses) / len(losses):.4f}")


if __name__ == "__main__":
    main()
