"""Write the embedding network of a checkpoint as one file: ``python -m inference.export CKPT OUT --format onnx``."""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: the packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config.cli import clean_exit, whole_number
from utils.console import command_parser
from utils.errors import UserError

_DESCRIPTION = """Write the backbone, pooling and BN neck of a checkpoint as one file that runs without this code.

The file is tried on noise, smooth colours and white, and kept only if it agrees with torch: cosine at least 0.99999,
relative error at most 0.0001. Its metadata holds image size, mean, standard deviation, channel order and so on, as JSON
under "preprocessing" (ONNX: metadata_props; the others: the extra file preprocessing.json)."""

_EXAMPLES = """examples:
  python -m inference.export epoch=119.ckpt person.onnx --format onnx --dynamic-batch
  python -m inference.export epoch=119.ckpt person.onnx --format onnx --int8 /data/gallery
  python -m inference.export epoch=119.ckpt person.pt --format torchscript --normalize
  python -m inference.export epoch=119.ckpt person.pt2 --format torch_export --size 320 320"""


def build_parser() -> argparse.ArgumentParser:
    """The command line; imports nothing heavy, so that --help is fast."""
    parser = command_parser("python -m inference.export", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint of this project or of the original")
    parser.add_argument("output", metavar="OUT", help="file to write")
    parser.add_argument("--format", required=True, choices=["onnx", "torchscript", "torch_export"])
    parser.add_argument("--normalize", action="store_true", help="scale embeddings to unit length")
    parser.add_argument(
        "--dynamic-batch",
        action="store_true",
        help="take any number of images at once instead of one; TorchScript always does",
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="size of the images; default: INPUT.SIZE_TEST of the checkpoint",
    )
    parser.add_argument(
        "--calibration",
        default="",
        metavar="FILE",
        help="keep a calibration in the metadata: the calibration.json of python -m evaluation --calibrate isotonic "
        "--output DIR, made of this network's embeddings",
    )
    parser.add_argument(
        "--network",
        default="",
        metavar="PACKAGE.MODULE:NAME",
        help="MODEL.NAME again, if it is code of your own: a file alone does not decide which code is imported",
    )
    parser.add_argument(
        "--int8",
        metavar="FOLDER|LIST",
        help="with --format onnx: compute in int8, calibrated on images like those to be embedded, from a folder and "
        "its subfolders or a text file of paths; implies --dynamic-batch",
    )
    parser.add_argument(
        "--int8-images",
        type=whole_number(4),
        default=200,
        metavar="N",
        help="images for calibration, taken evenly, and a quarter more to measure what int8 costs; default: 200",
    )
    return parser


def export(args: argparse.Namespace) -> dict[str, Any]:
    """Write the file that a command line describes; its metadata, and how it compares with torch."""
    from inference.embedding.exporting import check_output, export_checkpoint

    options = {
        "unit": args.normalize,
        "size": tuple(args.size) if args.size else None,
        "network": args.network,
        "calibration": args.calibration,
    }
    if not args.int8:
        return export_checkpoint(args.checkpoint, args.output, args.format, dynamic_batch=args.dynamic_batch, **options)
    check_output(args.checkpoint, args.output, args.format)
    from inference.embedding.quantising import WARN_BELOW, choose_images, quantise

    images = choose_images(args.int8, args.int8_images)
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / Path(args.output).with_suffix(".onnx").name
        facts = export_checkpoint(args.checkpoint, exported, args.format, dynamic_batch=True, **options)
        told = quantise(exported, args.output, images)["int8"]
    sys.stdout.write(
        f"int8, calibrated on {told['images']} images: cosine to float32 on {told['held_out']} others, mean "
        f"{told['cosine_mean']:.4f}, least {told['cosine_least']:.4f}\n"
    )
    if told["cosine_least"] < WARN_BELOW:
        sys.stderr.write(
            f"warning: a cosine below {WARN_BELOW} costs accuracy; evaluate with this file before you use it, or "
            "calibrate on more images.\n"
        )
    return facts


def main(argv: list[str] | None = None) -> None:
    """Read the command line and export; an error ends the program with status 2 and one line on stderr."""
    args = build_parser().parse_args(argv)
    with clean_exit():
        if args.size and min(args.size) < 32:
            raise UserError(f"--size is {args.size[0]} {args.size[1]}; both must be at least 32.")
        if args.int8 and (args.format != "onnx" or args.calibration):
            what = "--calibration, which is of float32" if args.calibration else f"--format {args.format}"
            raise UserError(f"--int8 does not go with {what}; leave one of them out.")
        facts = export(args)
        height, width = facts["image_size"]
        sys.stdout.write(
            f"{args.output}: {facts['network']}, images {height} x {width}, embeddings of {facts['embedding_size']}; "
            f"against torch: cosine {facts['cosine']:.7f}, relative error {facts['relative_error']:.1e}\n"
        )


if __name__ == "__main__":
    main()
