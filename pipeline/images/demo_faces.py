"""Cartoon faces in the shape of CelebA's: learnable pictures for a machine without a data set.

Reads top down: a face's traits, the pen, its parts from back to front, the light.
"""

from __future__ import annotations

import colorsys
import io
import math
import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Pillow and numpy load with the first face: --help stays quick
    from PIL.Image import Image

Colour = tuple[int, ...]  # (red, green, blue), each in [0, 255]
Point = tuple[float, float]  # pixels of the finished picture from between the eyes, y downwards

WIDTH, HEIGHT = 178, 218  # CelebA's, aligned and cropped
EYES = 88.5, 112  # the point between them: CelebA's are near (69, 112) and (108, 112)
FINE = 2  # drawn at twice the size, then averaged: smooth edges
MARK = b"demo-faces 1"  # JPEG comment: real CelebA has the same names, so ours are told by this

SKINS = ("#ffe0c8", "#f1c6a2", "#deaa7e", "#bc8258", "#8c5b3e", "#603e2e")
HAIRS = ("#261e1e", "#462d20", "#784c2c", "#9e4626", "#ac743e", "#e2ba70", "#bab8ba")
IRISES = ("#543622", "#74502a", "#3c7096", "#4a7a4e", "#606c78")
INK, WHITE = (40, 30, 32), (250, 248, 245)
BLUSH, LIPS, THROAT = (226, 88, 84), (176, 40, 62), (104, 34, 42)

# Right halves from top to bottom, and hairlines from right to left: control points of splines
HEAD = ((12, -67), (40, -58), (53, -26), (50, 10), (45, 46), (24, 71), (6, 75))
BEHIND = {
    "long": ((14, -84), (48, -78), (66, -40), (60, 0), (72, 60), (70, 125)),
    "wavy": ((14, -84), (48, -78), (66, -44), (56, -4), (84, 24), (64, 60), (84, 96), (50, 120)),
    "bob": ((14, -84), (48, -78), (66, -40), (62, 0), (76, 50), (34, 58)),
}
FRINGES = {
    "swept": ((45, -10), (46, -34), (30, -40), (8, -52), (-14, -38), (-44, -36), (-45, -10)),
    "straight": ((46, -4), (46, -24), (20, -23), (-20, -23), (-46, -24), (-46, -4)),
    "parted": ((46, -8), (44, -24), (18, -40), (0, -62), (-18, -40), (-44, -24), (-46, -8)),
    "high": ((46, -10), (43, -40), (24, -54), (-24, -54), (-43, -40), (-46, -10)),
}


class Face:
    """The traits of one face: a function of (seed, number), whatever is drawn besides."""

    def __init__(self, seed: int, number: int) -> None:
        rng = random.Random(f"{seed}/{number}")  # text seeds alike on every platform and Python

        def near(middle: float, spread: float) -> float:
            return rng.triangular(middle - spread, middle + spread)

        def pick(**weights: int) -> str:
            return rng.choices(list(weights), list(weights.values()))[0]

        def tone(palette: Sequence[str]) -> Colour:  # between two neighbours
            first = rng.randrange(len(palette) - 1)
            a, b = (tuple(bytes.fromhex(text[1:])) for text in palette[first : first + 2])
            return mix(a, b, rng.random())

        def tint(saturation: float, value: float) -> Colour:
            rgb = colorsys.hsv_to_rgb(rng.random(), saturation, value)
            return tuple(round(255 * level) for level in rgb)

        wall = tint(near(0.28, 0.2), near(0.75, 0.2))
        self.wall = shade(wall, -near(0.2, 0.2)), shade(wall, near(0.15, 0.15))  # top, bottom
        self.skin, self.hair, self.iris = tone(SKINS), tone(HAIRS), tone(IRISES)
        if sum(abs(a - b) for a, b in zip(self.skin, self.hair, strict=True)) < 130:
            self.hair = shade(self.hair, 0.5)  # else the fringe melts into the forehead
        self.lips = mix(self.skin, LIPS, near(0.5, 0.25))
        self.cloth = tint(near(0.45, 0.3), near(0.6, 0.3))
        self.style = pick(short=30, long=20, wavy=14, bob=12, curly=12, bun=7, bald=5)
        self.fringe = pick(swept=40, straight=20, parted=22, high=18)
        self.volume = near(6, 6)  # of hair above the skull
        self.side = rng.choice((-1, 1))  # where the parting is
        self.width, self.jaw, self.nose = near(1, 0.07), near(1, 0.1), near(1, 0.2)  # 1 = usual
        self.place = EYES[0] + near(0, 2), EYES[1] + near(0, 2)  # of the point between the eyes
        self.tilt, self.turn = near(0, 0.09), near(0, 8)  # radians; pixels to the right
        self.eye = near(11.5, 1.2), near(7.6, 1.2)  # half width, half height
        self.gaze = near(0, 3), near(0, 0.8)
        self.brow = near(-17, 3), near(2.8, 1.2), near(0.8, 2.2)  # height, weight, slope
        self.mouth = near(19, 4), near(4, 5), max(0.0, near(3, 9))  # half width, smile, opening
        self.beard = pick(none=7, stubble=2, moustache=1, full=2)
        self.glasses = pick(none=8, round=1, square=1)
        self.hat = pick(none=16, beanie=1, cap=1)
        self.lamp = rng.choice((-1, 1)) * near(0.7, 0.3), near(-0.5, 0.3)  # light comes from there
        if self.style not in ("short", "bald"):
            self.beard = "none"
        if self.style in ("curly", "bun"):
            self.hat = "none"


def mix(a: Colour, b: Colour, t: float) -> Colour:
    """Give the colour at t on the way from a (0) to b (1)."""
    return tuple(round(x + (y - x) * t) for x, y in zip(a, b, strict=True))


def shade(colour: Colour, t: float) -> Colour:
    """Darken a colour by t in [0, 1]; lighten it where t is negative."""
    return mix(colour, INK if t > 0 else WHITE, abs(t))


class Pen:
    """Fills shapes, all tilted and placed as the face is; `wide` stretches them sideways."""

    def __init__(self, canvas: Image, face: Face, x: float = 0, wide: float = 1) -> None:
        from PIL import ImageDraw

        self.draw, self.x, self.wide = ImageDraw.Draw(canvas), x, wide
        (self.left, self.top), self.tilt = face.place, face.tilt

    def _on_canvas(self, points: Iterable[Point]) -> list[Point]:
        cos, sin = FINE * math.cos(self.tilt), FINE * math.sin(self.tilt)
        left, top = FINE * self.left + self.x * cos, FINE * self.top + self.x * sin
        points = [(x * self.wide, y) for x, y in points]
        return [(left + x * cos - y * sin, top + x * sin + y * cos) for x, y in points]

    def line(self, points: Iterable[Point], width: float, colour: Colour) -> None:
        """Stroke from point to point."""
        self.draw.line(self._on_canvas(points), colour, round(FINE * width), joint="curve")

    def area(self, points: Iterable[Point], colour: Colour) -> None:
        """Fill a polygon."""
        self.draw.polygon(self._on_canvas(points), colour)

    def pair(self, half: Sequence[Point], colour: Colour) -> None:
        """Fill the smooth shape of a right half and its mirror image."""
        self.area(smooth([*half, *((-x, y) for x, y in reversed(half))]), colour)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """Fill an ellipse."""
        self.area(ring(x, y, rx, ry), colour)

    def lens(self, x: float, y: float, half: float, top: float, end: float, colour: Colour) -> None:
        """Fill between two bows from (x - half, y) to (x + half, y) that reach y + top, y + end."""
        steps = [k / 4 for k in range(-4, 5)]
        upper = [(x + half * t, y + top * (1 - t * t)) for t in steps]
        self.area(upper + [(x - half * t, y + end * (1 - t * t)) for t in steps], colour)


def smooth(points: Sequence[Point]) -> list[Point]:
    """Give the closed quadratic B-spline of control points, 6 chords to each."""
    weights = [((1 - t) ** 2 / 2, 0.5 + t - t * t, t * t / 2) for t in (k / 6 for k in range(6))]
    corners = zip(points, [*points[1:], points[0]], [*points[2:], *points[:2]], strict=True)
    return [
        (a * ax + b * bx + c * cx, a * ay + b * by + c * cy)
        for (ax, ay), (bx, by), (cx, cy) in corners
        for a, b, c in weights
    ]


def ring(x: float, y: float, rx: float, ry: float, corners: int = 24) -> list[Point]:
    """Give the corners of a polygon in an ellipse."""
    angles = (2 * math.pi * (k + 0.5) / corners for k in range(corners))
    return [(x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles]


def _hair_behind(pen: Pen, face: Face) -> None:
    if face.style in BEHIND:
        pen.pair(BEHIND[face.style], shade(face.hair, 0.18))
    elif face.style == "bun":
        pen.oval(0, -82, 21, 17, shade(face.hair, 0.18))
    elif face.style == "curly":
        for x, y in ring(0, -24, 46, 40 + face.volume, 11):
            pen.oval(x, y, 18, 18, shade(face.hair, 0.08))


def _body(pen: Pen, face: Face) -> None:
    pen.pair(((20, 40), (21, 74), (40, 92), (30, 120)), shade(face.skin, 0.22))
    pen.pair(((12, 90), (40, 80), (84, 92), (104, 120), (104, 150), (60, 150)), face.cloth)
    pen.pair(((20, 76), (26, 84), (14 - 12 * (face.side > 0), 104)), shade(face.skin, 0.12))


def _head(pen: Pen, face: Face) -> None:
    for side in (-1, 1):
        pen.oval(side * 47, 8, 8, 13, shade(face.skin, 0.08))
        pen.oval(side * 48, 8, 4, 8, shade(face.skin, 0.2))
    pen.pair([(x * face.jaw if y > 20 else x, y) for x, y in HEAD], face.skin)
    for side in (-1, 1):
        for size in (13, 10, 7):  # three steps pass for a soft edge
            pen.oval(side * 28, 27, size, size * 0.8, mix(face.skin, BLUSH, 0.28 - size / 60))


def _beard(pen: Pen, face: Face) -> None:
    colour, jaw = mix(face.skin, face.hair, 0.25 if face.beard == "stubble" else 0.85), face.jaw
    if face.beard in ("stubble", "full"):
        edge = (49 * jaw, 44), (25 * jaw, 74), (6, 77)
        pen.pair(((0, 30), (16, 27), (34, 34), (48, 4), *edge), colour)
    if face.beard in ("moustache", "full"):
        pen.pair(((0, 29), (14, 29), (26, 41), (10, 38), (0, 36)), colour)


def _eyes(pen: Pen, face: Face) -> None:
    (half, high), (gaze_x, gaze_y), (height, weight, slope) = face.eye, face.gaze, face.brow
    lid, round_eye = shade(face.skin, 0.1), min(6.6, high - 0.6)
    for x in (-19.5, 19.5):
        pen.oval(x, 0, half + 2, high + 3, lid)
        pen.oval(x, 0, half, high, WHITE)
        pen.oval(x + gaze_x, gaze_y, round_eye, round_eye, face.iris)
        pen.oval(x + gaze_x, gaze_y, 3.4, 3.4, INK)
        pen.lens(x, 0, half + 2, -high - 3, -high * 0.6, lid)
        pen.lens(x, 0, half + 1, -high * 0.6 - 2.5, -high * 0.6, INK)
        pen.oval(x + gaze_x + 2, gaze_y - 1.8, 1.7, 1.7, WHITE)
        brow = [(x + d, height + slope * d * x / 234 + d * d / 50) for d in (-12, -5, 3, 12)]
        pen.line(brow, weight, shade(face.hair, 0.25))


def _nose(pen: Pen, face: Face) -> None:
    x, size = face.turn / 2, face.nose  # it leads where the head turns
    bridge = [(x - 3, 2), (x + 3, 2), (x + 9 * size, 26), (x, 33), (x - 9 * size, 26)]
    pen.area(smooth(bridge), shade(face.skin, 0.06))
    pen.lens(x, 26, 8 * size, 6, 2.5, shade(face.skin, 0.25))
    pen.oval(x, 21, 4 * size, 4, shade(face.skin, -0.18))


def _mouth(pen: Pen, face: Face) -> None:
    (half, smile, gap), x, y = face.mouth, face.turn * 0.3, 45 - face.mouth[1] / 2
    pen.lens(x, y, half, smile - 5, smile + gap + 6, face.lips)
    if gap > 1:
        pen.lens(x, y, half - 2, smile, smile + gap + 1, THROAT)
        pen.lens(x, y, half - 3, smile, smile + min(gap, 5), WHITE)
    else:
        pen.lens(x, y, half, smile - 0.5, smile + 1, shade(face.lips, 0.5))


def _hair_front(pen: Pen, face: Face) -> None:
    top, side = -70 - face.volume, face.side
    crown = (-51, 4), (-57, -34), (-42, top + 12), (-14, top)
    hairline = [(side * x, y) for x, y in FRINGES[face.fringe]][::side]
    pen.area(smooth([*crown, *((-x, y) for x, y in reversed(crown)), *hairline]), face.hair)
    pen.lens(-12 * side, top + 12, 26, -10, -3, shade(face.hair, -0.14))
    if face.style in BEHIND:
        for side in (-1, 1):
            lock = (46, -36), (56, -30), (58, 10), (56, 50), (46, 30)
            pen.area(smooth([(side * x, y) for x, y in lock]), face.hair)


def _hat(pen: Pen, face: Face) -> None:
    dark = shade(face.cloth, 0.3)
    pen.pair(((14, -96), (46, -88), (62, -54), (58, -30), (20, -34)), face.cloth)
    if face.hat == "beanie":
        pen.pair(((20, -50), (60, -46), (60, -26), (20, -30)), dark)
    else:
        pen.lens(12 * face.side, -38, 56, -10, 6, dark)


def _glasses(pen: Pen, face: Face) -> None:
    corners = 24 if face.glasses == "round" else 4
    for side in (-1, 1):
        rim = ring(side * 19.5, 1, *((16, 14) if corners == 24 else (22, 17)), corners)
        pen.line([*rim, *rim[:2]], 2, INK)
        pen.line([(side * 35, -1), (side * 48, -3)], 2, INK)
    pen.line([(-4, 0), (0, -2), (4, 0)], 2, INK)


def _lit(image: Image, face: Face) -> Image:
    import numpy as np
    from PIL import Image

    # As if the head were a ball: bright towards the lamp, dim at its rim, all level far from it
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    x, y = (x - face.place[0]) / 52, (y - face.place[1] - 5) / 68
    r2 = x * x + y * y
    gain = 1 + (0.2 * (x * face.lamp[0] + y * face.lamp[1]) + 0.08 - 0.12 * r2) / (1 + r2 * r2)
    pixels = np.asarray(image, np.float32) * gain.astype(np.float32)[..., None]
    return Image.fromarray(np.minimum(pixels + 0.5, 255).astype(np.uint8))


def draw(face: Face) -> Image:
    """Draw a face as a 178×218 RGB picture."""
    from PIL import Image

    canvas = Image.new("RGB", (1, 2), face.wall[0])
    canvas.putpixel((0, 1), face.wall[1])
    canvas = canvas.resize((1, FINE * HEIGHT), Image.Resampling.BILINEAR)
    canvas = canvas.resize((FINE * WIDTH, FINE * HEIGHT), Image.Resampling.NEAREST)
    skull, features = Pen(canvas, face, -face.turn / 2, face.width), Pen(canvas, face)
    for part in (_hair_behind, _body, _head, _beard):
        part(skull, face)
    for part in (_eyes, _nose, _mouth):
        part(features, face)
    if face.style != "bald":
        _hair_front(skull, face)
    if face.hat != "none":
        _hat(skull, face)
    if face.glasses != "none":
        _glasses(features, face)
    return _lit(canvas.reduce(FINE), face)


def encode(face: Face) -> bytes:
    """Draw a face as a JPEG file that says whose it is."""
    file = io.BytesIO()
    draw(face).save(file, "JPEG", quality=90, comment=MARK)
    return file.getvalue()
