"""Follow drawn people through frames by their embeddings: one call for the crops of a frame, with its milliseconds.
Usage: python examples/tracker.py model.ckpt --frames 20 --people 30"""

import argparse
import time

import numpy as np

from inference import Embedder


def detect(frame: int, looks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stands for a detector: crops [N, H, W, 3] as cv2 has them (blue, green, red), and who each is."""
    who = np.random.default_rng(frame).permutation(len(looks))
    crops = looks[who].repeat(16, axis=1).repeat(16, axis=2)  # [N, 128, 64, 3]
    return (crops + np.random.default_rng(frame).integers(-20, 21, crops.shape)).clip(0, 255).astype(np.uint8), who


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="written by train_ctl_model.py or train_base_model.py")
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--people", type=int, default=30, help="in each frame")
    args = parser.parse_args()
    embedder = Embedder.from_checkpoint(args.checkpoint, batch_size=args.people)
    crops, owner = detect(0, looks := np.random.default_rng(0).integers(0, 256, (args.people, 8, 4, 3)))
    means, right = embedder.embed(crops[..., ::-1]), 0  # a track for each crop of the first frame; red comes first
    for frame in range(1, args.frames + 1):
        crops, who = detect(frame, looks)
        start = time.perf_counter()
        rows = embedder.embed(crops[..., ::-1])  # [N, D]
        nearest = (rows @ (means.T / np.linalg.norm(means, axis=1))).argmax(1)  # [N] by cosine distance
        np.add.at(means, nearest, (rows - means[nearest]) / (frame + 1))
        print(f"frame {frame}: {1e3 * (time.perf_counter() - start):.1f} ms for {len(crops)} crops")
        right += int((owner[nearest] == who).sum())
    print(f"{right} of {args.frames * args.people} crops went to the track of the same person")


if __name__ == "__main__":
    main()
