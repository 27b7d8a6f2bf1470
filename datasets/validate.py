"""Check a data set before training on it: ``python -m datasets.validate --config_file FILE KEY VALUE ...``."""

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yacs.config import CfgNode

from config.cli import build_parser, clean_exit, parse_args, whole_number
from config.origins import naming_the_default_folder
from config.switches import find_unused
from datasets import init_dataset
from utils.devices import count_workers
from utils.errors import UserError
from utils.files import output_folder, write_bytes, write_text

if TYPE_CHECKING:
    from datasets.bases import Annotation, ReidDataModule, Splits
    from datasets.checking.charts import Chart
    from datasets.checking.checks import Finding

    _Outcome = tuple[list[str], list[Finding]]

_DESCRIPTION = """Read a whole data set, every image once, and report what is wrong with it before you spend time on
training. Writes report.txt and histograms.png. Exit status: 0 if there are no errors (warnings do not count), 1 if
there are, 2 if the command line or the configuration is wrong."""
_EXAMPLES = (
    "--config_file configs/256_resnet50.yml DATASETS.ROOT_DIR /data",
    "--config_file configs/256_resnet50.yml --out check --world-size 4 DATASETS.ROOT_DIR /data",
)
_DETAILS_SHOWN = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, or 1 if the data set has errors.

    Raises:
        SystemExit: status 2 for a command line or configuration that cannot be used.
    """
    parser = build_parser(_DESCRIPTION, _EXAMPLES, "python -m datasets.validate")
    parser.add_argument("--out", metavar="DIR", default="", help="folder of the report (default: OUTPUT_DIR)")
    parser.add_argument(
        "--world-size",
        type=whole_number(1),
        metavar="N",
        help="processes of the training (default: from GPU_IDS and TRAINER.NUM_NODES)",
    )
    with clean_exit():
        args, cfg = parse_args(parser, argv)
        folder = output_folder(args.out or cfg.OUTPUT_DIR, cfg.DATASETS.NAMES)
        world_size = args.world_size or configured_world_size(cfg)
        return validate(cfg, folder, world_size)


def configured_world_size(cfg: CfgNode) -> int:
    """Number of training processes that a configuration starts, on a machine that has the devices it names."""
    on_one_device = cfg.TRAINER.ACCELERATOR in ("cpu", "mps") and cfg.SOLVER.DIST_BACKEND != "ddp_cpu"
    return (1 if on_one_device else max(1, len(cfg.GPU_IDS))) * cfg.TRAINER.NUM_NODES


def validate(cfg: CfgNode, folder: Path, world_size: int) -> int:
    """Check a data set, print the report, and write it and the histograms into a folder.

    Args:
        cfg: the whole configuration.
        folder: created if missing.
        world_size: processes of the training.

    Returns:
        0, or 1 if there are errors.

    Raises:
        UserError: an unknown data set, or a folder that cannot be written to.
    """
    module = init_dataset(cfg.DATASETS.NAMES, cfg=cfg)
    head = f"{cfg.DATASETS.NAMES} ({module.describe_source()})"
    write_text(folder / "report.txt", f"{head}\n\nnot finished\n")  # fails early if the folder cannot be written to
    from datasets.checking.charts import chart_text, draw_charts
    from datasets.checking.checks import Finding

    try:
        with naming_the_default_folder(cfg):
            splits = module.read_splits()
    except UserError as error:  # the labels cannot be read, so there is nothing else to check
        text = "\n".join([head, "", *_describe([Finding(True, str(error))], None)])
        write_text(folder / "report.txt", text + "\n")
        sys.stdout.write(text + "\n")
        return 1
    tables, findings = _check(cfg, module, splits, world_size)
    charts = _charts(splits)
    body = [head, *tables, *("\n" + chart_text(chart) for row in charts for chart in row), ""]
    histograms = io.BytesIO()
    draw_charts(charts).save(histograms, format="PNG")
    written = [
        write_text(folder / "report.txt", "\n".join([*body, *_describe(findings, None)]) + "\n"),
        write_bytes(folder / "histograms.png", histograms.getvalue()),
    ]
    lines = [*body, *_describe(findings, _DETAILS_SHOWN), *(f"written: {path}" for path in written)]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(any(finding.is_error for finding in findings))


def _check(cfg: CfgNode, module: "ReidDataModule", splits: "Splits", world_size: int) -> "_Outcome":
    """The tables of the report, and all findings."""
    from datasets.checking.checks import Finding, check_batches, check_counts, check_files, check_labels, check_notes
    from datasets.checking.scan import scan_images

    subsets = _by_name(splits)
    identities, instances = cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE
    workers = count_workers(cfg.DATALOADER.NUM_WORKERS)
    trained = [image[1] for image in splits.train]
    findings = check_notes(splits.notes)
    findings += check_labels(trained, splits.query, splits.gallery, module.one_numbering, splits.names)
    findings += check_counts(splits, module.published)
    findings += [Finding(False, line) for line in find_unused(cfg, among="DATASETS.")]
    # Training identities that are numbered by themselves have no names.
    trained_names = splits.names if module.one_numbering else None
    batches, more = check_batches(trained, identities, instances, world_size, trained_names)
    findings += more
    paths = (image[0] for images in subsets.values() for image in images)
    facts = scan_images(paths, workers, cfg.INPUT.EXIF_ORIENTATION)
    sizes = {name: cfg.INPUT.SIZE_TRAIN if name == "train" else cfg.INPUT.SIZE_TEST for name in subsets}
    # Cameras that no query shares with the gallery, such as the made-up ones of the fashion sets, are as good as none.
    shared = {image[2] for image in splits.query} & {image[2] for image in splits.gallery}
    findings += check_files(subsets, facts, sizes, splits.has_cameras and bool(shared))
    return _tables(module, splits) + _describe_batches(batches, identities, instances, world_size), findings


def _tables(module: "ReidDataModule", splits: "Splits") -> list[str]:
    from datasets.bases import NO_CAMERAS
    from datasets.counts import count_subsets, describe_subset, statistics_table

    tables = ["", statistics_table(_by_name(splits), splits.has_cameras), ""]
    subset = module.published and describe_subset(count_subsets(splits[:3], splits.has_cameras), module.published)
    if subset:
        tables.append(subset)
    if not splits.has_cameras:
        tables.append(NO_CAMERAS)
    if any(name != str(camid) for camid, name in splits.names.cameras.items()):
        listed = ", ".join(f"{camid} = {name}" for camid, name in sorted(splits.names.cameras.items()))
        tables.append(f"names of the cameras, by camid: {listed}")
    if not module.one_numbering:
        tables.append("Identities of training and test are not compared: they are numbered separately.")
    return tables


def _by_name(splits: "Splits") -> "dict[str, list[Annotation]]":
    return {"train": splits.train, "query": splits.query, "gallery": splits.gallery}


def _describe_batches(batches: list[int], identities: int, instances: int, world_size: int) -> list[str]:
    if not batches:
        return ["batches per epoch: none"]
    span = f"{min(batches)}" if min(batches) == max(batches) else f"{min(batches)} to {max(batches)}"
    return [
        f"batches per epoch: {span} on each of {world_size} process(es), of {identities} identities x {instances} "
        f"images (first {len(batches)} epochs)"
    ]


def _charts(splits: "Splits") -> "list[list[Chart]]":
    from datasets.checking.charts import Chart
    from datasets.checking.checks import images_per_camera, images_per_identity

    subsets = _by_name(splits).items()
    charts = [[Chart(name, "identities by number of images", images_per_identity(images)) for name, images in subsets]]
    if splits.has_cameras:
        charts.append(
            [Chart(name, "images by camera", images_per_camera(images, splits.names)) for name, images in subsets]
        )
    return charts


def _describe(findings: "Sequence[Finding]", limit: int | None) -> list[str]:
    """Format errors, then warnings, each with its details, up to a limit."""
    lines = []
    for title, is_error in (("error", True), ("warning", False)):
        chosen = [finding for finding in findings if finding.is_error == is_error]
        lines.append(f"{title}s: {len(chosen) or 'none'}")
        for finding in chosen:
            lines.append(f"  {title}: {finding.text}")
            lines += [f"    {detail}" for detail in finding.details[:limit]]
            if limit is not None and len(finding.details) > limit:
                lines.append(f"    and {len(finding.details) - limit} more (all are in report.txt)")
    return lines


if __name__ == "__main__":
    sys.exit(main())
