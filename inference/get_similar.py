"""Find the images of a gallery that are most similar to the query images.

python inference/get_similar.py --gallery_data gallery --config_file configs/256_resnet50.yml \
    DATASETS.ROOT_DIR /data/queries MODEL.PRETRAIN_PATH model.ckpt OUTPUT_DIR similar
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # run as a file: the packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from yacs.config import CfgNode

from config.cli import build_parser, clean_exit, parse_args, whole_number
from inference.command_line import add_input_arguments, embedder_from_config
from inference.searching.search import add_arguments, formats_from_args, options_from_args, search, write_results
from utils.errors import UserError
from utils.files import output_folder, require_writable, written_whole
from utils.launched import find_launcher

if TYPE_CHECKING:
    from evaluation.calibration import Calibration
    from inference.galleries.gallery import Gallery
    from inference.searching.exact import Found
    from inference.searching.exclusion import Exclusion

logger = logging.getLogger(__name__)

EXAMPLES = (
    "--gallery_data gallery DATASETS.ROOT_DIR /data/queries MODEL.PRETRAIN_PATH model.ckpt OUTPUT_DIR similar",
    "--gallery_data data --exclude-self --other-cameras --camid-from '_c(\\d+)' DATASETS.ROOT_DIR data "
    "MODEL.PRETRAIN_PATH m.ckpt",
    "--gallery_data gallery --topk 10 --normalize_features --html DATASETS.ROOT_DIR a.jpg MODEL.PRETRAIN_PATH m.ckpt",
    "--gallery_data gallery --min-probability 0.9 --calibration results/calibration.json DATASETS.ROOT_DIR a.jpg "
    "MODEL.PRETRAIN_PATH m.ckpt",
)


def parser() -> argparse.ArgumentParser:
    """The options of this script."""
    options = build_parser(
        "Find the gallery images most similar to a folder of query images, or to one.",
        EXAMPLES,
        "python inference/get_similar.py",
    )
    options.add_argument(
        "--gallery_data",
        "--gallery-data",
        required=True,
        metavar="DIR",
        help="folder that create_embeddings.py wrote to",
    )
    options.add_argument(
        "--normalize_features",
        "--normalize-features",
        action="store_true",
        help="scale embeddings to unit length before distances are computed",
    )
    options.add_argument(
        "--topk", type=whole_number(0), default=100, metavar="K", help="results for each query; 0: all"
    )
    options.add_argument(
        "--exclude-self",
        action="store_true",
        help="leave out the query itself: files of its path or of its content; the next results take their places",
    )
    options.add_argument(
        "--other-cameras",
        action="store_true",
        help="leave out results from the query's own camera, which --camid-from finds; the next take their places",
    )
    options.add_argument(
        "--camid-from",
        metavar="REGEX|TABLE",
        help="where to find the camera of queries and gallery images: with a regular expression in the path below "
        "their folder, such as '_c(\\d+)', whose first group is the camera; or in the columns path and camid of a CSV "
        "or Parquet file, whose relative paths start from its own folder",
    )
    add_input_arguments(options)
    add_arguments(options)
    return options


def run(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Search the gallery that a command line names; several processes share out the exact search.

    Raises:
        UserError: as for :func:`search_alone`; or a process is gone, or finds another gallery.
    """
    if find_launcher() is None:
        search_alone(args, cfg)
        return
    from inference.galleries.gallery import read_gallery
    from inference.searching.sharing import Leader, follow, launched_processes

    with launched_processes() as processes:
        if processes is None:
            search_alone(args, cfg)
        elif processes.rank:
            follow(lambda: read_gallery(args.gallery_data, unfinished=True).embeddings)
        else:
            logger.info("%d processes share the exact search.", processes.count)
            with Leader() as exactly:
                search_alone(args, cfg, exactly)


def search_alone(args: argparse.Namespace, cfg: CfgNode, exactly: "Callable[..., Found] | None" = None) -> None:
    """Embed the queries, search, and write the results.

    Args:
        args, cfg: the command line.
        exactly: the exact search, as :func:`inference.searching.search.search` takes it.

    Raises:
        UserError: the gallery does not exist or does not fit the model, a query cannot be read (the message names it),
            or --max-far or --min-probability finds no threshold; and as for :func:`inference.searching.search.search`.
    """
    use_calibration_of_gallery(args)
    options = options_from_args(args, cfg.SOLVER.DISTANCE_FUNC, args.topk, args.normalize_features)
    folder = require_writable(output_folder(cfg.OUTPUT_DIR, cfg.DATASETS.NAMES), "OUTPUT_DIR")
    from inference.galleries.gallery import EMBEDDINGS, check_comparable, read_gallery

    gallery = read_gallery(args.gallery_data, unfinished=True)
    if gallery.unfinished:
        logger.info("The gallery is not finished: searching its first %d images.", len(gallery.paths))
    exclusion = read_exclusion(args, cfg, gallery)
    embedder = embedder_from_config(cfg, ("SOLVER.DISTANCE_FUNC",), engine=args.engine)
    check_comparable(gallery, embedder.identity, args.gallery_data)
    if options.calibration is not None:
        check_calibration(options.calibration, gallery, embedder.identity, args)
    queries, paths = embedder.embed_folder(
        cfg.DATASETS.ROOT_DIR, args.images_in_subfolders, print_freq=args.print_freq, progress=cfg.TRAINER.PROGRESS_BAR
    )
    found = search(
        queries,
        gallery.embeddings,
        options,
        gallery_file=Path(args.gallery_data) / EMBEDDINGS,
        gallery_paths=gallery.paths,
        exclusion=exclusion,
        exactly=exactly,
    )
    for line in filter(None, (found.note, found.left_out)):
        logger.info(line)
    save_array(folder / "query_embeddings.npy", queries)
    save_array(folder / "query_paths.npy", paths)
    calibration = options.calibration
    probabilities = None if calibration is None else calibration.probability(found.distances)
    results = (paths, gallery.paths, found.indices, found.distances, probabilities)
    files = write_results(folder, formats_from_args(args), *results)
    note = _note_of_sheet(*found.indices.shape) if args.html else ""
    logger.info("%d queries against %d: %s%s", len(paths), len(gallery.paths), ", ".join(map(str, files)), note)


def use_calibration_of_gallery(args: argparse.Namespace) -> None:
    """Let --min-probability use calibration.json in the folder of the gallery, unless --calibration names another."""
    if args.min_probability is None or args.calibration is not None:
        return
    from evaluation.calibration import CALIBRATION_FILE

    file = Path(args.gallery_data) / CALIBRATION_FILE
    args.calibration = str(file) if file.is_file() else None


def check_calibration(
    calibration: "Calibration", gallery: "Gallery", embedder: dict[str, Any], args: argparse.Namespace
) -> None:
    """Raise a UserError if a calibration is of other distances than those of the search.

    Args:
        calibration: that of ``args.calibration``.
        gallery: that of ``args.gallery_data``.
        embedder: ``Embedder.identity`` of the queries.
        args: the command line.
    """
    if gallery.of_centroids:
        raise UserError(
            f"the calibration in {args.calibration} is of pairs of images, but {args.gallery_data} holds centroids of "
            "identities; create it with MODEL.USE_CENTROIDS False."
        )
    calibration.check_network(embedder, args.calibration)
    if not calibration.network:
        logger.info("%s does not say of which network it is; it must be that of the queries.", args.calibration)


def _note_of_sheet(queries: int, results: int) -> str:
    """What the contact sheet leaves out, which the other formats hold; "" for nothing."""
    from inference.results.contact_sheet import MAX_QUERIES, MAX_RESULTS

    if queries <= MAX_QUERIES and results <= MAX_RESULTS:
        return ""
    shown = min(queries, MAX_QUERIES), min(results, MAX_RESULTS)
    return f" (shows {shown[0]} of {queries} queries, with {shown[1]} of {results} results each)"


def read_exclusion(args: argparse.Namespace, cfg: CfgNode, gallery: "Gallery") -> "Exclusion | None":
    """What --exclude-self and --other-cameras leave out of the results; None for nothing.

    Raises:
        UserError: an option lacks the other that it needs, the gallery holds centroids, or an image has no camera.
    """
    if args.other_cameras != (args.camid_from is not None):
        raise UserError("--other-cameras and --camid-from need each other: the second tells the camera of an image.")
    if not args.exclude_self and not args.other_cameras:
        return None
    if gallery.holds != "images":
        option = "--exclude-self" if args.exclude_self else "--other-cameras"
        way_out = "with MODEL.USE_CENTROIDS False" if gallery.of_centroids else "without --group"
        raise UserError(
            f"{option} needs a gallery of images, but {args.gallery_data} holds {gallery.holds}; create it {way_out}."
        )
    from inference.embedding.images import find_images
    from inference.galleries.identities import camera_function
    from inference.searching.exclusion import Exclusion

    # The embedder lists them again, and warns of what is passed over.
    queries = find_images(cfg.DATASETS.ROOT_DIR, args.images_in_subfolders, warns=False)
    cameras = None
    if args.other_cameras:
        of_query = camera_function(args.camid_from, cfg.DATASETS.ROOT_DIR)
        of_image = camera_function(args.camid_from, gallery.about.get("root", ""))
        cameras = [of_query(path) for path in queries], [of_image(str(path)) for path in gallery.paths]
    return Exclusion(queries, gallery.paths, itself=args.exclude_self, cameras=cameras)


def save_array(path: Path, values: Any) -> None:
    """Write a .npy file, whole or not at all."""
    import numpy as np

    with written_whole(path, keep_ending=True) as temporary:
        np.save(temporary, np.asarray(values), allow_pickle=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and run; an error that the user can fix ends the program with status 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with clean_exit():
        run(*parse_args(parser(), argv))


if __name__ == "__main__":
    main()
