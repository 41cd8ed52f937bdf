"""Drawing for the synthetic set: outlines of the four classes, textures, and backgrounds that hold none of them.

Every function draws from the ``numpy.random.Generator`` it is given and from nothing else.
Images are float32 (H, W, 3) from 0 to 255; coordinates are (x, y) in pixels, 0 at the corner of the first pixel.
"""

from __future__ import annotations

import cv2
import numpy as np

CLASS_NAMES = ("circle", "square", "triangle", "star")

# Each pixel's coverage is measured on this many subpixels a side.
_SUBPIXELS = 4
# cv2.fillPoly takes fixed-point coordinates with this many fractional bits.
_SHIFT = 8


def outline(class_name: str, diameter: float, angle: float, stretch: float) -> np.ndarray:
    """Returns the outline of a shape around (0, 0).

    Args:
        class_name: one of ``CLASS_NAMES``.
        diameter: of the circle that the shape is inscribed in, in pixels.
        angle: rotation in radians.
        stretch: factor of one of the shape's own axes before it is rotated; 1 keeps circles round and squares square.

    Returns:
        (K, 2) float64 corners, in order.
    """
    if class_name == "circle":
        turns, radii = np.arange(64) / 64, np.ones(64)
    elif class_name == "star":
        turns, radii = np.arange(10) / 10, np.tile([1.0, 0.45], 5)
    else:
        corners = {"square": 4, "triangle": 3}[class_name]
        # Half a corner's turn lays a square's sides along the axes, so that the stretch makes a rectangle, not a kite.
        turns, radii = (np.arange(corners) + 0.5) / corners, np.ones(corners)
    points = np.stack([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], axis=1) * radii[:, None]
    points *= [diameter / 2, diameter / 2 * stretch]
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def coverage(points: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Measures how much of each pixel a polygon covers.

    Args:
        points: (K, 2) corners in pixels; may lie outside of any image.

    Returns:
        ``(alpha, (left, top))``: float32 (h, w) from 0 to 1 over the polygon's box, and the pixel at its corner.
    """
    left, top = (int(v) for v in np.floor(points.min(axis=0)) - 1)
    right, bottom = (int(v) for v in np.ceil(points.max(axis=0)) + 1)
    canvas = np.zeros(((bottom - top) * _SUBPIXELS, (right - left) * _SUBPIXELS), np.uint8)
    # cv2 puts coordinates at subpixel centres, hence the half.
    fixed = np.round(((points - (left, top)) * _SUBPIXELS - 0.5) * 2**_SHIFT).astype(np.int32)
    cv2.fillPoly(canvas, [fixed], 255, lineType=cv2.LINE_8, shift=_SHIFT)
    alpha = cv2.resize(canvas, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    return alpha.astype(np.float32) / 255, (left, top)


# Texture hints at the class, as it does in photographs: so many objects have that of their class, the others any.
_TEXTURES = ("dots", "checks", "stripes", "gradient", "noise")
_TYPICAL_TEXTURE = dict(zip(CLASS_NAMES, _TEXTURES, strict=False))
_TYPICAL_SHARE = 0.75


def texture(rng: np.random.Generator, class_name: str, height: int, width: int, colours: np.ndarray) -> np.ndarray:
    """Mixes two colours by one of five patterns: stripes, checks, dots, a gradient, smooth noise.

    Args:
        class_name: whose typical texture it is, in three of four objects.
        height, width: size to fill, in pixels.
        colours: (2, 3) from 0 to 255.

    Returns:
        float32 (height, width, 3).
    """
    kind = _TYPICAL_TEXTURE[class_name] if rng.random() < _TYPICAL_SHARE else rng.choice(_TEXTURES)
    angle, phases = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi, 2)
    period = max(3.5, rng.uniform(0.12, 0.4) * max(height, width))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    waves = [np.sin(2 * np.pi * axis / period + phase) for axis, phase in zip((u, v), phases, strict=True)]
    # The factor sharpens a wave to an edge about a pixel wide, which is what antialiasing would leave of a step.
    sharp = period / np.pi
    if kind == "stripes":
        mix = np.clip(0.5 + 0.5 * sharp * waves[0], 0, 1)
    elif kind == "checks":
        mix = np.clip(0.5 + 0.5 * sharp * waves[0] * waves[1], 0, 1)
    elif kind == "dots":
        mix = np.clip(0.5 + 0.5 * sharp * (waves[0] + waves[1] - 0.5), 0, 1)
    elif kind == "gradient":
        mix = (u - u.min()) / max(float(np.ptp(u)), 1.0)
    else:
        mix = smooth_noise(rng, height, width, cells=max(2, round(max(height, width) / period)))[..., 0]
    return colours[0] + np.asarray(mix, np.float32)[..., None] * (colours[1] - colours[0])


def smooth_noise(rng: np.random.Generator, height: int, width: int, cells: int, channels: int = 1) -> np.ndarray:
    """Returns float32 (height, width, channels) noise from 0 to 1 that varies over about ``1 / cells`` of the size."""
    grid = rng.random((cells, cells, channels), dtype=np.float32)
    fine = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(fine.reshape(height, width, channels), 0, 1)


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draws a cluttered square image without any of the classes.

    A gradient of two colours and two scales of noise, then strokes (bent lines) and elongated ellipses: things with
    edges and colour, to which a detector must not answer.

    Args:
        size: side in pixels.

    Returns:
        float32 (size, size, 3).
    """
    colours = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    mix = 0.5 + 0.7 * (x * np.cos(angle) + y * np.sin(angle))
    image = colours[0] + mix[..., None] * (colours[1] - colours[0])
    for cells, strength in ((int(rng.integers(3, 7)), 110.0), (int(rng.integers(12, 33)), 45.0)):
        image += rng.uniform(0.2, 1.0) * strength * (smooth_noise(rng, size, size, cells, channels=3) - 0.5)
    image = np.ascontiguousarray(np.clip(image, 0, 255), dtype=np.uint8)

    scale = size / 128
    for _ in range(int(rng.integers(0, 5))):
        centre, length = rng.uniform(0, size, 2), rng.uniform(0.06, 0.3) * size
        # At three to one and more nobody takes an ellipse for a disc.
        axes = (length / 2, length / 2 / rng.uniform(3, 6))
        box = (tuple(map(float, centre)), (2 * axes[0], 2 * axes[1]), float(rng.uniform(0, 180)))
        cv2.ellipse(image, box, _colour(rng), -1, cv2.LINE_AA)
    for _ in range(int(rng.integers(2, 9))):
        steps = rng.normal(0, 0.12 * size, (int(rng.integers(2, 6)), 2))
        path = np.cumsum(np.vstack([rng.uniform(0, size, 2), steps]), axis=0)
        thickness = max(1, round(scale * rng.uniform(0.6, 3.4)))
        fixed = np.round(path * 2**_SHIFT).astype(np.int32)
        cv2.polylines(image, [fixed], False, _colour(rng), thickness, cv2.LINE_AA, _SHIFT)
    return image.astype(np.float32)


def _colour(rng: np.random.Generator) -> tuple[float, float, float]:
    return tuple(float(v) for v in rng.uniform(0, 255, 3))
