"""Image folders: search, augmentation, order of samples, and broken files."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf
from PIL import Image

from lift_det.data import DatasetError, ImageFolder, build_image_folder_loader

READABLE = ["a/deep/er/y.jpeg", "a/x.PNG", "b.jpg", "c/w.webp", "d.bmp"]


def write_image(path: Path, pixels: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 50, 3), (200, 30, 90), np.uint8) if pixels is None else pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Seven images in several folders, of which a/broken.jpg and z.png cannot be read."""
    for name in READABLE:
        write_image(tmp_path / name)
    (tmp_path / "a" / "broken.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:300])
    (tmp_path / "z.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "a" / "._x.png").write_bytes(b"a Mac's resource fork")
    return tmp_path


@pytest.fixture
def textured(tmp_path: Path) -> Path:
    """Five images of noise and a broken one."""
    for number in range(5):
        write_image(tmp_path / f"{number}.png", np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8))
    (tmp_path / "2b.png").write_bytes(b"broken")
    return tmp_path


def ramp(height: int, width: int) -> np.ndarray:
    """An image whose red is the column and whose green is the row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    return pixels


def samples(dataset: ImageFolder, count: int, seed: int = 0) -> list[torch.Tensor]:
    return [dataset.sample(n, seed, 4)["image"] for n in range(count)]


def relative(root: Path, files: list[str]) -> list[str]:
    return [Path(file).relative_to(root).as_posix() for file in files]


def test_finds_images_at_any_depth_in_order(root: Path) -> None:
    assert relative(root, ImageFolder(root, 32).files) == sorted([*READABLE, "a/broken.jpg", "z.png"])
    nested = ImageFolder(OmegaConf.create([str(root / "c"), str(root), str(root / "a")]), 32)
    assert len(nested) == 7 and nested.files[0] == str(root / "c" / "w.webp"), "a folder inside another counts once"


def test_random_resized_crops_and_flips(tmp_path: Path) -> None:
    write_image(tmp_path / "image.png", ramp(64, 64))
    images = [image.float() for image in samples(ImageFolder(tmp_path, 16, crop_scale=(0.25, 1.0)), 200)]
    # The slope of red is the width of the crop, negative if it is flipped.
    widths = torch.stack([(image[0, :, 12] - image[0, :, 3]).mean() * 16 / 9 for image in images])
    heights = torch.stack([(image[1, 12] - image[1, 3]).mean() * 16 / 9 for image in images])
    assert 60 <= (widths < 0).sum() <= 140 and (heights > 0).all()
    shares = widths.abs() * heights / 64**2
    assert 0.2 < shares.min() < 0.35 and 0.85 < shares.max() < 1.1
    options = {"crop_scale": (1, 1), "crop_ratio": (1, 1), "flip": 1.0}
    flipped = torch.from_numpy(ramp(64, 64)[:, ::-1].copy()).permute(2, 0, 1)
    assert torch.equal(ImageFolder(tmp_path, 64, **options)[0]["image"], flipped)


def test_square_and_center_crops_keep_the_resolution(tmp_path: Path) -> None:
    pixels = ramp(64, 192)
    write_image(tmp_path / "image.png", pixels)
    lefts = set()
    for image in samples(ImageFolder(tmp_path, 64, crop="square", flip=0.0), 30):
        lefts.add(left := int(image[0, 0, 0]))
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pixels[:, left : left + 64])
    assert len(lefts) > 20 and min(lefts) < 30 and max(lefts) > 98
    item = ImageFolder(tmp_path, 64, train=False)[0]
    assert item["image"].dtype == torch.uint8 and item["image"].is_contiguous() and item["index"] == 0
    for image in [*samples(ImageFolder(tmp_path, 64, crop="center", flip=0.0), 2), item["image"]]:
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pixels[:, 64:128])


def test_colors_change_as_configured(tmp_path: Path) -> None:
    color = torch.tensor([120, 100, 80])
    write_image(tmp_path / "image.png", np.full((40, 50, 3), color.tolist(), np.uint8))

    def colors(count: int, **jitter: float) -> torch.Tensor:
        options = {"crop": "center", "flip": 0.0, "color_jitter": OmegaConf.create(jitter)}
        return torch.stack([image[:, 0, 0] for image in samples(ImageFolder(tmp_path, 8, **options), count)])

    factors = colors(40, brightness=0.2) / color
    assert 0.78 < factors.min() < 0.9 and 1.1 < factors.max() < 1.21
    assert (factors.amax(1) - factors.amin(1)).max() < 0.02
    assert 10 <= (colors(100, hue=0.2, saturation=0.2, probability=0.3) != color).any(1).sum() <= 50


def test_each_batch_has_one_of_several_sizes(root: Path) -> None:
    sizes = []
    for batch in itertools.islice(build_image_folder_loader(ImageFolder(root, [16, 24, 32]), 4, seed=0), 30):
        assert len({item["image"].shape for item in batch}) == 1
        sizes.append(batch[0]["image"].shape[1])
    assert min(Counter(sizes)[size] for size in (16, 24, 32)) >= 3 and len(set(sizes[:9])) > 1


def test_views(textured: Path) -> None:
    dataset = ImageFolder(textured, 16, views=2)
    seen: dict[tuple[int, int], list[torch.Tensor]] = {}
    for n in range(6 * 6):  # six epochs
        item = dataset.sample(n, 3, 4)
        assert item["view"] == n // 6 % 2 and dataset.files[item["index"]] == item["file_name"]
        seen.setdefault((item["index"], item["view"]), []).append(item["image"])
    for images in seen.values():
        assert len(images) >= 3 and all(torch.equal(image, images[0]) for image in images)
    assert len({images[0].numpy().tobytes() for images in seen.values()}) == 2 * 5, "one of the six is broken"
    assert not any(torch.equal(dataset.sample(0, 4, 4)["image"], images[0]) for images in seen.values())


def stream(root: Path, batches: int, start: int | None = None, **options: int) -> list[list[tuple[str, bytes]]]:
    """The first batches of a loader for a trainer at iteration ``start``, or without a trainer."""
    dataset = ImageFolder(root, [8, 12], color_jitter={"brightness": 0.3, "hue": 0.1, "probability": 0.5})
    loader = build_image_folder_loader(dataset, **{"total_batch_size": 4, "seed": 0, **options})
    with contextlib.nullcontext() if start is None else EventStorage(start):
        result = list(itertools.islice(loader, batches))
    return [[(item["file_name"], item["image"].numpy().tobytes()) for item in batch] for batch in result]


def test_workers_and_interruptions_do_not_change_the_stream(textured: Path) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    whole = stream(textured, 9)
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]
    assert len(set(itertools.chain(*whole))) == 36, "all samples differ"
    torch.manual_seed(1)
    for workers, start in ((0, 0), (0, 4), (1, 1), (2, 3)):
        assert stream(textured, 9 - start, start=start, num_workers=workers) == whole[start:]
    assert stream(textured, 9, seed=1) != whole


def test_processes_share_the_batches(textured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stream(textured, 5)
    monkeypatch.setattr("lift_det.data.image_folder.get_world_size", lambda: 2)
    halves = []
    for rank in (0, 1):
        monkeypatch.setattr("lift_det.data.image_folder.get_rank", lambda rank=rank: rank)
        halves.append(stream(textured, 5))
    assert [len(batch) for batch in halves[1]] == [2] * 5
    assert [first + second for first, second in zip(*halves, strict=True)] == whole
    for train in (True, False):
        with pytest.raises(ValueError, match="5"):
            build_image_folder_loader(ImageFolder(textured, 8, train=train), 5)


def test_every_image_once_in_each_epoch(tmp_path: Path) -> None:
    for number in range(10):
        write_image(tmp_path / f"{number}.png")
    batches = itertools.islice(build_image_folder_loader(ImageFolder(tmp_path, 8), 4, seed=0), 10)
    order = [item["index"] for item in itertools.chain(*batches)]
    epochs = [tuple(order[start : start + 10]) for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and len(set(epochs)) == 4


@pytest.mark.parametrize("seed", [None, -1])
def test_without_a_seed_one_is_drawn(root: Path, seed: int | None) -> None:
    def order() -> list[int]:
        loader = build_image_folder_loader(ImageFolder(root, 8), 7, seed=seed)
        return [item["index"] for batch in itertools.islice(loader, 3) for item in batch]

    np.random.seed(0)  # detectron2 draws shared seeds from it
    first, second = order(), order()
    np.random.seed(0)
    assert order() == first != second


def test_holdout_splits_the_images(root: Path) -> None:
    held_out = ImageFolder(root, 8, train=False, holdout=3).files
    assert len(held_out) == 3 and set(held_out).isdisjoint(ImageFolder(root, 8, holdout=3).files)
    for holdout in (1, 8):
        with pytest.raises(ValueError, match=f"{holdout}"):
            ImageFolder(root, 8, holdout=holdout)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"crop": "round"}, "crop"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.5, 1.5)}, "crop_scale"),
        ({"crop_ratio": (2.0, 1.0)}, "crop_ratio"),
        ({"flip": 50}, "flip"),
        ({"color_jitter": {"hue": 0.6}}, "hue"),
        ({"views": -1}, "views"),
        ({"image_size": []}, "image_size"),
        ({"image_size": [8, 16], "views": 2}, "image_size"),
        ({"image_size": [8, 16], "train": False}, "image_size"),
    ],
)
def test_arguments_out_of_range(root: Path, options: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ImageFolder(root, **{"image_size": 8, **options})


def test_broken_files_are_logged_once_and_replaced(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = ImageFolder(root, 32)
    with caplog.at_level(logging.WARNING, logger="detectron2.lift_det.data.image_folder"):
        for _ in range(3):
            items = [dataset[i] for i in range(len(dataset))]
    # The next readable file takes the place of a broken one.
    assert relative(root, [item["file_name"] for item in items]) == [READABLE[0], *READABLE, READABLE[0]]
    assert len(caplog.records) == 2 and "broken.jpg" in caplog.text and "z.png" in caplog.text
    with pytest.raises(IndexError):
        dataset[7]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_gives_each_readable_image_once_in_order(root: Path, num_workers: int) -> None:
    dataset = ImageFolder(root, 32, train=False)
    batches = list(build_image_folder_loader(dataset, 3, num_workers=num_workers))
    assert relative(root, [item["file_name"] for item in itertools.chain(*batches)]) == READABLE
    assert all(isinstance(batch, list) and 1 <= len(batch) <= 3 for batch in batches)


def test_folders_without_images_are_errors(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("none here")
    for root in (tmp_path / "nowhere", tmp_path, tmp_path / "readme.txt"):
        with pytest.raises(DatasetError, match=root.name):
            ImageFolder(root, 32)
    with pytest.raises(DatasetError):
        ImageFolder([], 32)
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).write_bytes(b"nothing")
    for train in (True, False):
        with pytest.raises(DatasetError, match=r"2 .*a\.jpg"):
            next(iter(build_image_folder_loader(ImageFolder(tmp_path, 32, train=train), 2)))
