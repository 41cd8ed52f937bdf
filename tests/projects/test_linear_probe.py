"""The linear probe: label maps and figures by hand, sampling against torch's interpolation, and whole runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from safetensors.torch import save_file

from lift_det import LiFT, TimmViT, save_lift
from lift_det.data import write_synthetic_coco
from projects.linear_probe.__main__ import main, parse_arguments
from projects.linear_probe.compare import compare
from projects.linear_probe.figures import (
    bootstrap_difference,
    boundary_band,
    confusion_matrix,
    intersection_over_union,
    mean_iou,
    pixel_accuracy,
)
from projects.linear_probe.labels import IGNORED, draw_label_map, load_labelled_images, resize_and_crop
from projects.linear_probe.probe import Probe, Settings, predict, sample_features, standardise, train_probe

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("linear_probe_train", "linear_probe_val", "linear_probe_broken")
# 4×4 cells of 16 pixels, doubled
SETTINGS = Settings(input_size=64, label_size=128, band=4, seeds=2, iterations=40, batch_pixels=256)


@pytest.fixture(scope="module", autouse=True)
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Four training and three validation images, and a dataset whose images are missing."""
    folder = write_synthetic_coco(tmp_path_factory.mktemp("datasets"), num_train=4, num_val=3)
    images = (folder / "train", folder / "val", folder)
    for name, split, images_of in zip(NAMES, ("train", "val", "val"), images, strict=True):
        register_coco_instances(name, {}, str(folder / f"annotations/instances_{split}.json"), str(images_of))
    yield
    for name in NAMES:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(scope="module")
def data(data_sets: None) -> tuple:
    return tuple(load_labelled_images(name, SETTINGS.label_size) for name in NAMES[:2])


@pytest.fixture
def net() -> TimmViT:
    torch.manual_seed(0)
    return TimmViT("test_vit", depth=1).eval()


def rectangle(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def test_label_map() -> None:
    """Smaller objects are on top in any order; crowds are ignored except for the objects on them."""
    crowd_mask = np.zeros((5, 8), np.uint8)
    crowd_mask[3:, 2:] = 1
    objects = [
        {"segmentation": rectangle(0, 0, 6, 4), "category_id": 0},
        {"segmentation": rectangle(4, 1, 8, 3), "category_id": 79},
        {"segmentation": mask_util.encode(np.asfortranarray(crowd_mask)), "category_id": 0, "iscrowd": 1},
    ]
    expected = [
        [1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 80, 80, 80, 80],
        [1, 1, 1, 1, 80, 80, 80, 80],
        [1, 1, 1, 1, 1, 1, 255, 255],
        [0, 0, 255, 255, 255, 255, 255, 255],
    ]
    for order in (objects, objects[::-1]):
        assert draw_label_map(order, 5, 8).tolist() == expected


def test_images_and_labels_of_a_data_set(data: tuple) -> None:
    train, val = data
    assert train.class_names[0] == "background" and len(train.class_names) == 5
    assert train.images.shape == (4, 3, 128, 128) and val.labels.shape == (3, 128, 128)
    for record, labels in zip(DatasetCatalog.get(NAMES[1]), val.labels, strict=True):
        assert set(labels.unique().tolist()) == {0} | {a["category_id"] + 1 for a in record["annotations"]}
    assert len(load_labelled_images(NAMES[1], 64, limit=2).images) == 2


def test_crop_is_the_centre_of_image_and_labels() -> None:
    image, labels = np.zeros((64, 96, 3), np.uint8), np.full((64, 96), 7, np.uint8)
    image[16:48, 32:64], labels[16:48, 32:64] = 200, 3
    labels[:, :16] = labels[:, 80:] = 255  # cropped
    pixels, label_map = resize_and_crop(image, labels, 32)
    expected = F.pad(torch.full((16, 16), 3, dtype=torch.uint8), (8, 8, 8, 8), value=7)
    assert torch.equal(label_map, expected) and pixels.dtype == torch.uint8
    assert torch.equal(pixels > 100, (expected == 3).expand(3, -1, -1))


def test_mean_iou() -> None:
    truth = torch.tensor([0, 0, 0, 1, 1, 3, 255, 255], dtype=torch.uint8)
    confusion = confusion_matrix(truth, torch.tensor([0, 0, 1, 1, 2, 0, 1, 3]), 4)
    assert confusion.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    # 0: 2 / (3 + 3 - 2), 1: 1 / (2 + 2 - 1), 2 does not occur, 3: 0 / (1 + 0 - 0)
    iou = intersection_over_union(confusion)
    assert iou[[0, 1, 3]].tolist() == pytest.approx([2 / 4, 1 / 3, 0]) and iou[2].isnan()
    assert pixel_accuracy(confusion).item() == pytest.approx(3 / 6)
    perfect = torch.diag(torch.tensor([5, 2, 0, 1]))
    assert mean_iou(torch.stack([confusion, perfect])).tolist() == pytest.approx([(2 / 4 + 1 / 3) / 3, 1])


def test_boundary_band() -> None:
    labels = torch.zeros(9, 12, dtype=torch.uint8)
    labels[:, 5:] = 2
    labels[:, 10:] = 255  # ignored
    for width in (1, 3):
        expected = torch.zeros(9, 12, dtype=torch.bool)
        expected[:, 5 - width : 5 + width] = True
        assert torch.equal(boundary_band(labels, width), expected)
    corner = torch.zeros(4, 4, dtype=torch.uint8)
    corner[0, 0] = 1
    assert boundary_band(corner, 2).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]


def test_bootstrap_interval() -> None:
    generator = torch.Generator().manual_seed(0)
    worse = torch.randint(1, 20, (2, 40, 3, 3), generator=generator)
    better = worse + 10 * torch.eye(3, dtype=torch.long)
    assert bootstrap_difference(worse, worse, samples=50) == (0, 0)
    low, high = bootstrap_difference(better, worse, samples=200)
    difference = (mean_iou(better.sum(1)) - mean_iou(worse.sum(1))).mean().item()
    assert 0 < low < difference < high
    few = bootstrap_difference(better[:, :5], worse[:, :5], samples=200)
    assert few[1] - few[0] > high - low  # wider for fewer images


def test_sampled_features_and_predictions_are_interpolated() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 5, 6, generator=generator)  # (M, h, w, C)
    whole = F.interpolate(features.permute(0, 3, 1, 2), size=(16, 16), mode="bilinear", align_corners=False)
    sampled = sample_features(features, torch.arange(2 * 16 * 16), 16)
    torch.testing.assert_close(sampled, whole.permute(0, 2, 3, 1).reshape(-1, 6), atol=1e-5, rtol=0)

    weight, bias = torch.randn(5, 6, generator=generator), torch.tensor([4.0, 0, 0, 0, -50])  # class 4 never wins
    logits = F.conv2d(features[0].permute(2, 0, 1)[None], weight[:, :, None, None], bias)
    expected = F.interpolate(logits, size=(32, 32), mode="bilinear", align_corners=False)[0].argmax(0)
    assert len(expected.unique()) > 2
    assert torch.equal(predict(Probe(weight, bias, 0.0), features[0], 32), expected)


def test_probe_learns_and_repeats() -> None:
    """One-hot labels beside channels of noise; the last image is ignored."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(3, (4, 4, 4), generator=generator)  # (M, h, w)
    features = torch.cat([F.one_hot(cells, 3).float(), torch.randn(4, 4, 4, 5, generator=generator)], -1)
    labels = cells.repeat_interleave(8, 1).repeat_interleave(8, 2).to(torch.uint8)
    labels[3] = IGNORED
    settings = Settings(iterations=60, batch_pixels=256, learning_rate=0.05)
    probe, other = (train_probe(features, labels, 3, seed, settings) for seed in (0, 1))
    predicted = torch.stack([predict(probe, image, 32) for image in features[:3]])
    assert (predicted == labels[:3]).float().mean() > 0.8 and probe.training_loss < 0.9 * np.log(3)
    assert not torch.equal(other.weight, probe.weight)
    features[3] = 100.0
    again = train_probe(features, labels, 3, 0, settings)
    assert torch.equal(again.weight, probe.weight) and torch.equal(again.bias, probe.bias)


def test_standardised_channels() -> None:
    noise = torch.randn(6, 4, 4, 3, generator=torch.Generator().manual_seed(0))
    train, val = 100 * noise + torch.tensor([0.0, 900, -5]), torch.zeros(2, 4, 4, 3)
    std, mean = torch.std_mean(train, (0, 1, 2))
    expected = (train - mean) / std
    standardise(train, val)
    torch.testing.assert_close(train, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(val[0, 0, 0], -mean / std)


def test_comparison(net: TimmViT, data: tuple) -> None:
    """An untrained residual LiFT is bilinear upsampling, and the same seeds give the same figures."""
    lifts = {"untrained": LiFT(64, 16), "plain": LiFT(64, 16, residual=False)}
    methods = compare(net, lifts, *data, SETTINGS, log=lambda _: None)["methods"]
    assert list(methods) == ["none", "bilinear", "untrained", "plain", "true"]
    assert [method["map"] for method in methods.values()] == [[4, 4], *[[8, 8]] * 4]
    for figure in ("miou", "boundary_miou", "accuracy"):
        assert methods["untrained"][figure]["by_seed"] == methods["bilinear"][figure]["by_seed"]
        assert methods["plain"][figure]["by_seed"] != methods["bilinear"][figure]["by_seed"]
    assert methods["untrained"]["miou"]["minus_bilinear"] == {"mean": 0, "low": 0, "high": 0}
    for method in methods.values():
        seeds = method["miou"]["by_seed"]
        assert len(set(seeds)) == 2
        assert method["miou"]["mean"] == pytest.approx(np.mean(seeds))
        assert method["miou"]["std"] == pytest.approx(np.std(seeds, ddof=1))
        assert np.mean(list(method["iou_by_class"].values())) == pytest.approx(np.mean(seeds))


def test_true_features_are_of_the_larger_image(net: TimmViT, data: tuple) -> None:
    """With two doublings the ViT sees 32 and 128 pixels, normalised."""
    seen: dict[int, list[torch.Tensor]] = {}
    net.register_forward_pre_hook(lambda _, inputs: seen.setdefault(inputs[0].shape[-1], []).append(inputs[0]))
    settings = Settings(input_size=32, steps=2, label_size=128, seeds=1, iterations=1, batch_pixels=64)
    results = compare(net, {"lift": LiFT(64, 16)}, *data, settings, log=lambda _: None)
    assert [m["map"] for m in results["methods"].values()] == [[2, 2], [8, 8], [8, 8], [8, 8]]
    assert sorted(seen) == [32, 128]
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (net.pixel_mean, net.pixel_std))
    torch.testing.assert_close(seen[128][0], (data[0].images.float() - mean) / std)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    net = TimmViT("test_vit")
    save_file(net.vit.state_dict(), tmp_path / "vit.safetensors")
    own, other = (model.feature_spec().to_metadata() for model in (net, TimmViT("test_vit")))
    lifts = {name: f"{name}={tmp_path}/{name}.safetensors" for name in ("own", "other")}
    for name, metadata in (("own", own), ("other", other)):
        save_lift(LiFT(64, 16), tmp_path / f"{name}.safetensors", metadata)
    argv = ["--backbone", "test_vit", "--checkpoint", str(tmp_path / "vit.safetensors"), "--output", str(tmp_path)]
    argv += ["--train", NAMES[0], "--val", NAMES[1], "--limit", "2", "--seeds", "1", "--iterations", "3"]
    argv += ["--input-size", "64", "--label-size", "128"]
    main([*argv, "--lift", lifts["own"]])
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["train_images"], results["val_images"]) == (2, 2)
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert [row[0] for row in rows[2:]] == ["none", "bilinear", "own", "true"]
    assert rows[4][2] == f"{results['methods']['own']['miou']['mean']:.2f} ± 0.00"
    # trained on other weights; a missing file; missing images
    for wrong, named in (
        (("--lift", lifts["other"]), r"other\.safetensors"),
        (("--checkpoint", "no.safetensors"), r"no\.safetensors"),
        (("--val", NAMES[2]), r"000000000001\.jpg"),
    ):
        with pytest.raises(SystemExit, match=f"(?s)error: .*{named}"):
            main([*argv, *wrong])


@pytest.mark.parametrize(
    ("settings", "lifts", "named"),
    [
        (dict(input_size=72), {}, "16.*72"),
        (dict(steps=2), {}, "256.*128"),
        ({}, {"bilinear": LiFT(64, 16)}, "bilinear"),
        ({}, {"other": LiFT(64, 14)}, "'other'.*14"),
    ],
)
def test_invalid_settings(net: TimmViT, data: tuple, settings: dict, lifts: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        compare(net, lifts, *data, replace(SETTINGS, **settings), log=lambda _: None)


@pytest.mark.parametrize("lifts", [["file"], ["a=x", "a=y"]])
def test_lifts_need_different_names(lifts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = [word for value in lifts for word in ("--lift", value)]
    with pytest.raises(SystemExit):
        parse_arguments(["--backbone", "test_vit", "--pretrained", *options])
    assert "--lift" in capsys.readouterr().err
