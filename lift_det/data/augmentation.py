"""Crops, flips and colours that are functions of numbers: nothing here reads or moves a global random state."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tvf

CROPS = ("resized", "square", "center")


def seeded_generator(*key: int | str) -> torch.Generator:
    """Returns a generator that depends on all of ``key``; neighbouring numbers give unrelated streams."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    # torch's generator on the CPU takes 32 bits of its seed
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


@dataclass(frozen=True)
class ColorJitter:
    """How far colours are changed at random; factors as torchvision's ``ColorJitter`` takes them.

    ``brightness``, ``contrast`` and ``saturation`` are multiplied by a number within 1 ± the value (never below 0), the
    hue is turned by at most ± ``hue`` of the circle (0 to 0.5), in random order. ``probability`` is that of an image
    being changed at all.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 0:
                raise ValueError(f"color_jitter: {field.name} is negative, {getattr(self, field.name)}.")
        if self.hue > 0.5 or self.probability > 1:
            raise ValueError(
                f"color_jitter: hue is at most 0.5 and probability at most 1, got {self.hue} and {self.probability}."
            )

    @classmethod
    def of(cls, values: ColorJitter | Mapping[str, float] | None) -> ColorJitter | None:
        """Reads a config's mapping; None stays None.

        Raises:
            ValueError: a name that does not exist, or a number out of range.
        """
        if values is None or isinstance(values, cls):
            return values
        names = {field.name for field in fields(cls)}
        if unknown := set(values) - names:
            raise ValueError(f"color_jitter knows {sorted(names)}, not {sorted(unknown)}.")
        return cls(**{name: float(value) for name, value in values.items()})

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        """RGB in, RGB of the same size out."""
        changed = _uniform(generator, 0, 1) < self.probability
        steps = [
            (tvf.adjust_brightness, _uniform(generator, max(0.0, 1 - self.brightness), 1 + self.brightness), 1.0),
            (tvf.adjust_contrast, _uniform(generator, max(0.0, 1 - self.contrast), 1 + self.contrast), 1.0),
            (tvf.adjust_saturation, _uniform(generator, max(0.0, 1 - self.saturation), 1 + self.saturation), 1.0),
            (tvf.adjust_hue, _uniform(generator, -self.hue, self.hue), 0.0),
        ]
        order = torch.randperm(len(steps), generator=generator).tolist()
        if changed:
            for adjust, factor, unchanged in (steps[i] for i in order):
                if factor != unchanged:
                    image = adjust(image, factor)
        return image


@dataclass(frozen=True)
class Augmentation:
    """Makes a square of an image. Every random number comes from the generator that the caller hands in.

    ``crop``: ``"resized"``, a part of random size and shape (``scale``, a share of the area; ``ratio``, width / height)
    resized to the square; ``"square"``, the short side resized to the square's and a square cut out at a random place,
    which keeps the image's resolution; ``"center"``, the same in the middle. All resize bicubically with antialiasing.
    ``flip`` is the probability of a mirror image.
    """

    crop: str = "resized"
    scale: tuple[float, float] = (0.25, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    color_jitter: ColorJitter | None = None

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise ValueError(f"crop must be one of {CROPS}, got {self.crop!r}.")
        if not (len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1] <= 1):
            raise ValueError(f"crop_scale must be two shares 0 < smallest <= largest <= 1, got {self.scale}.")
        if not (len(self.ratio) == 2 and 0 < self.ratio[0] <= self.ratio[1]):
            raise ValueError(f"crop_ratio must be two ratios 0 < smallest <= largest, got {self.ratio}.")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is a probability, got {self.flip}.")

    def __call__(self, image: Image.Image, size: int, generator: torch.Generator) -> Image.Image:
        """An RGB image of any size → one of ``size`` × ``size`` pixels."""
        if self.crop == "resized":
            top, left, height, width = self._part(image.height, image.width, generator)
            image = tvf.resized_crop(image, top, left, height, width, [size, size], InterpolationMode.BICUBIC)
        else:
            image = tvf.resize(image, [size], InterpolationMode.BICUBIC)
            if self.crop == "square":
                top = _integer(generator, image.height - size)
                left = _integer(generator, image.width - size)
                image = tvf.crop(image, top, left, size, size)
            else:
                image = tvf.center_crop(image, [size, size])
        if _uniform(generator, 0, 1) < self.flip:
            image = tvf.hflip(image)
        if self.color_jitter is not None:
            image = self.color_jitter(image, generator)
        return image

    def _part(self, height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of the part to cut out."""
        for _ in range(10):
            area = height * width * _uniform(generator, *self.scale)
            ratio = math.exp(_uniform(generator, *map(math.log, self.ratio)))
            part_height, part_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 1 <= part_height <= height and 1 <= part_width <= width:
                top = _integer(generator, height - part_height)
                return top, _integer(generator, width - part_width), part_height, part_width
        # The image is too long for parts of that area and ratio: the largest one in its middle that has the ratio.
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        part_height, part_width = min(height, round(width / ratio)), min(width, round(height * ratio))
        part_height, part_width = max(1, part_height), max(1, part_width)
        return (height - part_height) // 2, (width - part_width) // 2, part_height, part_width


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def _integer(generator: torch.Generator, largest: int) -> int:
    """One of 0 to ``largest``, both included."""
    return int(torch.randint(largest + 1, (), generator=generator))
