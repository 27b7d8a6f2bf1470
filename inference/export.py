"""Write the embedding network of a checkpoint as one file: ``python -m inference.export CKPT OUT --format onnx``."""

import argparse
import sys

from config.cli import clean_exit
from utils.console import command_parser
from utils.errors import UserError

_DESCRIPTION = """Write the backbone, pooling and BN neck of a checkpoint as one file that runs without this code.

The file is tried on noise, smooth colours and white, and kept only if it agrees with torch: cosine at least 0.99999,
relative error at most 0.0001. Its metadata holds image size, mean, standard deviation, channel order and so on, as JSON
under "preprocessing" (ONNX: metadata_props; the others: the extra file preprocessing.json)."""

_EXAMPLES = """examples:
  python -m inference.export epoch=119.ckpt person.onnx --format onnx --dynamic-batch
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
    return parser


def main(argv: list[str] | None = None) -> None:
    """Read the command line and export; an error ends the program with status 2 and one line on stderr."""
    args = build_parser().parse_args(argv)
    with clean_exit():
        if args.size and min(args.size) < 32:
            raise UserError(f"--size is {args.size[0]} {args.size[1]}; both must be at least 32.")
        from inference.embedding.exporting import export_checkpoint

        facts = export_checkpoint(
            args.checkpoint,
            args.output,
            args.format,
            unit=args.normalize,
            dynamic_batch=args.dynamic_batch,
            size=tuple(args.size) if args.size else None,
            network=args.network,
            calibration=args.calibration,
        )
        height, width = facts["image_size"]
        sys.stdout.write(
            f"{args.output}: {facts['network']}, images {height} x {width}, embeddings of {facts['embedding_size']}; "
            f"against torch: cosine {facts['cosine']:.7f}, relative error {facts['relative_error']:.1e}\n"
        )


if __name__ == "__main__":
    main()
