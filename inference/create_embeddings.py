"""Embed a folder of images, or one image, with a trained model: embeddings.npy [N, D] float32 and paths.npy [N].

python inference/create_embeddings.py --config_file configs/256_resnet50.yml \
    DATASETS.ROOT_DIR /data/gallery MODEL.PRETRAIN_PATH model.ckpt OUTPUT_DIR gallery
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from yacs.config import CfgNode

from config.cli import build_parser, clean_exit, parse_args
from inference.command_line import add_input_arguments, embedder_from_config
from utils.files import output_folder, require_writable

logger = logging.getLogger(__name__)

EXAMPLES = (
    "DATASETS.ROOT_DIR /data/gallery MODEL.PRETRAIN_PATH model.ckpt OUTPUT_DIR gallery",
    "--images-in-subfolders DATASETS.ROOT_DIR /data/people MODEL.PRETRAIN_PATH model.ckpt MODEL.USE_CENTROIDS True",
    "--append --resume --on-error skip DATASETS.ROOT_DIR /data/new MODEL.PRETRAIN_PATH model.ckpt OUTPUT_DIR gallery",
)


def parser() -> argparse.ArgumentParser:
    """The options of this script."""
    options = build_parser("Embed a folder of images, or one image, with a trained model.", EXAMPLES)
    add_input_arguments(options)
    options.add_argument(
        "--pid-from",
        "--pid_from",
        default="parent",
        metavar="parent|filename|REGEX",
        help="with MODEL.USE_CENTROIDS True, where to find the identity of an image: in the name of its folder (the "
        "default), in its file name up to the last '_', or with a regular expression in the path below "
        "DATASETS.ROOT_DIR, such as '([-\\d]+)_c\\d', whose first group is the identity",
    )
    options.add_argument(
        "--resume", action="store_true", help="continue an interrupted run after its last finished batch"
    )
    options.add_argument(
        "--append",
        action="store_true",
        help="add the images that the gallery in OUTPUT_DIR lacks, at its end; rows of deleted files stay",
    )
    options.add_argument(
        "--on-error",
        "--on_error",
        choices=("stop", "skip"),
        default="stop",
        help="when an image cannot be read: stop (the default), or skip it and list it in skipped.txt",
    )
    return options


def run(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Create the gallery that a command line describes.

    Raises:
        UserError: see :func:`inference.galleries.creation.create_gallery`.
    """
    if args.pid_from != "parent" and not cfg.MODEL.USE_CENTROIDS:
        logger.warning("--pid-from has no effect: with MODEL.USE_CENTROIDS False every image has a row of its own.")
    folder = require_writable(output_folder(cfg.OUTPUT_DIR, cfg.DATASETS.NAMES), "OUTPUT_DIR")
    from inference.galleries.creation import ImageSource, create_gallery

    created = create_gallery(
        embedder_from_config(cfg),
        ImageSource(
            cfg.DATASETS.ROOT_DIR, args.images_in_subfolders, args.pid_from if cfg.MODEL.USE_CENTROIDS else None
        ),
        folder,
        resume=args.resume,
        append=args.append,
        on_error=args.on_error,
        print_freq=args.print_freq,
        progress=cfg.TRAINER.PROGRESS_BAR,
    )
    what = "identities" if cfg.MODEL.USE_CENTROIDS else "images"
    skipped = f", {len(created.skipped)} skipped (skipped.txt)" if created.skipped else ""
    logger.info("%s: %d %s, %d images embedded now%s", folder, created.count, what, created.embedded, skipped)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and run; an error that the user can fix ends the program with status 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with clean_exit():
        run(*parse_args(parser(), argv))


if __name__ == "__main__":
    main()
