"""Unlabelled images: what is found, how it is cut, and broken files on the way."""

from __future__ import annotations

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
from lift_det.data.augmentation import Augmentation, ColorJitter, seeded_generator
from lift_det.data.image_folder import SampleNumbers

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


@pytest.fixture
def ramps(tmp_path: Path) -> Path:
    """One 64 x 64 image whose red is the column and whose green is the row."""
    ramp = np.zeros((64, 64, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(64), np.arange(64)[:, None]
    Image.fromarray(ramp).save(tmp_path / "image.png")
    return tmp_path


def samples(dataset: ImageFolder, count: int, seed: int = 0) -> list[torch.Tensor]:
    return [dataset.sample(n, seed, 4)["image"] for n in range(count)]


def test_training_crops_and_flips_by_seed_and_number(ramps: Path) -> None:
    dataset = ImageFolder(ramps, 16, crop_scale=(0.25, 1.0))
    images = samples(dataset, 200)
    torch.manual_seed(5)
    assert all(map(torch.equal, samples(ImageFolder(ramps, 16, crop_scale=(0.25, 1.0)), 200), images))
    assert sum(map(torch.equal, samples(dataset, 200, seed=1), images)) < 5
    # Red grows by one with each source column, so its slope is the crop's width, negative where it was flipped.
    first = [image.float() for image in images]
    slopes = torch.stack([(image[0, :, 12] - image[0, :, 3]).mean() * 16 / 9 for image in first])
    heights = torch.stack([(image[1, 12] - image[1, 3]).mean() * 16 / 9 for image in first])
    assert 60 <= (slopes < 0).sum() <= 140
    assert (heights > 0).all(), "nothing is turned upside down"
    shares = slopes.abs() * heights / 64**2
    assert 0.2 < shares.min() < 0.35 and 0.85 < shares.max() < 1.1
    # Where it was cut, too, differs: the middle of the crop.
    middles = torch.stack([image[:2].mean(dim=(1, 2)) for image in first])
    assert (middles.std(dim=0) > 5).all() and (middles.mean(dim=0) - 31.5).abs().max() < 3


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_whole_images_and_certain_flips(ramps: Path, flip: float) -> None:
    dataset = ImageFolder(ramps, 64, crop_scale=(1, 1), crop_ratio=(1, 1), flip=flip)
    plain = ImageFolder(ramps, 64, train=False)[0]["image"]
    for image in samples(dataset, 4):
        torch.testing.assert_close(image, plain.flip(2) if flip else plain, rtol=0, atol=0)


def test_parts_of_a_ratio_that_the_image_does_not_have(tmp_path: Path) -> None:
    # 16 x 160: no tenth of it or more is a square; the square in its middle is the nearest thing.
    pixels = np.zeros((16, 160, 3), np.uint8)
    pixels[:, 72:88] = 200
    Image.fromarray(pixels).save(tmp_path / "image.png")
    for image in samples(ImageFolder(tmp_path, 16, crop_scale=(0.5, 1.0), crop_ratio=(1, 1)), 3):
        assert (image == 200).all()


def test_square_crops_keep_the_resolution(tmp_path: Path) -> None:
    ramp = np.zeros((64, 192, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(192), np.arange(64)[:, None]
    Image.fromarray(ramp).save(tmp_path / "image.png")
    lefts = set()
    for image in samples(ImageFolder(tmp_path, 64, crop="square", flip=0.0), 30):
        left = int(image[0, 0, 0])
        lefts.add(left)
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), ramp[:, left : left + 64])
    assert len(lefts) > 20 and min(lefts) < 30 and max(lefts) > 98
    for image in samples(ImageFolder(tmp_path, 64, crop="center", flip=0.0), 3):
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), ramp[:, 64:128])


def test_colours_change_as_far_as_asked(tmp_path: Path) -> None:
    write_image(tmp_path / "image.png", colour=(120, 100, 80))
    how = {"crop": "center", "flip": 0.0}
    jitter = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.2}
    dataset = ImageFolder(tmp_path, 8, **how, color_jitter=OmegaConf.create(jitter))
    images = samples(dataset, 40)
    assert all(map(torch.equal, samples(dataset, 40), images))
    colours = {tuple(image[:, 0, 0].tolist()) for image in images}
    assert len(colours) > 35
    # brightness and contrast change the mean by a factor within 0.64 and 1.44, the others hardly
    means = [sum(colour) / 3 for colour in colours]
    assert 55 < min(means) < 90 and 110 < max(means) < 150
    # one at a time: the factor itself
    for image in samples(ImageFolder(tmp_path, 8, **how, color_jitter={"brightness": 0.2}), 40):
        factors = image[:, 0, 0] / torch.tensor([120, 100, 80])
        assert 0.78 < factors.min() and factors.max() < 1.21 and factors.max() - factors.min() < 0.02
    # some of the images only
    some = samples(ImageFolder(tmp_path, 8, **how, color_jitter={**jitter, "probability": 0.3}), 100)
    assert 10 <= sum(image[:, 0, 0].tolist() != [120, 100, 80] for image in some) <= 50
    for image in samples(ImageFolder(tmp_path, 8, **how), 3):
        assert image[:, 0, 0].tolist() == [120, 100, 80]


def test_one_of_several_sizes_for_each_batch(root: Path) -> None:
    dataset = ImageFolder(root, [16, 24, 32])
    sizes = []
    for batch in itertools.islice(build_image_folder_loader(dataset, 4, seed=0), 30):
        assert len({item["image"].shape for item in batch}) == 1
        sizes.append(batch[0]["image"].shape[1])
    assert min(Counter(sizes)[size] for size in (16, 24, 32)) >= 3
    again = [batch[0]["image"].shape[1] for batch in itertools.islice(build_image_folder_loader(dataset, 4, seed=0), 9)]
    assert again == sizes[:9] and len({*sizes[:9]}) > 1


@pytest.fixture
def textured(tmp_path: Path) -> Path:
    """Five different images with texture, so that every crop differs, and a broken one between them."""
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "2b.png").write_bytes(b"broken")
    return tmp_path


def test_a_number_of_views(textured: Path) -> None:
    dataset = ImageFolder(textured, 16, views=2)
    seen: dict[tuple[int, int], list[torch.Tensor]] = {}
    for n in range(6 * 6):  # six epochs
        item = dataset.sample(n, 3, 4)
        assert item["view"] == n // 6 % 2 and dataset.files[item["index"]] == item["file_name"]
        seen.setdefault((item["index"], item["view"]), []).append(item["image"])
    assert len(seen) == 2 * 5, "one of the six is broken"
    for images in seen.values():
        assert len(images) >= 3 and all(torch.equal(image, images[0]) for image in images)
    assert len({images[0].numpy().tobytes() for images in seen.values()}) == 10
    # another seed has other views
    other = dataset.sample(0, 4, 4)
    assert not any(torch.equal(other["image"], images[0]) for images in seen.values())


def stream(root: Path, batches: int, start: int | None = None, **how: int) -> list[list[dict]]:
    """The first batches of a loader as a trainer at iteration ``start`` gets them; None: outside a trainer."""
    dataset = ImageFolder(root, [8, 12], color_jitter={"brightness": 0.3, "hue": 0.1, "probability": 0.5})
    loader = build_image_folder_loader(dataset, **{"total_batch_size": 4, "seed": 0, **how})
    if start is None:
        return list(itertools.islice(loader, batches))
    with EventStorage(start):
        return list(itertools.islice(loader, batches))


def same(a: list[list[dict]], b: list[list[dict]]) -> bool:
    def flat(batches: list[list[dict]]) -> list[dict]:
        return list(itertools.chain(*batches))

    return [len(x) for x in a] == [len(x) for x in b] and all(
        x["file_name"] == y["file_name"] and torch.equal(x["image"], y["image"])
        for x, y in zip(flat(a), flat(b), strict=True)
    )


def test_the_stream_is_the_same_with_any_workers_and_from_any_start(textured: Path) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    whole = stream(textured, 9)
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]
    images = {(item["file_name"], item["image"].numpy().tobytes()) for item in itertools.chain(*whole)}
    assert len(images) == 36, "each sample is one of its own"
    torch.manual_seed(1)
    assert same(stream(textured, 9, start=0), whole)
    for workers, start in ((0, 1), (0, 4), (1, 0), (2, 3), (2, 8)):
        assert same(stream(textured, 9 - start, start=start, num_workers=workers), whole[start:]), (workers, start)
    assert not same(stream(textured, 9, seed=1), whole)


def test_the_processes_shares_join_to_the_batch(textured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stream(textured, 5)
    monkeypatch.setattr("lift_det.data.image_folder.get_world_size", lambda: 2)
    halves = []
    for rank in (0, 1):
        monkeypatch.setattr("lift_det.data.image_folder.get_rank", lambda rank=rank: rank)
        halves.append(stream(textured, 5))
    assert [len(batch) for batch in halves[1]] == [2] * 5
    assert same([first + second for first, second in zip(*halves, strict=True)], whole)
    numbers = [list(itertools.islice(SampleNumbers(12, rank, 3), 2)) for rank in range(3)]
    assert [sum(batch, []) for batch in zip(*numbers, strict=True)] == [list(range(12)), list(range(12, 24))]


def test_every_image_once_in_each_epoch(tmp_path: Path) -> None:
    for number in range(10):
        write_image(tmp_path / f"{number}.png")
    dataset = ImageFolder(tmp_path, 8)
    batches = itertools.islice(build_image_folder_loader(dataset, 4, seed=0), 10)
    order = [item["index"] for item in itertools.chain(*batches)]
    epochs = [order[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4 and epochs[0] != list(range(10))


def test_a_known_broken_file_changes_nothing(textured: Path) -> None:
    fresh, knowing = ImageFolder(textured, 8), ImageFolder(textured, 8)
    broken = [Path(file).name for file in fresh.files].index("2b.png")
    assert knowing.read(broken) is None and knowing.num_broken == 1 and fresh.num_broken == 0
    of_broken = [n for n in range(30) if int(fresh._epoch_order(0, n // 6)[n % 6]) == broken]
    assert len(of_broken) == 5
    for n in of_broken:
        item = fresh.sample(n, 0, 4)
        assert Path(item["file_name"]).name == "3.png" and torch.equal(item["image"], knowing.sample(n, 0, 4)["image"])


def test_several_folders(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    write_image(other / "a.png")
    dataset = ImageFolder(OmegaConf.create([str(other), str(root), str(root / "a")]), 32, train=False)
    assert dataset.files == [str(other / "a.png"), *ImageFolder(root, 32).files], "a folder in another counts once"
    with pytest.raises(DatasetError, match="nowhere"):
        ImageFolder([root, other / "nowhere"], 32)
    with pytest.raises(DatasetError, match="No image folder is named"):
        ImageFolder([], 32)


@pytest.mark.parametrize(
    "how, message",
    [
        ({"crop": "round"}, "crop must be one of"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.5, 1.5)}, "crop_scale"),
        ({"crop_ratio": (2.0, 1.0)}, "crop_ratio"),
        ({"flip": 1.5}, "flip"),
        ({"color_jitter": {"gamma": 1}}, "color_jitter knows .*not .'gamma'"),
        ({"color_jitter": {"hue": 0.6}}, "hue is at most 0.5"),
        ({"color_jitter": {"contrast": -1}}, "contrast is negative"),
        ({"views": -1}, "views"),
        ({"image_size": []}, "image_size must be positive"),
        ({"image_size": [8, 16], "views": 2}, "one image_size"),
        ({"image_size": [8, 16], "train": False}, "one image_size"),
    ],
)
def test_settings_out_of_range(root: Path, how: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageFolder(root, **{"image_size": 8, **how})


def test_generators_of_neighbouring_numbers_are_unrelated() -> None:
    draws = torch.stack([torch.rand(8, generator=seeded_generator("sample", 0, n)) for n in range(500)])
    assert (draws.mean(dim=0) - 0.5).abs().max() < 0.06
    neighbours = torch.corrcoef(torch.stack([draws[:-1, 0], draws[1:, 0]]))[0, 1]
    assert abs(neighbours) < 0.15
    assert torch.equal(draws[3], torch.rand(8, generator=seeded_generator("sample", 0, 3)))


def test_each_option_draws_the_same_crop() -> None:
    # Jitter is drawn after the crop, and drawn whether it is applied or not: turning it on keeps the crops.
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    plain = Augmentation()(image, 16, seeded_generator(1))
    never = Augmentation(color_jitter=ColorJitter(brightness=0.5, probability=0.0))(image, 16, seeded_generator(1))
    np.testing.assert_array_equal(np.array(plain), np.array(never))


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


@pytest.mark.parametrize("seed", [None, -1])
def test_without_a_seed_one_is_drawn(root: Path, seed: int | None) -> None:
    def order() -> list[int]:
        loader = build_image_folder_loader(ImageFolder(root, 8), 7, seed=seed)
        return [item["index"] for batch in itertools.islice(loader, 3) for item in batch]

    np.random.seed(0)  # detectron2 draws shared seeds from here
    first, second = order(), order()
    np.random.seed(0)
    assert order() == first != second


def test_batch_size_is_divided_among_processes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lift_det.data.image_folder.get_world_size", lambda: 2)
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
