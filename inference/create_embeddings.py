"""Embed a folder of images, one image, or a data set's images: embeddings.npy [N, D] float32 and paths.npy [N].

python inference/create_embeddings.py --config_file configs/256_resnet50.yml \
    DATASETS.ROOT_DIR /data/gallery MODEL.PRETRAIN_PATH model.ckpt OUTPUT_DIR gallery
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a file: the packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from yacs.config import CfgNode

from config.cli import build_parser, clean_exit, parse_args
from config.flatten import flatten_config
from config.origins import COMMAND_LINE, strength
from inference.command_line import KEYS_OF_SETS, add_input_arguments, embedder_from_config
from utils.errors import UserError
from utils.files import output_folder, require_writable

if TYPE_CHECKING:
    from inference.galleries.creation import ImageSource

logger = logging.getLogger(__name__)

EXAMPLES = (
    "DATASETS.ROOT_DIR /data/gallery MODEL.PRETRAIN_PATH model.ckpt OUTPUT_DIR gallery",
    "--images-in-subfolders DATASETS.ROOT_DIR /data/people MODEL.PRETRAIN_PATH model.ckpt MODEL.USE_CENTROIDS True",
    "--csv data.csv --split gallery MODEL.PRETRAIN_PATH model.ckpt OUTPUT_DIR gallery",
    "--append --resume --on-error skip DATASETS.ROOT_DIR /data/new MODEL.PRETRAIN_PATH model.ckpt OUTPUT_DIR gallery",
)


def parser() -> argparse.ArgumentParser:
    """The options of this script."""
    options = build_parser(
        "Embed a folder of images, one image, or images of a data set, with a trained model.",
        EXAMPLES,
        "python inference/create_embeddings.py",
    )
    add_input_arguments(options)
    options.add_argument(
        "--split",
        choices=("train", "query", "gallery"),
        help="embed these images of the data set DATASETS.NAMES, and write their identities to pids.npy and their "
        "cameras, if it has any, to camids.npy",
    )
    options.add_argument(
        "--csv",
        metavar="TABLE",
        help="with --split: the table of the data set, as DATASETS.CSV_PATH names it",
    )
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
    if args.csv or args.split:
        cfg = data_set_config(args, cfg)
    # Query and gallery of a data set need folders of their own.
    default = f"{cfg.DATASETS.NAMES}/{args.split}" if args.split else cfg.DATASETS.NAMES
    folder = require_writable(output_folder(cfg.OUTPUT_DIR, default), "OUTPUT_DIR")
    from inference.galleries.creation import create_gallery

    source = image_source(args, cfg)
    created = create_gallery(
        embedder_from_config(cfg, used=KEYS_OF_SETS if args.split else (), engine=args.engine),
        source,
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


def data_set_config(args: argparse.Namespace, cfg: CfgNode) -> CfgNode:
    """The configuration whose data set --csv and --split name.

    Raises:
        UserError: an option or key contradicts them.
    """
    if not args.split:
        raise UserError("--csv needs --split: which images of the table to embed (train, query or gallery).")
    if args.images_in_subfolders:
        raise UserError("--images-in-subfolders and --split exclude each other: the data set names its images.")
    if cfg.MODEL.USE_CENTROIDS:
        raise UserError(
            "--split gives every image a row of its own, but MODEL.USE_CENTROIDS is True; set it False. "
            "python -m evaluation --protocol strict averages the embeddings of an identity itself."
        )
    cfg = cfg.clone()
    cfg.defrost()
    if args.csv:
        for key, value in (("DATASETS.NAMES", "csv"), ("DATASETS.CSV_PATH", args.csv)):
            found = flatten_config(cfg)[key]
            if strength(cfg, key) == COMMAND_LINE and found != value:
                raise UserError(f"--csv {args.csv} and {key} {found} name two data sets; give one of them.")
        cfg.DATASETS.NAMES, cfg.DATASETS.CSV_PATH = "csv", args.csv
    cfg.TEST.ONLY_TEST = args.split != "train"  # training images may be missing
    return cfg


def image_source(args: argparse.Namespace, cfg: CfgNode) -> "ImageSource":
    """The images that a command line names.

    Raises:
        UserError: the data set cannot be read, or lacks such images.
    """
    from inference.galleries.creation import ImageSource

    root, pid_from = cfg.DATASETS.ROOT_DIR, args.pid_from if cfg.MODEL.USE_CENTROIDS else None
    if not args.split:
        return ImageSource(root, args.images_in_subfolders, pid_from)
    from datasets import init_dataset
    from datasets.notes import say
    from inference.galleries.labels import read_subset

    images = read_subset(init_dataset(cfg.DATASETS.NAMES, cfg=cfg), args.split)
    say(images.notes, logger)
    logger.info("%s, %s: %d images", images.source["data_set"], args.split, len(images.paths))
    return ImageSource(root, labelled=images)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and run; an error that the user can fix ends the program with status 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with clean_exit():
        run(*parse_args(parser(), argv))


if __name__ == "__main__":
    main()
