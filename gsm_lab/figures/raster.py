"""Pictures of a layer's weights as PNG of few colours, an entry a pixel: small enough to be sent at every frame.

A picture is made of numbers of colours, uint8 [h, w], and a palette.
"""

from __future__ import annotations

import base64
import io
import math

import numpy as np
from PIL import Image
from plotly.colors import sample_colorscale, unlabel_rgb

COUNTS = 62  # colours for counts of 1 and more
LEVELS = 5  # of the size of a kept weight, on each side of zero
NEAR_ZERO, SMALL = 1e-3, 1e-2  # |w| of what goes: under the first flat, under the second faint

# Of a map: colour 0 where there is no input, 1 where none of its weights is kept, then Cividis, which ends before it
# gets as light as the white of 1.
_NO_INPUT, _NONE = (200, 200, 200), (255, 255, 255)
_CIVIDIS = sample_colorscale("Cividis", np.linspace(0, 0.85, COUNTS))
MAP = (_NO_INPUT, _NONE, *(tuple(map(round, unlabel_rgb(colour))) for colour in _CIVIDIS))

# Of units: 0 between them; then weights, the most negative first. By lightness: kept negative ones 4 to 36, what goes
# 49 to 63 (flat where it is near zero: 56), kept positive ones 76 to 98; so it can be read in grey.
UNITS = (
    (255, 255, 255),
    (5, 13, 38), (9, 29, 66), (16, 46, 94), (27, 64, 120), (42, 83, 145),
    (117, 117, 117), (126, 126, 126), (134, 134, 134), (142, 142, 142), (152, 152, 152),
    (240, 180, 70), (246, 200, 100), (250, 217, 136), (253, 233, 178), (255, 248, 226),
)  # fmt: skip
ZERO = 1 + LEVELS + 2  # the colour of what is near zero
GAP = 1  # pixels between units


def levels(counts: np.ndarray, most: int) -> np.ndarray:
    """Colours of `MAP` for a map of counts, -1 where there is no input; `most` and more have the last one."""
    shade = 2 + (np.clip(counts, 1, most) - 1) * (COUNTS - 1) // max(1, most - 1)
    return np.where(counts < 0, 0, np.where(counts == 0, 1, shade)).astype(np.uint8)


def shades(weights: np.ndarray, kept: np.ndarray, largest: float) -> np.ndarray:
    """Colours of `UNITS` for weights: of kept ones by sign and by |w| on a linear scale that ends at `largest`."""
    size = np.abs(weights)
    level = np.minimum(1 + (size * (LEVELS / largest)).astype(np.int8, casting="unsafe"), LEVELS) if largest else LEVELS
    goes = (size >= NEAR_ZERO).astype(np.int8) + (size >= SMALL)
    away = np.where(kept, 2 + level, goes)
    return (ZERO + np.where(weights < 0, -away, away)).astype(np.uint8)


def columns(k: int, h: int, w: int, wide: float = 1.5) -> int:
    """In how many columns k pictures [h, w] make one about `wide` times as wide as high, with few places left over."""
    best = math.sqrt(wide * k * (h + GAP) / (w + GAP))
    tried = range(max(1, math.floor(0.75 * best)), min(k, math.ceil(1.25 * best)) + 1)
    return min(tried, key=lambda n: (-(-k // n) * n - k, abs(n - best)), default=k)


def mosaic(pictures: np.ndarray, across: int) -> np.ndarray:
    """Pictures uint8 [k, h, w] in rows of `across`, with a gap of colour 0 around each."""
    k, h, w = pictures.shape
    down = -(-k // across)
    room = np.zeros((down * across, h + GAP, w + GAP), np.uint8)
    room[:k, GAP:, GAP:] = pictures
    joined = room.reshape(down, across, h + GAP, w + GAP).transpose(0, 2, 1, 3).reshape(down * (h + GAP), -1)
    return np.pad(joined, ((0, GAP), (0, GAP)))


def corners(k: int, h: int, w: int, across: int) -> tuple[np.ndarray, np.ndarray]:
    """Column and row of the upper left pixel of each picture in a mosaic: int64 [k] each."""
    at = np.arange(k)
    return GAP + at % across * (w + GAP), GAP + at // across * (h + GAP)


def png(colours: np.ndarray, palette: tuple[tuple[int, int, int], ...]) -> str:
    """A picture, uint8 [h, w], as the source of an image: PNG, base64."""
    image, buffer = Image.fromarray(colours, "L"), io.BytesIO()
    image.putpalette(bytes(channel for colour in palette for channel in colour))  # it is of mode P from here on
    image.save(buffer, "png", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def css(colour: tuple[int, int, int]) -> str:
    """A colour as a style sheet has it."""
    return "rgb({},{},{})".format(*colour)
