#!/usr/bin/env python
"""Draw a small person re-identification data set, to try the code without images of real people.

Each identity is a combination of clothes, patterns, hair, skin, hat and bag; each camera has its own background, light,
colour cast, blur and noise, which change the pixels more than the identity does. Every image has its own seed, derived
from (--seed, kind, identity, number), so the bytes of a file do not depend on which files were drawn before it.

    python scripts/make_toy_dataset.py data/toy
    python scripts/make_toy_dataset.py data/toy_coco --layout coco --ids 60 --seed 3
"""

import argparse
import colorsys
import contextlib
import functools
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from tqdm import tqdm

if __package__ in (None, ""):  # run as a file: the packages lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.coco_builder import CocoBuilder, category
from utils.errors import UserError
from utils.image import read_jpeg_comment

Colour = tuple[int, int, int]
Point = tuple[float, float]

# The strength of the cameras' colour casts sets the difficulty. At 0.14 a ResNet-18 with random weights reaches an mAP
# of 0.1 to 0.3 on the default set; stronger casts push it down to chance.
CAST = 0.14
SUPERSAMPLING = 2  # figures are drawn larger and averaged down: smooth edges from PIL's jagged primitives
JPEG_QUALITY = 92
COMMENT = b"drawn by make_toy_dataset.py"  # in every image, so that --force replaces only those
DESCRIPTION = "drawn people for re-identification"  # in the COCO files, for the same reason
MAX_CAMERAS = 6  # Market-1501 numbers its cameras 1..6
MAX_IDS = 1501  # and its identities 1..1501

STRANGERS, JUNK = 0.08, 0.04  # distractors in the gallery, as shares of the images of test identities

# Layout -> its training, query and gallery folders.
LAYOUTS: dict[str, tuple[str, str, str]] = {
    "market1501": ("market1501/bounding_box_train", "market1501/query", "market1501/bounding_box_test"),
    "coco": ("train", "query", "gallery"),
    "folder": ("train", "query", "gallery"),
}

# First part of each derived seed: what it is for.
SEED_IDENTITY, SEED_CAMERA, SEED_IMAGE, SEED_DISTRACTOR, SEED_JUNK = range(5)

CLOTH_COLOURS: dict[str, Colour] = {
    "red": (205, 35, 40),
    "orange": (240, 130, 30),
    "yellow": (240, 215, 60),
    "green": (40, 140, 60),
    "cyan": (70, 195, 205),
    "blue": (40, 70, 190),
    "purple": (125, 50, 150),
    "pink": (240, 140, 180),
    "white": (240, 240, 235),
    "black": (25, 25, 30),
}
LOWER_COLOURS = ("blue", "black", "white", "red", "green", "yellow", "purple", "cyan")
PATTERNS = ("plain", "stripes", "bars", "checks", "dots")
LOWER_KINDS = ("trousers", "shorts", "skirt")
SKINS: tuple[Colour, ...] = ((250, 215, 185), (215, 165, 125), (150, 100, 70), (95, 60, 45))
HAIRS: tuple[Colour, ...] = ((30, 22, 20), (110, 65, 30), (225, 185, 90), (170, 60, 25), (165, 165, 170))
HATS = ("none", "none", "cap", "wide")
BAGS = ("none", "backpack", "shoulder", "hand")
VIEWS = ("front", "back", "side")


class ToyDatasetError(UserError):
    """The data set cannot be drawn as requested; the message names the argument or the path, and the way out."""


@dataclass(frozen=True)
class Identity:
    """What stays the same in every image of a person."""

    upper: str
    pattern: str
    second: str
    lower: str
    lower_kind: str
    skin: int
    hair: int
    long_hair: bool
    hat: str
    hat_colour: str
    bag: str
    bag_colour: str
    sleeves: bool
    build: float = field(compare=False)  # width of the body, 1 = usual

    def differences(self, other: "Identity") -> int:
        """How many of the clearly visible parts differ."""
        mine, theirs = (
            (p.upper, p.pattern, p.second, p.lower, p.lower_kind, p.hat, p.bag, p.hair, p.skin) for p in (self, other)
        )
        return sum(a != b for a, b in zip(mine, theirs, strict=True))


@dataclass(frozen=True)
class Camera:
    """What all images of a camera share."""

    number: int  # 1-based, as in the file names
    wall: Colour
    floor: Colour
    texture: str
    gain: tuple[float, float, float]  # colour cast and exposure, per channel
    haze: float  # share of flat light: lowers the contrast
    gamma: float
    blur: float  # radius in pixels of a 128-pixel-high image
    noise: int
    shade: float  # how much darker one side is
    occlusion: float  # probability that something stands in front


@dataclass(frozen=True)
class Shot:
    """One file to draw: `kind` and `key` make its seed."""

    folder: str
    name: str
    pid: int
    identity: Identity
    camera: Camera
    kind: int
    key: tuple[int, ...]


def generator(seed: int, *key: int) -> np.random.Generator:
    """A separate random generator for each (seed, key)."""
    return np.random.default_rng((seed, *key))


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


# ---------------------------------------------------------------------------------------------------------------------
# Who and where


def random_identity(rng: np.random.Generator) -> Identity:
    colours = tuple(CLOTH_COLOURS)
    upper = pick(rng, colours)
    return Identity(
        upper=upper,
        pattern=pick(rng, PATTERNS),
        second=pick(rng, tuple(c for c in colours if c != upper)),
        lower=pick(rng, LOWER_COLOURS),
        lower_kind=pick(rng, LOWER_KINDS),
        skin=int(rng.integers(len(SKINS))),
        hair=int(rng.integers(len(HAIRS))),
        long_hair=bool(rng.random() < 0.4),
        hat=pick(rng, HATS),
        hat_colour=pick(rng, colours),
        bag=pick(rng, BAGS),
        bag_colour=pick(rng, colours),
        sleeves=bool(rng.random() < 0.6),
        build=float(rng.uniform(0.85, 1.2)),
    )


def make_identities(count: int, seed: int) -> list[Identity]:
    """Draw identities that differ from each other in at least two visible parts, though many share several.

    The n-th identity is the same for every count.
    """
    identities: list[Identity] = []
    for number in range(count):
        rng = generator(seed, SEED_IDENTITY, number)
        candidate = random_identity(rng)
        while any(candidate.differences(other) < 2 for other in identities):
            candidate = random_identity(rng)
        identities.append(candidate)
    return identities


def tint(hue: float, saturation: float, value: float) -> Colour:
    """An 8-bit colour from hue (turns), saturation and value (0..1)."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def make_cameras(count: int, seed: int) -> list[Camera]:
    """Draw cameras whose casts and backgrounds are spread over the colour wheel, so that any two differ clearly."""
    spread = generator(seed, SEED_CAMERA)
    start, exposures = spread.random(), spread.permutation(np.linspace(0.88, 1.06, count))
    textures = ("tiles", "bricks", "planks", "grass", "panes", "plain")
    cameras = []
    for index in range(count):
        rng = generator(seed, SEED_CAMERA, index + 1)
        hue = start + (index + rng.uniform(-0.2, 0.2)) / count
        red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, CAST, 1.0)
        exposure = float(exposures[index])
        cameras.append(
            Camera(
                number=index + 1,
                wall=tint(hue + rng.uniform(0.3, 0.7), rng.uniform(0.15, 0.35), rng.uniform(0.45, 0.75)),
                floor=tint(rng.random(), rng.uniform(0.1, 0.3), rng.uniform(0.4, 0.7)),
                texture=textures[index % len(textures)],
                gain=(exposure * red, exposure * green, exposure * blue),
                haze=float(rng.uniform(0.0, 0.12)),
                gamma=float(rng.uniform(0.9, 1.15)),
                blur=float(rng.uniform(0.0, 0.9)),
                noise=int(rng.integers(2, 9)),
                shade=float(rng.uniform(0.0, 0.35)),
                occlusion=float(rng.uniform(0.1, 0.35)),
            )
        )
    return cameras


# ---------------------------------------------------------------------------------------------------------------------
# Background


@functools.lru_cache(maxsize=16)
def scene(camera: Camera, width: int, height: int, seed: int) -> Image.Image:
    """The place a camera looks at, twice as large as one image: crops of it differ."""
    rng = generator(seed, SEED_CAMERA, camera.number, 1)
    wide, high = 2 * width, 2 * height
    image = Image.new("RGB", (wide, high), camera.wall)
    draw = ImageDraw.Draw(image)
    horizon = int(high * rng.uniform(0.45, 0.7))
    step = max(4, round(width * rng.uniform(0.2, 0.35)))

    def shifted(colour: Colour, by: int) -> Colour:
        return tuple(min(255, max(0, value + by)) for value in colour)  # type: ignore[return-value]

    draw_texture(draw, camera.texture, (wide, horizon), step, lambda by: shifted(camera.wall, by), rng)
    for row in range(horizon, high, 2):  # the floor gets lighter towards the viewer
        by = round(50 * (row - horizon) / max(1, high - horizon)) - 25
        draw.rectangle((0, row, wide, row + 1), fill=shifted(camera.floor, by))
    for _ in range(10):  # boxes, posters, doors
        x, w = rng.uniform(0, wide), width * rng.uniform(0.1, 0.4)
        y, h = rng.uniform(0, high), height * rng.uniform(0.05, 0.25)
        draw.rectangle((x, y, x + w, y + h), fill=tint(rng.random(), rng.uniform(0.2, 0.8), rng.uniform(0.2, 1.0)))
    return image


def draw_texture(
    draw: ImageDraw.ImageDraw,
    name: str,
    size: tuple[int, int],
    step: int,
    shade: Callable[[int], Colour],
    rng: np.random.Generator,
) -> None:
    """Fill (0, 0, *size) with tiles, bricks, planks, panes or grass in shades of one colour."""
    wide, high = size
    cells = {"tiles": (step, step), "bricks": (step, step // 2), "planks": (step // 2, high), "panes": (step, 2 * step)}
    if name in cells:
        across, down = cells[name]
        for row, y in enumerate(range(0, high, max(1, down))):
            offset = across // 2 if name == "bricks" and row % 2 else 0
            for x in range(-offset, wide, max(1, across)):
                fill, outline = shade(int(rng.integers(-22, 23))), shade(-60 if name != "panes" else 50)
                draw.rectangle((x, y, x + across, min(high, y + down)), fill=fill, outline=outline)
    elif name == "grass":
        for _ in range(wide * high // 60):
            x, y = int(rng.integers(wide)), int(rng.integers(high))
            draw.line((x, y, x + int(rng.integers(-3, 4)), y - 8), fill=shade(int(rng.integers(-45, 46))), width=2)


# ---------------------------------------------------------------------------------------------------------------------
# The person


@dataclass(frozen=True)
class Pose:
    """How a person stands in one image. Lengths in units of the figure's height."""

    view: str
    facing: int  # -1 left, 1 right
    scale: float  # pixels per unit
    x: float  # pixel of the body's axis
    top: float  # pixel of the top of the head
    lean: float  # horizontal drift from head to feet
    stride: float  # how far the feet are apart
    swing: float  # how far the hands are from the body
    phase: tuple[int, int]  # where the cloth's pattern starts

    def at(self, u: float, v: float) -> Point:
        """Pixel of the point u to the right of the axis and v below the top of the head."""
        return self.x + self.scale * (u + self.lean * (v - 0.5)), self.top + self.scale * v


def random_pose(rng: np.random.Generator, width: int, height: int, zoom: float = 1.0) -> Pose:
    """Draw a pose with crop jitter; a zoom above 1 cuts off parts of the body."""
    scale = height * rng.uniform(0.82, 0.97) * zoom
    return Pose(
        view=pick(rng, VIEWS),
        facing=1 if rng.random() < 0.5 else -1,
        scale=float(scale),
        x=float(width * rng.uniform(0.40, 0.60)),
        top=float((height - scale) * rng.uniform(0.0, 1.0)),
        lean=float(rng.uniform(-0.06, 0.06)),
        stride=float(rng.uniform(0.01, 0.13)),
        swing=float(rng.uniform(0.01, 0.10)),
        phase=(int(rng.integers(64)), int(rng.integers(64))),
    )


@functools.lru_cache(maxsize=64)
def pattern_mask(pattern: str, width: int, height: int, period: int) -> Image.Image:
    """Where the second colour of a patterned cloth shows; 64 pixels wider and higher than the image, to be shifted."""
    y, x = np.mgrid[0 : height + 64, 0 : width + 64]
    half = period // 2
    if pattern == "stripes":
        on = y % period < half
    elif pattern == "bars":
        on = x % period < half
    elif pattern == "checks":
        on = (y // half + x // half) % 2 == 0
    else:
        on = (x % period - half) ** 2 + (y % period - half) ** 2 <= (0.36 * period) ** 2
    return Image.fromarray(np.where(on, 255, 0).astype(np.uint8))


class Figure:
    """Draws one person in one pose onto an image."""

    def __init__(self, image: Image.Image, person: Identity, pose: Pose) -> None:
        self.image, self.person, self.pose = image, person, pose
        self.draw = ImageDraw.Draw(image)
        self.skin = SKINS[person.skin]
        self.hair = HAIRS[person.hair]
        self.side = pose.view == "side"
        self.shoulder = (0.085 if self.side else 0.125) * person.build
        self.hip = (0.080 if self.side else 0.100) * person.build

    def paint(self) -> None:
        """Draw all parts, from the farthest to the nearest."""
        backpack, back = self.person.bag == "backpack", self.pose.view == "back"
        if backpack and not back:
            self.backpack()
        if self.person.long_hair:
            self.blob(0.0, 0.125, 0.075, 0.105, self.hair)
        self.legs()
        self.torso()
        if backpack and back:
            self.backpack()
        elif backpack and not self.side:
            for sign in (-1, 1):
                self.limb([(sign * 0.07, 0.165), (sign * 0.075, 0.34)], 0.022, self.cloth(self.person.bag_colour))
        self.head()
        self.bag()

    def cloth(self, name: str) -> Colour:
        return CLOTH_COLOURS[name]

    def polygon(self, points: list[Point], fill: Colour, draw: ImageDraw.ImageDraw | None = None) -> None:
        (draw or self.draw).polygon([self.pose.at(self.pose.facing * u, v) for u, v in points], fill=fill)

    def blob(self, u: float, v: float, ru: float, rv: float, fill: Colour) -> None:
        """Draw an ellipse around (u, v)."""
        x, y = self.pose.at(self.pose.facing * u, v)
        ru, rv = ru * self.pose.scale, rv * self.pose.scale
        self.draw.ellipse((x - ru, y - rv, x + ru, y + rv), fill=fill)

    def limb(
        self, points: list[Point], thick: float, fill: Colour | int, draw: ImageDraw.ImageDraw | None = None
    ) -> None:
        """Draw a thick line with round ends and joints."""
        draw = draw or self.draw
        pixels = [self.pose.at(self.pose.facing * u, v) for u, v in points]
        wide = max(1, round(thick * self.pose.scale))
        draw.line(pixels, fill=fill, width=wide)
        for x, y in pixels:
            draw.ellipse((x - wide / 2, y - wide / 2, x + wide / 2, y + wide / 2), fill=fill)

    def legs(self) -> None:
        person, stride = self.person, self.pose.stride
        colour = self.cloth(person.lower)
        thick = 0.095 * person.build
        for sign in (-1, 1):
            hip, foot = sign * 0.45 * self.hip, sign * (0.45 * self.hip + stride)
            knee = (hip + foot) / 2 + (0.03 if self.side else 0.0)
            shin = [(hip, 0.50), (knee, 0.72), (foot, 0.95)]
            self.limb(shin, 0.8 * thick, self.skin)
            if person.lower_kind == "trousers":
                self.limb([*shin[:2], (foot, 0.92)], thick, colour)
            elif person.lower_kind == "shorts":
                self.limb(shin[:2], 1.1 * thick, colour)
            self.blob(foot + 0.02, 0.965, 0.055, 0.025, (40, 35, 35))
        if person.lower_kind == "skirt":
            flare = self.hip + 0.06
            self.polygon([(-self.hip, 0.47), (self.hip, 0.47), (flare, 0.73), (-flare, 0.73)], colour)

    def torso(self) -> None:
        """Draw trunk and arms; the cloth's second colour covers both through one mask."""
        person, pose = self.person, self.pose
        mask = Image.new("L", self.image.size, 0)
        cut = ImageDraw.Draw(mask)
        s, h = self.shoulder, self.hip
        trunk = [(-0.5 * s, 0.155), (0.5 * s, 0.155), (s, 0.185), (1.02 * h, 0.51), (-1.02 * h, 0.51), (-s, 0.185)]
        cut.polygon([pose.at(pose.facing * u, v) for u, v in trunk], fill=255)
        for sign in (-1, 1):
            if self.side:
                arm = [(0.0, 0.20), (sign * pose.swing, 0.34), (sign * 1.6 * pose.swing + 0.03, 0.48)]
            else:
                arm = [(sign * s, 0.20), (sign * (s + 0.035 + 0.4 * pose.swing), 0.34), (sign * (s + pose.swing), 0.48)]
            self.limb(arm, 0.055, self.skin)
            sleeve = arm if person.sleeves else [arm[0], ((arm[0][0] + arm[1][0]) / 2, 0.28)]
            self.limb(sleeve[:2] + ([(sleeve[2][0], 0.45)] if person.sleeves else []), 0.068, 255, cut)
        self.image.paste(self.cloth(person.upper), mask=mask)
        if person.pattern != "plain":
            width, height = self.image.size
            period = max(4, 2 * round(0.045 * pose.scale))
            laid = pattern_mask(person.pattern, width, height, period)
            x, y = pose.phase
            laid = laid.crop((x, y, x + width, y + height))
            self.image.paste(self.cloth(person.second), mask=ImageChops.darker(mask, laid))

    def head(self) -> None:
        person, view = self.person, self.pose.view
        self.limb([(0.0, 0.12), (0.0, 0.165)], 0.05, self.skin)
        self.blob(0.0, 0.08, 0.055, 0.072, self.skin)
        if view == "back":
            self.blob(0.0, 0.072, 0.06, 0.072, self.hair)
        else:
            turn = -0.012 if self.side else 0.0
            self.blob(turn, 0.04, 0.06, 0.045, self.hair)
            if self.side:
                self.blob(-0.04, 0.07, 0.028, 0.05, self.hair)
            for u in (0.03,) if self.side else (-0.022, 0.022):
                self.blob(u, 0.088, 0.008, 0.008, (20, 20, 20))
        if person.hat != "none":
            colour = self.cloth(person.hat_colour)
            self.polygon([(-0.06, 0.045), (-0.045, -0.01), (0.045, -0.01), (0.06, 0.045)], colour)
            brim = 0.10 if person.hat == "wide" else 0.06
            self.limb([(-brim if person.hat == "wide" else 0.0, 0.045), (brim, 0.045)], 0.02, colour)

    def backpack(self) -> None:
        u = -0.10 if self.side else 0.0
        wide = 0.06 if self.side else 0.105
        self.polygon(
            [(u - wide, 0.19), (u + wide, 0.19), (u + 1.05 * wide, 0.42), (u - 1.05 * wide, 0.42)],
            self.cloth(self.person.bag_colour),
        )

    def bag(self) -> None:
        colour = self.cloth(self.person.bag_colour)
        if self.person.bag == "shoulder":
            self.limb([(-0.07, 0.17), (self.hip, 0.44)], 0.018, colour)
            self.polygon(
                [(self.hip - 0.04, 0.42), (self.hip + 0.08, 0.42), (self.hip + 0.08, 0.55), (self.hip - 0.04, 0.55)],
                colour,
            )
        elif self.person.bag == "hand":
            u = (0.0 if self.side else self.shoulder) + self.pose.swing
            self.limb([(u, 0.48), (u, 0.54)], 0.015, colour)
            self.polygon([(u - 0.055, 0.54), (u + 0.055, 0.54), (u + 0.065, 0.66), (u - 0.065, 0.66)], colour)


# ---------------------------------------------------------------------------------------------------------------------
# The image


def occlude(image: Image.Image, rng: np.random.Generator) -> None:
    """Draw something in front of the person: a post, a low wall, or a bush."""
    width, height = image.size
    draw = ImageDraw.Draw(image)
    colour = tint(rng.random(), rng.uniform(0.1, 0.7), rng.uniform(0.2, 0.9))
    what = int(rng.integers(3))
    if what == 0:
        x, thick = width * rng.uniform(0.1, 0.9), width * rng.uniform(0.06, 0.14)
        draw.rectangle((x, 0, x + thick, height), fill=colour)
    elif what == 1:
        draw.rectangle((0, height * rng.uniform(0.62, 0.85), width, height), fill=colour)
    else:
        x, y, r = width * pick_side(rng), height * rng.uniform(0.5, 0.95), width * rng.uniform(0.25, 0.45)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def pick_side(rng: np.random.Generator) -> float:
    """A position near the left or the right edge, as a share of the width."""
    return float(rng.uniform(0.0, 0.25) if rng.random() < 0.5 else rng.uniform(0.75, 1.0))


def expose(image: Image.Image, camera: Camera, rng: np.random.Generator) -> Image.Image:
    """Apply the camera's light, cast, contrast, blur and noise, slightly varied from image to image."""
    width, height = image.size
    if camera.blur > 0.05:
        image = image.filter(ImageFilter.GaussianBlur(camera.blur * height / 128 * rng.uniform(0.6, 1.4)))
    level = rng.uniform(0.88, 1.12)
    table: list[int] = []
    for gain in camera.gain:
        for value in range(256):
            lit = math.pow(value / 255, camera.gamma) * (1 - camera.haze) + camera.haze
            table.append(min(255, round(255 * lit * gain * level)))
    pixels = np.asarray(image.point(table)).astype(np.int32)
    slope = camera.shade * 256 / max(1, width - 1)
    ramp = (256 - slope * np.arange(width)).astype(np.int32)[None, :, None]
    pixels = pixels * ramp // 256 + rng.integers(-camera.noise, camera.noise + 1, (height, width, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_shot(shot: Shot, size: tuple[int, int], seed: int) -> Image.Image:
    """Draw one image of `size` (height, width)."""
    rng = generator(seed, shot.kind, *shot.key)
    height, width = (SUPERSAMPLING * side for side in size)
    place = scene(shot.camera, width, height, seed)
    left, top = (int(rng.integers(side // 2)) for side in place.size)
    image = place.crop((left, top, left + width, top + height))
    zoom = float(rng.uniform(1.7, 2.4)) if shot.kind == SEED_JUNK else 1.0
    Figure(image, shot.identity, random_pose(rng, width, height, zoom)).paint()
    if rng.random() < shot.camera.occlusion:
        occlude(image, rng)
    return expose(image.reduce(SUPERSAMPLING), shot.camera, rng)


# ---------------------------------------------------------------------------------------------------------------------
# The data set


@dataclass(frozen=True)
class Options:
    """What to draw. Raises ToyDatasetError naming the first argument that is out of range."""

    ids: int = 200
    cameras: int = 4
    images_per_id: int = 8
    size: tuple[int, int] = (128, 64)  # height, width in pixels
    seed: int = 0
    layout: str = "market1501"
    train_fraction: float = 0.75

    def __post_init__(self) -> None:
        ranges = {
            "--ids": (self.ids, 4, MAX_IDS),
            "--cameras": (self.cameras, 2, MAX_CAMERAS),
            "--images-per-id": (self.images_per_id, 4, 999),
            "--size (height)": (self.size[0], 16, 1024),
            "--size (width)": (self.size[1], 16, 1024),
            "--seed": (self.seed, 0, 2**32 - 1),
        }
        for name, (value, low, high) in ranges.items():
            if not low <= value <= high:
                raise ToyDatasetError(f"{name} is {value}; expected {low} to {high}")
        if self.layout not in LAYOUTS:
            raise ToyDatasetError(f"--layout is {self.layout!r}; expected one of {', '.join(LAYOUTS)}")
        if not 0 < self.train_fraction < 1:
            raise ToyDatasetError(f"--train-fraction is {self.train_fraction}; expected a share between 0 and 1")
        if min(self.train_ids, self.ids - self.train_ids) < 2:
            raise ToyDatasetError(
                f"--train-fraction {self.train_fraction:g} of {self.ids} identities leaves {self.train_ids} for "
                f"training and {self.ids - self.train_ids} for the test; each needs at least 2"
            )

    @property
    def train_ids(self) -> int:
        return round(self.ids * self.train_fraction)


def cameras_of(pid: int, cameras: list[Camera], options: Options) -> list[Camera]:
    """The camera of each image of an identity: at least two images from every camera that sees it."""
    seen = min(len(cameras), options.images_per_id // 2)
    order = generator(options.seed, SEED_IDENTITY, pid, 1).permutation(len(cameras))[:seen]
    return [cameras[order[number % seen]] for number in range(options.images_per_id)]


def plan(options: Options) -> list[Shot]:
    """Plan every image of the data set: identities 1..train_ids for training, the others for the test."""
    people = make_identities(options.ids, options.seed)
    cameras = make_cameras(options.cameras, options.seed)
    folders = LAYOUTS[options.layout]
    shots = []
    for pid, person in enumerate(people, start=1):
        views = cameras_of(pid, cameras, options)
        seen = len(set(views))
        for number, camera in enumerate(views):
            if pid <= options.train_ids:
                folder = folders[0]
            elif options.layout != "coco":
                folder = folders[1] if number < seen else folders[2]  # the first image of each camera is a query
            else:
                folder = (
                    folders[1] if number % seen < seen // 2 else folders[2]
                )  # a COCO set matches across its cameras
            name = file_name(pid, camera, number)
            if options.layout == "folder":
                name = f"{pid:04d}/{name}"
            shots.append(Shot(folder, name, pid, person, camera, SEED_IMAGE, (pid, number)))
    if options.layout == "market1501":
        shots += distractors(people[options.train_ids :], cameras, options)
    return shots


def file_name(pid: int, camera: Camera, number: int) -> str:
    """Market-1501's pattern: identity, camera and sequence, frame, number of the box in the frame."""
    return f"{pid if pid < 0 else format(pid, '04d')}_c{camera.number}s1_{number:06d}_01.jpg"


def distractors(test_people: list[Identity], cameras: list[Camera], options: Options) -> list[Shot]:
    """Gallery images that match no query: strangers (pid 0), and useless crops of test identities (pid -1)."""
    gallery = LAYOUTS["market1501"][2]
    total = len(test_people) * options.images_per_id
    shots = []
    for number in range(max(1, round(STRANGERS * total))):
        rng = generator(options.seed, SEED_DISTRACTOR, number, 1)
        camera, person = cameras[int(rng.integers(len(cameras)))], random_identity(rng)
        shots.append(Shot(gallery, file_name(0, camera, number), 0, person, camera, SEED_DISTRACTOR, (number,)))
    for number in range(max(1, round(JUNK * total))):
        rng = generator(options.seed, SEED_JUNK, number, 1)
        camera, person = cameras[int(rng.integers(len(cameras)))], test_people[int(rng.integers(len(test_people)))]
        shots.append(Shot(gallery, file_name(-1, camera, number), -1, person, camera, SEED_JUNK, (number,)))
    return shots


def coco_index(shots: list[Shot], size: tuple[int, int], source: str) -> CocoBuilder:
    """The COCO file of one subset; pair_id is the identity."""
    height, width = size
    info = {"description": DESCRIPTION, "version": "1.0"}
    builder = CocoBuilder({"info": info, "licenses": [], "categories": [category(1, "person", "person")]})
    for number, shot in enumerate(shots, start=1):
        builder.add_image(number, shot.name, (width, height))
        box: list[float] = [0, 0, width, height]
        builder.add_identity(number, number, 1, pair_id=shot.pid, style=1, source=source, area=width * height, bbox=box)
    return builder


def write_dataset(root: Path, options: Options, progress: bool = True) -> dict[str, list[Shot]]:
    """Draw everything below an empty folder. Returns the shots of each subset folder, in order."""
    subsets: dict[str, list[Shot]] = {folder: [] for folder in LAYOUTS[options.layout]}
    for shot in plan(options):
        subsets[shot.folder].append(shot)
    for folder in subsets:
        (root / folder).mkdir(parents=True)
    shots = [shot for subset in subsets.values() for shot in subset]
    for shot in tqdm(shots, desc="drawing", unit="image", disable=not progress, mininterval=0.5):
        image = draw_shot(shot, options.size, options.seed)
        path = root / shot.folder / shot.name
        path.parent.mkdir(exist_ok=True)
        image.save(path, "JPEG", quality=JPEG_QUALITY, subsampling=0, comment=COMMENT)
    if options.layout == "coco":
        for folder, subset in subsets.items():
            builder = coco_index(subset, options.size, "shop" if folder == "gallery" else "user")
            builder.write(root / f"{folder}_coco_reid.json")
    return subsets


def is_filled(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def targets_of(out: Path, layout: str) -> list[str]:
    """The entries of the output folder that a data set of this layout consists of."""
    if layout == "market1501":
        return ["market1501"]
    indexes = [f"{folder}_coco_reid.json" for folder in LAYOUTS["coco"]] if layout == "coco" else []
    return [*LAYOUTS[layout], *indexes]


def find_foreign(target: Path) -> Path | None:
    """The first file at or below a path that this script has not drawn; a link counts as one."""
    if target.is_symlink() or not target.is_dir():
        return None if not target.exists() or is_drawn(target) else target
    for folder, folders, files in os.walk(target):
        for path in (Path(folder, name) for name in sorted([*folders, *files])):
            if path.is_symlink() or (not path.is_dir() and not is_drawn(path)):
                return path
    return None


def is_drawn(path: Path) -> bool:
    """Whether a file is an image or a COCO file that this script made."""
    if path.is_symlink() or not path.is_file():
        return False
    if path.suffix == ".jpg":
        return read_jpeg_comment(path) == COMMENT
    try:
        return path.suffix == ".json" and bool(json.loads(path.read_bytes())["info"]["description"] == DESCRIPTION)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A temporary folder beside the targets, on the same file system; always removed at the end."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".toy_dataset_", dir=out))
    except OSError as error:
        raise ToyDatasetError(f"cannot write to {out}: {error.strerror or error}; choose another folder") from error
    try:
        yield stage
    except OSError as error:
        raise ToyDatasetError(f"writing to {out} failed: {error.strerror or error}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def make_toy_dataset(
    out: Path | str, options: Options, force: bool = False, progress: bool = True
) -> dict[str, list[Shot]]:
    """Draw a data set below `out`, complete or not at all.

    Args:
        out: the folder that becomes DATASETS.ROOT_DIR; created if missing.
        options: what to draw.
        force: replace a data set of the same layout that this script has drawn.
        progress: show a progress bar on stderr.

    Returns:
        Subset folder -> its shots, in the order drawn.

    Raises:
        ToyDatasetError: a data set exists and force is False, or not all of it was drawn by this script; or the folder
            cannot be written to.
    """
    out = Path(out)
    targets = targets_of(out, options.layout)
    filled = [out / name for name in targets if is_filled(out / name)]
    if filled and not force:
        raise ToyDatasetError(f"{filled[0]} exists and is not empty; give another folder, or --force to replace it")
    foreign = next((path for path in map(find_foreign, filled) if path), None)
    if foreign:
        raise ToyDatasetError(
            f"{foreign} was not drawn by this version of the script, so --force does not replace {out}; give another "
            "folder, or remove the old set yourself"
        )
    with staging(out) as stage:
        new, old = stage / "new", stage / "old"
        subsets = write_dataset(new, options, progress)
        old.mkdir()
        for name in targets:
            if (out / name).exists():
                (out / name).rename(old / name)
            (new / name).rename(out / name)
    return subsets


def summary(out: Path, subsets: dict[str, list[Shot]], seconds: float) -> str:
    lines = [f"{'subset':<32}{'ids':>6}{'images':>8}{'cameras':>9}"]
    for folder, shots in subsets.items():
        ids, cameras = {shot.pid for shot in shots if shot.pid > 0}, {shot.camera.number for shot in shots}
        lines.append(f"{folder:<32}{len(ids):>6}{len(shots):>8}{len(cameras):>9}")
    return "\n".join([*lines, f"written to {out.resolve()} in {seconds:.1f} s"])


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python scripts/make_toy_dataset.py", description=(__doc__ or "").split("\n\n")[0]
    )
    add, default = parser.add_argument, Options()
    add("out", metavar="OUT", type=Path, help="folder to write to, later DATASETS.ROOT_DIR")
    add("--ids", type=int, default=default.ids, help="number of identities (default %(default)s)")
    add(
        "--cameras",
        type=int,
        default=default.cameras,
        help=f"number of cameras, 2 to {MAX_CAMERAS} (default %(default)s)",
    )
    add("--images-per-id", type=int, default=default.images_per_id, help="4 or more (default %(default)s)")
    add(
        "--size",
        type=int,
        nargs=2,
        default=default.size,
        metavar=("HEIGHT", "WIDTH"),
        help="in pixels (default 128 64)",
    )
    add("--seed", type=int, default=default.seed, help="seed of people and cameras (default %(default)s)")
    add(
        "--layout",
        choices=tuple(LAYOUTS),
        default=default.layout,
        help="default %(default)s; coco is for df1 and street2shop, folder for DATASETS.NAMES folder",
    )
    add(
        "--train-fraction",
        type=float,
        default=default.train_fraction,
        help="share of the identities for training (default %(default)s)",
    )
    add(
        "--force",
        action="store_true",
        help="replace a data set that this script drew; refused if it contains other files",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    start = time.perf_counter()
    try:
        options = Options(
            args.ids, args.cameras, args.images_per_id, tuple(args.size), args.seed, args.layout, args.train_fraction
        )
        subsets = make_toy_dataset(args.out, options, args.force)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(summary(args.out, subsets, time.perf_counter() - start))
    return 0


if __name__ == "__main__":
    sys.exit(main())
