"""Drawing primitives of the synthetic dataset.

Images are float32 (H, W, 3) from 0 to 255; coordinates are (x, y) in pixels, from the corner of the first pixel.
"""

from __future__ import annotations

import cv2
import numpy as np

CLASS_NAMES = ("circle", "square", "triangle", "star")

_SUBPIXELS = 4  # per pixel and axis
_SHIFT = 8  # fractional bits of OpenCV's fixed-point coordinates
_TEXTURES = ("dots", "checks", "stripes", "gradient", "noise")
_TYPICAL_TEXTURE = dict(zip(CLASS_NAMES, _TEXTURES, strict=False))


def outline(class_name: str, diameter: float, angle: float, stretch: float) -> np.ndarray:
    """Returns the (K, 2) corners of a shape around (0, 0).

    Args:
        class_name: one of ``CLASS_NAMES``.
        diameter: of the circumscribed circle, in pixels.
        angle: in radians.
        stretch: scale of one axis before the rotation.
    """
    if class_name == "circle":
        turns, radii = np.arange(64) / 64, np.ones(64)
    elif class_name == "star":
        turns, radii = np.arange(10) / 10, np.tile([1.0, 0.45], 5)
    else:
        corners = {"square": 4, "triangle": 3}[class_name]
        # The offset lays the square's sides along the axes, so that stretching gives a rectangle.
        turns, radii = (np.arange(corners) + 0.5) / corners, np.ones(corners)
    points = np.stack([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], axis=1) * radii[:, None]
    points *= [diameter / 2, diameter / 2 * stretch]
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def coverage(points: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns the share of each pixel that a (K, 2) polygon covers, float32 (h, w), and its left and top pixel."""
    left, top = (int(v) for v in np.floor(points.min(axis=0)) - 1)
    right, bottom = (int(v) for v in np.ceil(points.max(axis=0)) + 1)
    canvas = np.zeros(((bottom - top) * _SUBPIXELS, (right - left) * _SUBPIXELS), np.uint8)
    # OpenCV's coordinates are of subpixel centers.
    fixed = np.round(((points - (left, top)) * _SUBPIXELS - 0.5) * 2**_SHIFT).astype(np.int32)
    cv2.fillPoly(canvas, [fixed], 255, lineType=cv2.LINE_8, shift=_SHIFT)
    alpha = cv2.resize(canvas, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    return alpha.astype(np.float32) / 255, (left, top)


def texture(rng: np.random.Generator, class_name: str, height: int, width: int, colors: np.ndarray) -> np.ndarray:
    """Draws a (height, width, 3) pattern in (2, 3) colors, with a probability of 3/4 the class's typical one."""
    kind = _TYPICAL_TEXTURE[class_name] if rng.random() < 0.75 else rng.choice(_TEXTURES)
    angle, phases = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi, 2)
    period = max(3.5, rng.uniform(0.12, 0.4) * max(height, width))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    waves = [np.sin(2 * np.pi * axis / period + phase) for axis, phase in zip((u, v), phases, strict=True)]
    sharpness = period / np.pi  # edges about a pixel wide
    if kind == "stripes":
        mix = np.clip(0.5 + 0.5 * sharpness * waves[0], 0, 1)
    elif kind == "checks":
        mix = np.clip(0.5 + 0.5 * sharpness * waves[0] * waves[1], 0, 1)
    elif kind == "dots":
        mix = np.clip(0.5 + 0.5 * sharpness * (waves[0] + waves[1] - 0.5), 0, 1)
    elif kind == "gradient":
        mix = (u - u.min()) / max(float(np.ptp(u)), 1.0)
    else:
        mix = _smooth_noise(rng, height, width, cells=max(2, round(max(height, width) / period)))[..., 0]
    return colors[0] + np.asarray(mix, np.float32)[..., None] * (colors[1] - colors[0])


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draws a square image without objects of the classes: a gradient, noise, thin ellipses and bent lines."""
    colors = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    mix = 0.5 + 0.7 * (x * np.cos(angle) + y * np.sin(angle))
    image = colors[0] + mix[..., None] * (colors[1] - colors[0])
    for cells, strength in ((int(rng.integers(3, 7)), 110.0), (int(rng.integers(12, 33)), 45.0)):
        image += rng.uniform(0.2, 1.0) * strength * (_smooth_noise(rng, size, size, cells, channels=3) - 0.5)
    image = np.ascontiguousarray(np.clip(image, 0, 255), dtype=np.uint8)
    for _ in range(int(rng.integers(0, 5))):
        center, length = rng.uniform(0, size, 2), rng.uniform(0.06, 0.3) * size
        half_width = length / 2 / rng.uniform(3, 6)
        box = (tuple(map(float, center)), (length, 2 * half_width), float(rng.uniform(0, 180)))
        cv2.ellipse(image, box, _color(rng), -1, cv2.LINE_AA)
    for _ in range(int(rng.integers(2, 9))):
        steps = rng.normal(0, 0.12 * size, (int(rng.integers(2, 6)), 2))
        path = np.cumsum(np.vstack([rng.uniform(0, size, 2), steps]), axis=0)
        thickness = max(1, round(size / 128 * rng.uniform(0.6, 3.4)))
        fixed = np.round(path * 2**_SHIFT).astype(np.int32)
        cv2.polylines(image, [fixed], False, _color(rng), thickness, cv2.LINE_AA, _SHIFT)
    return image.astype(np.float32)


def contrasting_colors(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    """Returns (2, 3) colors: of eight random pairs, the one with the most contrast to the ground and to each other."""
    pairs = rng.uniform(0, 255, (8, 2, 3)).astype(np.float32)
    to_ground = np.linalg.norm(pairs - ground, axis=2).min(axis=1)
    to_each_other = np.linalg.norm(pairs[:, 0] - pairs[:, 1], axis=1)
    return pairs[np.argmax(np.minimum(to_ground, to_each_other))]


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cells: int, channels: int = 1) -> np.ndarray:
    grid = rng.random((cells, cells, channels), dtype=np.float32)
    fine = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(fine.reshape(height, width, channels), 0, 1)


def _color(rng: np.random.Generator) -> tuple[float, float, float]:
    return tuple(float(v) for v in rng.uniform(0, 255, 3))


def mask_to_polygons(mask: np.ndarray) -> list[list[float]] | None:
    """Traces a mask along pixel edges, so that pycocotools draws exactly the mask from the polygons.

    Args:
        mask: (H, W) bool or uint8.

    Returns:
        ``[x0, y0, x1, y1, ...]`` in pixels for each 8-connected part; None if a part has a hole, which COCO's polygons
        cannot express.
    """
    mask = np.asarray(mask, np.uint8)
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
        return []
    # OpenCV's contours run through pixel centers. At twice the size, (u + 1) // 2 is the nearest pixel edge of the
    # original: the left half of a pixel has the even coordinate, the right half the odd one.
    doubled = np.repeat(np.repeat(mask[top : top + height, left : left + width], 2, axis=0), 2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if (hierarchy[0, :, 3] >= 0).any():
        return None
    polygons = []
    for contour in contours:
        points = (contour[:, 0] + 1) // 2
        points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
        before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
        # Directions, not slopes, because the path may turn back where a part touches itself.
        is_corner = (np.sign(before) != np.sign(after)).any(axis=1)
        # Floats, because detectron2's transforms would truncate integers.
        polygons.append((points[is_corner] + (left, top)).astype(float).ravel().tolist())
    return polygons
