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

from config.cli import build_parser, clean_exit, parse_args, whole_number
from config.flatten import flatten_config
from config.origins import COMMAND_LINE, strength
from inference.command_line import (
    KEYS_OF_GALLERIES,
    KEYS_OF_SETS,
    add_input_arguments,
    devices_of_children,
    embedder_from_config,
)
from inference.galleries.team import errors_to_parent, find_team, follow_parent, run_children, said_by_first
from utils.errors import UserError
from utils.files import output_folder, require_writable
from utils.locks import lock

if TYPE_CHECKING:
    from inference.galleries.grouping import Grouping
    from inference.galleries.sources import Source

logger = logging.getLogger(__name__)

EXAMPLES = (
    "DATASETS.ROOT_DIR /data/gallery MODEL.PRETRAIN_PATH model.ckpt OUTPUT_DIR gallery",
    "--images-in-subfolders DATASETS.ROOT_DIR /data/people MODEL.PRETRAIN_PATH model.ckpt MODEL.USE_CENTROIDS True",
    "--csv data.csv --split gallery MODEL.PRETRAIN_PATH model.ckpt OUTPUT_DIR gallery",
    "--from 'shards/{00000..00012}.tar' --on-error skip MODEL.PRETRAIN_PATH model.ckpt OUTPUT_DIR gallery",
    "--group folder --images-in-subfolders DATASETS.ROOT_DIR /data/tracklets MODEL.PRETRAIN_PATH model.ckpt",
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
    _add_source_arguments(options)
    options.add_argument(
        "--pid-from",
        "--pid_from",
        default="parent",
        metavar="parent|filename|REGEX",
        help="with MODEL.USE_CENTROIDS True, where to find the identity of an image: in the name of its folder (the "
        "default), in its file name up to the last '_', or with a regular expression in the path below "
        "DATASETS.ROOT_DIR, such as '([-\\d]+)_c\\d', whose first group is the identity",
    )
    _add_group_arguments(options)
    _add_run_arguments(options)
    return options


def _add_source_arguments(options: argparse.ArgumentParser) -> None:
    """Add --from and --label-fields."""
    options.add_argument(
        "--from",
        dest="source",
        metavar="SOURCE",
        help="embed the images of a list (.txt, a path a line), a table (.csv, .parquet; column path), tar files "
        "('shards/{00000..00012}.tar', 'shards/*.tar', a folder), or any of these behind a URL (s3://...), instead of "
        "DATASETS.ROOT_DIR",
    )
    options.add_argument(
        "--label-fields",
        "--label_fields",
        type=label_fields,
        metavar="PID[,CAMID]",
        help="with --from: the columns of the table, or the fields of the tar files' .json members, that hold "
        "identities and cameras; default: pid and camid, where they exist",
    )


def label_fields(text: str) -> list[str]:
    """The fields that --label-fields names: one, or two that differ."""
    fields = [field.strip() for field in text.split(",")]
    if len(fields) > 2 or not all(fields) or len(set(fields)) < len(fields):
        raise argparse.ArgumentTypeError(f"{text!r} is not PID or PID,CAMID: the name of one field, or of two.")
    return fields


def _add_run_arguments(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "--resume",
        action="store_true",
        help="continue an interrupted run after its last finished chunk, or take part in a run of other processes",
    )
    options.add_argument(
        "--append",
        action="store_true",
        help="add the images that the gallery in OUTPUT_DIR lacks, at its end; rows of deleted files stay",
    )
    options.add_argument(
        "--replace",
        action="store_true",
        help="as --append, but embed images again that the gallery has, whose new embeddings take their places",
    )
    options.add_argument(
        "--on-error",
        "--on_error",
        choices=("stop", "skip"),
        default="stop",
        help="when an image cannot be read: stop (the default), or skip it and list it in skipped.txt",
    )
    options.add_argument(
        "--chunk-size",
        "--chunk_size",
        type=whole_number(1),
        metavar="N",
        default=1024,
        help="images that a process claims at a time; a killed one loses two such chunks at most; default: 1024",
    )


def _add_group_arguments(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "--group",
        metavar="folder|csv:COLUMN",
        help="a row for each group of images, such as a tracklet, instead of each image: those in one folder, or those "
        "with one value in this column of the table (--csv); the gallery of images stays in OUTPUT_DIR/images",
    )
    options.add_argument(
        "--aggregate",
        choices=("mean", "medoid", "robust"),
        default="mean",
        help="with --group, what a row is: the mean of its images (the default), the image in their middle, or the "
        "mean without outliers",
    )


def run(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Create the gallery that a command line describes.

    Raises:
        UserError: see :func:`inference.galleries.creation.create_gallery`.
    """
    if args.pid_from != "parent" and not cfg.MODEL.USE_CENTROIDS:
        logger.warning("--pid-from has no effect: with MODEL.USE_CENTROIDS False every image has a row of its own.")
    if args.label_fields and not args.source:
        raise UserError("--label-fields needs --from: it names columns or fields of that source.")
    for option in ("split", "csv", "images_in_subfolders"):
        if args.source and getattr(args, option):
            name = option.replace("_", "-")
            raise UserError(f"--from and --{name} exclude each other: both say which images to embed.")
    if args.aggregate != "mean" and not args.group:
        logger.warning("--aggregate has no effect without --group.")
    if args.csv or args.split:
        cfg = data_set_config(args, cfg)
    # Query and gallery of a data set need folders of their own.
    default = f"{cfg.DATASETS.NAMES}/{args.split}" if args.split else cfg.DATASETS.NAMES
    folder = require_writable(output_folder(cfg.OUTPUT_DIR, default), "OUTPUT_DIR")
    from inference.galleries.creation import GalleryOptions, create_gallery

    team = find_team()
    with said_by_first(team, logging.ERROR):
        used = (*KEYS_OF_GALLERIES, *(KEYS_OF_SETS if args.split else ()))
        embedder = embedder_from_config(cfg, used=used, engine=args.engine, team=team)
        source = image_source(args, cfg)
        grouping = find_grouping(args, cfg, source)
    images = folder / "images" if grouping else folder
    options = GalleryOptions(
        resume=args.resume,
        append=args.append,
        replace=args.replace,
        on_error=args.on_error,
        pid_from=args.pid_from if cfg.MODEL.USE_CENTROIDS else None,
        print_freq=args.print_freq,
        progress=cfg.TRAINER.PROGRESS_BAR,
        dtype=cfg.GALLERY.DTYPE,
        rows_per_file=cfg.GALLERY.ROWS_PER_FILE,
        team=team,
    )
    with said_by_first(team, logging.WARNING):
        created = create_gallery(embedder, source, images, options)
    if not created.by_another:
        what = "identities" if cfg.MODEL.USE_CENTROIDS else "images"
        skipped = f", {len(created.skipped)} skipped (skipped.txt)" if created.skipped else ""
        logger.info("%s: %d %s, %d images embedded now%s", images, created.count, what, created.embedded, skipped)
    if grouping:
        from inference.galleries.grouping import group_gallery, is_grouped

        with lock(folder / "groups.lock"):  # whoever made the gallery of images may have died since
            if not (created.by_another and is_grouped(images, folder)):
                count = group_gallery(images, folder, grouping)
                logger.info("%s: %d groups (%s of each)", folder, count, args.aggregate)


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


def named_source(args: argparse.Namespace, cfg: CfgNode) -> "Source":
    """The images that --from names.

    Raises:
        UserError: they cannot be listed.
    """
    if strength(cfg, "DATASETS.ROOT_DIR") == COMMAND_LINE:
        logger.warning("DATASETS.ROOT_DIR has no effect: --from %s names the images.", args.source)
    from inference.galleries.opening import open_source

    source = open_source(args.source, args.label_fields, args.chunk_size)
    if source.labelled and cfg.MODEL.USE_CENTROIDS:
        unused = "; --pid-from has no effect" if args.pid_from != "parent" else ""
        logger.info("The identities are those that the labels of %s tell%s.", args.source, unused)
    return source


def image_source(args: argparse.Namespace, cfg: CfgNode) -> "Source":
    """The images that a command line names.

    Raises:
        UserError: they cannot be listed, or there are none.
    """
    from inference.galleries.sources import folder_source, labelled_source

    if args.source:
        return named_source(args, cfg)
    root = cfg.DATASETS.ROOT_DIR
    if not args.split:
        return folder_source(root, args.images_in_subfolders, args.chunk_size)
    from datasets import init_dataset
    from datasets.notes import say
    from inference.galleries.labels import read_subset

    images = read_subset(init_dataset(cfg.DATASETS.NAMES, cfg=cfg), args.split)
    say(images.notes, logger)
    logger.info("%s, %s: %d images", images.source["data_set"], args.split, len(images.paths))
    return labelled_source(root, images, args.chunk_size)


def find_grouping(args: argparse.Namespace, cfg: CfgNode, source: "Source") -> "Grouping | None":
    """The groups that --group asks for, whose labels are checked where they are known; None without --group.

    Raises:
        UserError: an option or key contradicts it, the table lacks its column, or a group has two identities.
    """
    if not args.group:
        return None
    from inference.galleries.grouping import BY_COLUMN, Grouping, column_function, folder_function, number_groups
    from inference.galleries.sources import FileList

    column = args.group.removeprefix(BY_COLUMN)
    if args.group != "folder" and column in ("", args.group):
        raise UserError(f"--group is {args.group!r}; expected folder, or csv: and the name of a column.")
    if cfg.MODEL.USE_CENTROIDS:
        raise UserError("--group and MODEL.USE_CENTROIDS True exclude each other: both say what a row is.")
    if args.append:
        raise UserError(
            "--append adds images, but rows with --group are of groups, whose images may be new and old: leave out "
            "--append to embed all images. --resume keeps what an interrupted run embedded."
        )
    if args.group == "folder":
        name_of = folder_function(cfg.DATASETS.ROOT_DIR)
    elif args.split and cfg.DATASETS.NAMES == "csv":
        from datasets.readers.table import OwnTable

        name_of = column_function(cfg.DATASETS.CSV_PATH, column, args.split, OwnTable(cfg).image_folder())
    else:
        raise UserError(f"--group {args.group} needs --csv and --split: the table that has this column.")
    grouping = Grouping(args.group, args.aggregate, name_of)
    if isinstance(source, FileList) and source.labels:
        number_groups(zip(source.paths, source.labels, strict=True), grouping)
    return grouping


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and run; an error that the user can fix ends the program with status 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    follow_parent()
    with clean_exit(), errors_to_parent():
        args, cfg = parse_args(parser(), argv)
        if devices := devices_of_children(cfg):
            run_children([sys.executable, __file__, *(sys.argv[1:] if argv is None else argv)], devices)
        else:
            run(args, cfg)


if __name__ == "__main__":
    main()
