"""Images per second of one core from JPEG files to the network's bytes, by several decoders.

    python benchmarks/bench_decoding.py
    python benchmarks/bench_decoding.py --cases crops --photos /data/photos

Files are read, decoded and resized; all but torchvision's reader resize as the project does, with Pillow. "draft" is
INPUT.DRAFT_DECODING. Readers whose package is missing, or finds no library, are left out and named. What is compared is
measured in turns, round by round, in CPU seconds of this process; differences are those of bytes from the project's.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - the checkout stands first on the path
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.bench_embedding import drawn_image  # noqa: E402
from benchmarks.common import RESULTS, machine, ratios, spread, values_in_turns, write_report  # noqa: E402
from datasets.transforms.pixels import ResizedPlanes  # noqa: E402
from inference.embedding.images import find_images, read_pixels  # noqa: E402

SIZE = (256, 128)
# height and width of the files, their quality, and how many of --images are drawn
CASES = {
    "crops": ((128, 64), 95, 1.0),
    "originals": ((1024, 512), 90, 0.2),
    "large": ((2048, 1024), 90, 0.05),
    "frames": ((1080, 1920), 90, 0.05),
}

Reader = Callable[[str], Tensor]
WHOLE, DRAFT = ResizedPlanes(SIZE), ResizedPlanes(SIZE, draft=True)


def of_simplejpeg(draft: bool) -> Reader:
    import simplejpeg

    least = {"min_height": SIZE[0], "min_width": SIZE[1], "min_factor": 1} if draft else {}
    return lambda path: WHOLE(Image.fromarray(simplejpeg.decode_jpeg(Path(path).read_bytes(), **least)))


def of_pyturbojpeg(draft: bool) -> Reader:
    import turbojpeg

    decoder = turbojpeg.TurboJPEG()

    def read(path: str) -> Tensor:
        data, factor = Path(path).read_bytes(), 1
        if draft:
            width, height, *_ = decoder.decode_header(data)
            while factor < 8 and min(height // SIZE[0], width // SIZE[1]) >= 2 * factor:
                factor *= 2
        return WHOLE(Image.fromarray(decoder.decode(data, turbojpeg.TJPF_RGB, scaling_factor=(1, factor))))

    return read


def of_torchvision() -> Reader:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms.v2.functional import resize

    return lambda path: resize(decode_jpeg(read_file(path), mode=ImageReadMode.RGB), list(SIZE), antialias=True)


READERS: dict[str, Callable[[], Reader]] = {
    "ours": lambda: partial(read_pixels, resize=WHOLE),
    "ours_draft": lambda: partial(read_pixels, resize=DRAFT),
    "simplejpeg": partial(of_simplejpeg, False),
    "simplejpeg_draft": partial(of_simplejpeg, True),
    "pyturbojpeg": partial(of_pyturbojpeg, False),
    "pyturbojpeg_draft": partial(of_pyturbojpeg, True),
    "torchvision": of_torchvision,
}


def find_readers() -> tuple[dict[str, Reader], dict[str, str]]:
    """The readers that work here, and why others do not."""
    found, left_out = {}, {}
    for name, make in READERS.items():
        try:
            found[name] = make()
        except (ImportError, RuntimeError, OSError) as error:  # the package, or the library that it looks for
            left_out[name] = str(error).strip().splitlines()[0]
    return found, left_out


def difference(reader: Reader, paths: list[str]) -> dict[str, float]:
    """Grey levels between the bytes of a reader and the project's."""
    apart = np.concatenate([(reader(path).int() - read_pixels(path, WHOLE).int()).abs().numpy() for path in paths])
    return {"mean": float(apart.mean()), "p99": float(np.percentile(apart, 99)), "max": float(apart.max())}


def bench_case(paths: list[str], readers: dict[str, Reader], repeats: int) -> dict[str, Any]:
    """Images per second of each reader, as a multiple of the project's, and how far its bytes are from those."""

    def seconds_of(reader: Reader) -> float:
        start = time.process_time()
        for path in paths:
            reader(path)
        return time.process_time() - start

    found = {name: difference(reader, paths) for name, reader in readers.items()}  # and warms up
    seconds = values_in_turns(repeats, **{name: partial(seconds_of, reader) for name, reader in readers.items()})
    return {
        "images": len(paths),
        **{
            name: {
                "images_per_s": spread([len(paths) / value for value in values]),
                "times_ours": ratios(seconds["ours"], values),
                "grey_levels": found[name],
            }
            for name, values in seconds.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--photos", type=Path, help="a folder of JPEG files of your own, as one more case")
    parser.add_argument("--images", type=int, default=200, help="crops; of larger images fewer. Default: 200")
    parser.add_argument("--repeats", type=int, default=7, help="rounds, default: 7")
    parser.add_argument("--out", type=Path, default=RESULTS / "decoding.json", help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    readers, left_out = find_readers()
    report: dict[str, Any] = {"repeats": args.repeats, "input": list(SIZE), "left_out": left_out}
    report["machine"] = machine(1, "torchvision", "pillow", "simplejpeg", "PyTurboJPEG")
    for name, reason in left_out.items():
        print(f"left out: {name} ({reason})", flush=True)
    for case in [*args.cases, *["photos"] * (args.photos is not None)]:
        with tempfile.TemporaryDirectory() as folder:
            if case == "photos":
                paths = [path for path in find_images(args.photos) if path.lower().endswith((".jpg", ".jpeg"))]
                paths = paths[: args.images]
            else:
                (height, width), quality, share = CASES[case]
                paths = [str(Path(folder) / f"{i:05d}.jpg") for i in range(max(1, round(args.images * share)))]
                for i, path in enumerate(paths):
                    drawn_image(i, height, width).save(path, quality=quality)
            report[case] = bench_case(paths, readers, args.repeats)
        if case != "photos":
            report[case]["files"] = [height, width]
        print(f"{case}: {json.dumps(report[case])}", flush=True)
        write_report(report, args.out)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
