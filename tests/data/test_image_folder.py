"""Unlabelled images: what is found, how it is cut, and broken files on the way."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lift_det.data import DatasetError, ImageFolder, build_image_folder_loader

REPOSITORY = Path(__file__).resolve().parents[2]
PHOTOGRAPHS = REPOSITORY.parent / "shared" / "datasets" / "imagenet_mini" / "val"


def write_image(path: Path, width: int = 50, height: int = 40, colour: tuple[int, int, int] = (200, 30, 90)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), colour, np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Seven images at several depths, of which a/broken.jpg and z.png cannot be read."""
    for name in ("b.jpg", "a/x.PNG", "a/deep/er/y.jpeg", "c/w.webp", "d.bmp"):
        write_image(tmp_path / name)
    (tmp_path / "a" / "broken.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:300])
    (tmp_path / "z.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "a" / "._x.png").write_bytes(b"a Mac's resource fork")
    return tmp_path


READABLE = ["a/deep/er/y.jpeg", "a/x.PNG", "b.jpg", "c/w.webp", "d.bmp"]


def relative(root: Path, items: list[dict]) -> list[str]:
    return [Path(item["file_name"]).relative_to(root).as_posix() for item in items]


def test_finds_images_at_any_depth_in_order(root: Path) -> None:
    dataset = ImageFolder(root, 32)
    found = [Path(file).relative_to(root).as_posix() for file in dataset.files]
    assert found == sorted([*READABLE, "a/broken.jpg", "z.png"])
    assert len(dataset) == 7


def test_links_are_followed_but_not_in_circles(root: Path) -> None:
    (root / "a" / "deep" / "up").symlink_to(root, target_is_directory=True)
    write_image(root.parent / f"{root.name}_outside" / "photo.jpg")
    (root / "linked").symlink_to(root.parent / f"{root.name}_outside", target_is_directory=True)
    files = ImageFolder(root, 32).files
    assert len(files) == 8 and str(root / "linked" / "photo.jpg") in files


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, train: bool, mode: str) -> None:
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    Image.fromarray(np.full((37, 61, 3), (120, 120, 120), np.uint8)).convert(mode).save(path)
    item = ImageFolder(tmp_path, 24, train=train)[0]
    assert item["image"].shape == (3, 24, 24) and item["image"].dtype == torch.uint8
    assert item["image"].is_contiguous() and item["file_name"] == str(path)
    assert (item["image"].float().mean(dim=(1, 2)) - 120).abs().max() <= 4
    if mode != "P":  # a palette is dithered; the other modes keep the colour of every pixel
        assert (item["image"].int() - 120).abs().max() <= 4


def test_channels_are_red_green_blue(tmp_path: Path) -> None:
    write_image(tmp_path / "image.png", colour=(250, 128, 3))
    assert ImageFolder(tmp_path, 8, train=False)[0]["image"][:, 4, 4].tolist() == [250, 128, 3]


def test_evaluation_keeps_the_centre(tmp_path: Path) -> None:
    # 32 x 96 with a middle third of its own: the short side stays 32, and the crop is that third, exactly.
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[:, 32:64] = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    Image.fromarray(pixels).save(tmp_path / "image.png")
    item = ImageFolder(tmp_path, 32, train=False)[0]
    np.testing.assert_array_equal(item["image"].permute(1, 2, 0).numpy(), pixels[:, 32:64])


def test_training_crops_and_flips_by_torchs_seed(tmp_path: Path) -> None:
    ramp = np.zeros((64, 64, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(64), np.arange(64)[:, None]
    Image.fromarray(ramp).save(tmp_path / "image.png")
    dataset = ImageFolder(tmp_path, 16, crop_scale=(0.25, 1.0))
    torch.manual_seed(0)
    first = [dataset[0]["image"].float() for _ in range(200)]
    torch.manual_seed(0)
    assert all(torch.equal(dataset[0]["image"].float(), image) for image in first)
    # Red grows by one with each source column, so its slope is the crop's width, negative where it was flipped.
    slopes = torch.stack([(image[0, :, 12] - image[0, :, 3]).mean() * 16 / 9 for image in first])
    heights = torch.stack([(image[1, 12] - image[1, 3]).mean() * 16 / 9 for image in first])
    assert 60 <= (slopes < 0).sum() <= 140
    assert (heights > 0).all(), "nothing is turned upside down"
    shares = slopes.abs() * heights / 64**2
    assert 0.2 < shares.min() < 0.35 and 0.85 < shares.max() < 1.1


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(np.concatenate([np.zeros((8, 8, 3)), np.full((8, 8, 3), 255)], axis=1).astype(np.uint8))
    exif = Image.Exif()
    exif[274] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "image.png", exif=exif)
    shown = ImageFolder(tmp_path, 8, train=False).read(0)["image"]
    assert shown[:, 0].float().mean() < 40 and shown[:, -1].float().mean() > 215


def test_broken_files_are_warned_about_once_and_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = ImageFolder(root, 32)
    with caplog.at_level(logging.WARNING, logger="detectron2.lift_det.data.image_folder"):
        for _ in range(3):
            items = [dataset[i] for i in range(len(dataset))]
    assert set(relative(root, items)) == set(READABLE)
    # The place of a broken file is taken by the next one; the last one's by the first.
    assert relative(root, items) == [READABLE[0], *READABLE, READABLE[0]]
    assert dataset.num_broken == 2
    assert len(caplog.records) == 2
    assert "broken.jpg" in caplog.text and "Truncated" in caplog.text and "0 bytes" in caplog.text
    with pytest.raises(IndexError):
        dataset[7]


def test_only_broken_files_are_an_error(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).write_bytes(b"nothing")
    for train in (True, False):
        dataset = ImageFolder(tmp_path, 32, train=train)
        with pytest.raises(DatasetError, match="None of the 2 image files"):
            next(iter(build_image_folder_loader(dataset, 2)))


def test_missing_and_empty_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere' does not exist.*\.jpeg"):
        ImageFolder(tmp_path / "nowhere", 32)
    (tmp_path / "readme.txt").write_text("none here")
    with pytest.raises(DatasetError, match=r"holds no image at any depth.*\.jpeg"):
        ImageFolder(tmp_path, 32)
    with pytest.raises(DatasetError, match="is not a folder"):
        ImageFolder(tmp_path / "readme.txt", 32)
    with pytest.raises(ValueError, match="image_size"):
        ImageFolder(tmp_path, 0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_loader_gives_each_readable_image_once_in_order(root: Path, num_workers: int) -> None:
    dataset = ImageFolder(root, 32, train=False)
    batches = list(build_image_folder_loader(dataset, 3, num_workers=num_workers))
    assert relative(root, list(itertools.chain(*batches))) == READABLE
    assert all(isinstance(batch, list) and 1 <= len(batch) <= 3 for batch in batches)
    assert dataset.num_broken == 2, "what workers find, the main process knows"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_loader_is_endless_and_follows_its_seed(root: Path, num_workers: int) -> None:
    def first_batches(seed: int) -> list[dict]:
        torch.manual_seed(3)
        loader = build_image_folder_loader(ImageFolder(root, 32), 4, num_workers=num_workers, seed=seed)
        batches = list(itertools.islice(iter(loader), 6))
        assert [len(batch) for batch in batches] == [4] * 6
        return list(itertools.chain(*batches))

    once, again, other = first_batches(1), first_batches(1), first_batches(2)
    assert relative(root, once) == relative(root, again) != relative(root, other)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(once, again, strict=True))
    assert set(relative(root, once)) == set(READABLE)


def test_batch_size_is_divided_among_processes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("lift_det.data.image_folder", "detectron2.data.build"):
        monkeypatch.setattr(f"{module}.get_world_size", lambda: 2)
    for train in (True, False):
        dataset = ImageFolder(root, 32, train=train)
        assert len(next(iter(build_image_folder_loader(dataset, 6, seed=0)))) == 3
        with pytest.raises(ValueError, match="multiple of the 2 processes, got 5"):
            build_image_folder_loader(dataset, 5)


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="needs photographs in ../shared/datasets/imagenet_mini")
def test_real_photographs() -> None:
    dataset = ImageFolder(PHOTOGRAPHS, 224, train=False)
    assert len(dataset) == 100
    for batch in itertools.islice(iter(build_image_folder_loader(dataset, 8)), 3):
        images = torch.stack([item["image"] for item in batch]).float()
        assert images.shape == (8, 3, 224, 224)
        assert 20 < images.mean() < 235 and images.std() > 20
    assert dataset.num_broken == 0
