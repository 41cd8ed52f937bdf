"""The linear probe: label maps and figures by hand, sampling against torch's interpolation, a run to the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
from lift_det.data import DatasetError, write_synthetic_coco
from lift_det.data.synthetic_coco import draw_synthetic_image
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
from projects.linear_probe.labels import (
    IGNORED,
    LabelledImages,
    draw_label_map,
    label_table,
    load_labelled_images,
    resize_and_crop,
)
from projects.linear_probe.probe import Probe, Settings, predict, sample_features, standardise, train_probe

# small enough that a whole comparison takes seconds: 4×4 cells of 16 pixels, doubled
SETTINGS = Settings(input_size=64, label_size=128, band=4, seeds=2, iterations=40, batch_pixels=256)


def rectangle(left: int, top: int, right: int, bottom: int) -> list[list[float]]:
    return [[float(v) for v in (left, top, right, top, right, bottom, left, bottom)]]


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Names of four training and three validation images."""
    folder = write_synthetic_coco(tmp_path_factory.mktemp("datasets"), num_train=4, num_val=3)
    names = ("linear_probe_train", "linear_probe_val")
    for name, split in zip(names, ("train", "val"), strict=True):
        register_coco_instances(name, {}, str(folder / f"annotations/instances_{split}.json"), str(folder / split))
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(scope="module")
def data(splits: tuple[str, str]) -> tuple[LabelledImages, LabelledImages]:
    return tuple(load_labelled_images(name, SETTINGS.label_size) for name in splits)


@pytest.fixture
def net() -> TimmViT:
    torch.manual_seed(0)
    return TimmViT("test_vit", depth=1).eval()


# ---------------------------------------------------------------------------------------------------------- label maps


def test_smaller_object_lies_on_top_whatever_the_order() -> None:
    large = {"segmentation": rectangle(0, 0, 6, 4), "category_id": 0}
    small = {"segmentation": rectangle(4, 1, 8, 3), "category_id": 4}
    expected = [
        [1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 5, 5, 5, 5],
        [1, 1, 1, 1, 5, 5, 5, 5],
        [1, 1, 1, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]
    for objects in ([large, small], [small, large]):
        assert draw_label_map(objects, 5, 8).tolist() == expected


def test_crowd_is_ignored_but_not_what_stands_before_it() -> None:
    crowd_mask = np.zeros((3, 6), np.uint8)
    crowd_mask[:, 3:] = 1
    compressed = mask_util.encode(np.asfortranarray(crowd_mask))
    # uncompressed counts run down the columns, zeros first
    for segmentation in (compressed, {"size": [3, 6], "counts": [9, 9]}):
        objects = [
            {"segmentation": rectangle(2, 0, 4, 2), "category_id": 79},
            {"segmentation": segmentation, "category_id": 0, "iscrowd": 1},
        ]
        assert draw_label_map(objects, 3, 6).tolist() == [
            [0, 0, 80, 80, 255, 255],
            [0, 0, 80, 80, 255, 255],
            [0, 0, 0, 255, 255, 255],
        ]


def test_label_maps_of_a_data_set_are_the_drawn_masks(data: tuple[LabelledImages, LabelledImages]) -> None:
    """Objects of the synthetic set do not overlap, and at its own size nothing is resampled."""
    train, val = data
    assert train.class_names[0] == "background" and len(train.class_names) == 5
    for split, loaded in (("train", train), ("val", val)):
        for index, (pixels, labels) in enumerate(zip(loaded.images, loaded.labels, strict=True)):
            image, objects = draw_synthetic_image(split, index)
            expected = np.zeros((128, 128), np.uint8)
            for item in objects:
                expected[item.mask] = item.category_id
            # polygons run through the centres of the outermost pixels, so that some of those may go either way
            assert (labels.numpy() == expected).mean() > 0.99
            assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - image).mean() < 4  # JPEG


def test_coarser_classes(splits: tuple[str, str], data: tuple[LabelledImages, LabelledImages]) -> None:
    coarse = load_labelled_images(splits[1], SETTINGS.label_size, limit=2, classes="object")
    assert coarse.class_names == ("background", "object") and len(coarse.images) == 2
    assert torch.equal(coarse.labels, (data[1].labels[:2] != 0).to(torch.uint8))


def test_supercategories(tmp_path: Path) -> None:
    """Categories with ids that are neither ordered nor contiguous, and one without a supercategory."""
    categories = [
        {"id": 7, "name": "car", "supercategory": "vehicle"},
        {"id": 2, "name": "cat", "supercategory": "animal"},
        {"id": 9, "name": "bus", "supercategory": "vehicle"},
    ]
    file = tmp_path / "instances.json"
    image = {"id": 1, "file_name": "1.jpg", "height": 4, "width": 4}
    file.write_text(json.dumps({"images": [image], "annotations": [], "categories": categories}))
    name = "linear_probe_super"
    register_coco_instances(name, {}, str(file), str(tmp_path))
    try:
        DatasetCatalog.get(name)
        assert MetadataCatalog.get(name).thing_classes == ["cat", "car", "bus"]
        table, names = label_table(name, "supercategories")
        assert names == ("background", "animal", "vehicle")
        assert table[[0, 1, 2, 3, 255]].tolist() == [0, 1, 2, 2, 255]
        assert label_table(name, "categories")[0][[0, 1, 2, 3, 255]].tolist() == [0, 1, 2, 3, 255]
        del categories[1]["supercategory"]
        file.write_text(json.dumps({"images": [image], "annotations": [], "categories": categories}))
        with pytest.raises(DatasetError, match="each of the 3 categories .* a supercategory: write them in"):
            label_table(name, "supercategories")
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_crop_is_the_middle_and_labels_stay_on_the_image() -> None:
    """A square in the middle of a wide image, which is halved: image and labels have it at the same pixels."""
    image, labels = np.zeros((64, 96, 3), np.uint8), np.full((64, 96), 7, np.uint8)
    image[16:48, 32:64], labels[16:48, 32:64] = 200, 3
    labels[:, :16] = labels[:, 80:] = 255  # cut off
    pixels, label_map = resize_and_crop(image, labels, 32)
    expected = torch.full((32, 32), 7, dtype=torch.uint8)
    expected[8:24, 8:24] = 3
    assert torch.equal(label_map, expected)
    assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.uint8
    assert torch.equal(pixels[0] > 100, expected == 3)


# ------------------------------------------------------------------------------------------------------------- figures


def test_mean_iou_by_hand() -> None:
    truth = torch.tensor([0, 0, 0, 1, 1, 3, 255, 255], dtype=torch.uint8)
    prediction = torch.tensor([0, 0, 1, 1, 2, 0, 1, 3])
    confusion = confusion_matrix(truth, prediction, 4)
    assert confusion.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    # 0: 2 / (3 + 3 - 2), 1: 1 / (2 + 2 - 1), 2 does not occur, 3: 0 / (1 + 0 - 0)
    iou = intersection_over_union(confusion)
    assert iou[[0, 1, 3]].tolist() == pytest.approx([2 / 4, 1 / 3, 0]) and iou[2].isnan()
    assert mean_iou(confusion).item() == pytest.approx((2 / 4 + 1 / 3) / 3)
    assert pixel_accuracy(confusion).item() == pytest.approx(3 / 6)
    perfect = torch.diag(torch.tensor([5, 2, 0, 1]))
    assert mean_iou(torch.stack([confusion, perfect])).tolist() == pytest.approx([(2 / 4 + 1 / 3) / 3, 1])


def test_boundary_band_by_hand() -> None:
    labels = torch.zeros(9, 12, dtype=torch.uint8)
    labels[:, 5:] = 2
    labels[:, 10:] = 255  # the edge of an ignored region is no boundary
    for width in (1, 2, 3):
        expected = torch.zeros(9, 12, dtype=torch.bool)
        expected[:, 5 - width : 5 + width] = True
        assert torch.equal(boundary_band(labels, width), expected)
    assert not boundary_band(torch.ones(4, 4, dtype=torch.uint8), 3).any()
    corner = torch.zeros(7, 7, dtype=torch.uint8)
    corner[0, 0] = 1
    # from the three pixels at the boundary, those nearer than two pixels: sideways and diagonally
    assert boundary_band(corner, 2)[:4, :4].int().tolist() == [
        [1, 1, 1, 0],
        [1, 1, 1, 0],
        [1, 1, 0, 0],
        [0, 0, 0, 0],
    ]


def test_bootstrap_interval() -> None:
    """Nothing between equals; an interval that holds a difference of every image; and it is wider for fewer images."""
    generator = torch.Generator().manual_seed(0)
    worse = torch.randint(1, 20, (2, 40, 3, 3), generator=generator)
    better = worse + 10 * torch.eye(3, dtype=torch.long)
    assert bootstrap_difference(worse, worse, samples=50) == (0, 0)
    low, high = bootstrap_difference(better, worse, samples=200)
    difference = (mean_iou(better.sum(1)) - mean_iou(worse.sum(1))).mean().item()
    assert 0 < low < difference < high
    few = bootstrap_difference(better[:, :5], worse[:, :5], samples=200)
    assert few[1] - few[0] > high - low


# --------------------------------------------------------------------------------------------------------------- probe


def test_sampled_features_are_interpolated_ones() -> None:
    """Every pixel of two images, the ones at the edges too, and maps that are not square."""
    features = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))  # (M, h, w, C)
    size = 16
    whole = F.interpolate(features.permute(0, 3, 1, 2), size=(size, size), mode="bilinear", align_corners=False)
    pixels = torch.arange(2 * size * size)
    sampled = sample_features(features, pixels, size)
    torch.testing.assert_close(sampled, whole.permute(0, 2, 3, 1).reshape(-1, 6), atol=1e-5, rtol=0)


def test_prediction_is_the_largest_interpolated_logit() -> None:
    """Leaving out classes that are below the background everywhere changes nothing."""
    generator = torch.Generator().manual_seed(0)
    features, weight = (torch.randn(*shape, generator=generator) for shape in ((4, 4, 8), (6, 8)))
    bias = torch.tensor([4.0, 0, 0, 0, -50, 0])  # class 4 never wins, the others here and there
    logits = F.conv2d(features.permute(2, 0, 1)[None], weight[:, :, None, None], bias)
    expected = F.interpolate(logits, size=(32, 32), mode="bilinear", align_corners=False)[0].argmax(0)
    predicted = predict(Probe(weight, bias, 0.0), features, 32)
    assert len(expected.unique()) > 2
    assert torch.equal(predicted, expected)


def test_probe_learns_what_the_features_tell_and_repeats_itself() -> None:
    """Features that are the labels, one-hot, beside channels of noise; the last image is ignored."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(3, (4, 4, 4), generator=generator)  # (M, h, w)
    features = torch.cat([F.one_hot(cells, 3).float(), torch.randn(4, 4, 4, 5, generator=generator)], -1)
    labels = cells.repeat_interleave(8, 1).repeat_interleave(8, 2).to(torch.uint8)
    labels[3] = IGNORED
    settings = Settings(iterations=60, batch_pixels=256, learning_rate=0.05)
    probe = train_probe(features, labels, 3, 0, settings)
    confusion = sum(confusion_matrix(labels[i], predict(probe, features[i], 32), 3) for i in range(3))
    assert pixel_accuracy(confusion) > 0.8  # a third by chance, and less than all where cells of two classes meet
    assert probe.training_loss < 0.9 * np.log(3)

    again, other = (train_probe(features, labels, 3, seed, settings) for seed in (0, 1))
    assert torch.equal(again.weight, probe.weight) and torch.equal(again.bias, probe.bias)
    assert not torch.equal(other.weight, probe.weight)
    features[3] = 100.0
    unmoved = train_probe(features, labels, 3, 0, settings)
    assert torch.equal(unmoved.weight, probe.weight)
    labels[3, 0] = 1
    moved = train_probe(features, labels, 3, 0, settings)
    assert not torch.equal(moved.weight, probe.weight)


def test_standardised_channels() -> None:
    noise = torch.randn(6, 4, 4, 3, generator=torch.Generator().manual_seed(0))
    train, val = 100 * noise + torch.tensor([0.0, 900, -5]), torch.zeros(2, 4, 4, 3)
    mean, std = train.flatten(0, 2).mean(0), train.flatten(0, 2).std(0)
    standardise(train, val)
    torch.testing.assert_close(train.flatten(0, 2).mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(train.flatten(0, 2).std(0), torch.ones(3))
    torch.testing.assert_close(val[0, 0, 0], -mean / std)  # by the training images' figures, not its own


# ---------------------------------------------------------------------------------------------------------- comparison


def test_comparison(net: TimmViT, data: tuple[LabelledImages, LabelledImages]) -> None:
    """A residual LiFT that was never trained is bilinear upsampling; the same seeds give the same figures."""
    lifts = {"untrained": LiFT(64, 16), "plain": LiFT(64, 16, residual=False)}
    results = compare(net, lifts, *data, SETTINGS, report=lambda _: None)
    methods = results["methods"]
    assert list(methods) == ["none", "bilinear", "untrained", "plain", "true"]
    assert [m["map"] for m in methods.values()] == [[4, 4], [8, 8], [8, 8], [8, 8], [8, 8]]
    for figure in ("miou", "boundary_miou", "accuracy"):
        assert methods["untrained"][figure]["by_seed"] == methods["bilinear"][figure]["by_seed"]
        assert methods["plain"][figure]["by_seed"] != methods["bilinear"][figure]["by_seed"]
    assert methods["untrained"]["miou"]["minus_bilinear"] == {"mean": 0, "low": 0, "high": 0}
    for method in methods.values():
        seeds = method["miou"]["by_seed"]
        assert len(seeds) == 2 and seeds[0] != seeds[1]
        assert method["miou"]["mean"] == pytest.approx(np.mean(seeds))
        assert method["miou"]["std"] == pytest.approx(np.std(seeds, ddof=1))
        assert np.mean(list(method["iou_by_class"].values())) == pytest.approx(np.mean(seeds))
    again = compare(net, {}, *data, SETTINGS, report=lambda _: None)["methods"]
    for name in ("none", "bilinear", "true"):
        assert again[name]["miou"] == methods[name]["miou"]


def test_true_features_are_those_of_the_larger_image(
    net: TimmViT, data: tuple[LabelledImages, LabelledImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two doublings the ViT sees 32 pixels, and 128 for the reference, always normalised."""
    seen: dict[int, list[torch.Tensor]] = {}
    net.register_forward_pre_hook(lambda _, inputs: seen.setdefault(inputs[0].shape[-1], []).append(inputs[0]))
    settings = Settings(input_size=32, steps=2, label_size=128, seeds=1, iterations=1, batch_pixels=64)
    results = compare(net, {"lift": LiFT(64, 16)}, *data, settings, report=lambda _: None)
    assert [m["map"] for m in results["methods"].values()] == [[2, 2], [8, 8], [8, 8], [8, 8]]
    assert sorted(seen) == [32, 128]
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (net.pixel_mean, net.pixel_std))
    torch.testing.assert_close(seen[128][0], (data[0].images.float() - mean) / std)


def test_command_line(splits: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    net = TimmViT("test_vit")
    save_file(net.vit.state_dict(), tmp_path / "vit.safetensors")
    save_lift(LiFT(64, 16, residual=False), tmp_path / "plain.safetensors")  # says of no ViT that it is for it
    save_lift(LiFT(64, 16), tmp_path / "own.safetensors", net.feature_spec().to_metadata())
    argv = ["--backbone", "test_vit", "--checkpoint", str(tmp_path / "vit.safetensors")]
    argv += ["--train", splits[0], "--val", splits[1], "--limit", "2", "--seeds", "1", "--iterations", "3"]
    argv += ["--input-size", "64", "--label-size", "128", "--lift", f"plain={tmp_path / 'plain.safetensors'}"]
    argv += ["--lift", f"own={tmp_path / 'own.safetensors'}"]
    main([*argv, "--output", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert (results["train_images"], results["val_images"]) == (2, 2)
    table = (tmp_path / "out/table.md").read_text()
    assert table in capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert len({len(row) for row in rows}) == 1
    assert [row[0] for row in rows[2:]] == ["none", "bilinear", "plain", "own", "true"]
    assert rows[4][2] == f"{results['methods']['plain']['miou']['mean']:.2f} ± 0.00"


# -------------------------------------------------------------------------------------------------------------- errors


def test_missing_data_says_where_it_was_looked_for(tmp_path: Path, splits: tuple[str, str]) -> None:
    with pytest.raises(DatasetError, match="Did you mean 'coco_2017_val'"):
        load_labelled_images("coco_2017_vall", 64)
    json_file = Path(MetadataCatalog.get(splits[1]).json_file)
    register_coco_instances("linear_probe_gone", {}, str(json_file), str(tmp_path / "nowhere"))
    register_coco_instances("linear_probe_empty", {}, str(json_file), str(tmp_path))
    try:
        with pytest.raises(DatasetError, match="image folder of 'linear_probe_gone' is missing.*Put the files there"):
            load_labelled_images("linear_probe_gone", 64)
        with pytest.raises(DatasetError, match="000000000001.jpg.*there is no such file"):
            load_labelled_images("linear_probe_empty", 64)
    finally:
        for name in ("linear_probe_gone", "linear_probe_empty"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    ("settings", "lifts", "message"),
    [
        (dict(input_size=72), {}, "72 pixels is not whole patches of 16"),
        (dict(steps=2), {}, "need images of 256 pixels.*the crops have 128"),
        (dict(label_size=256), {}, "crops have 128 pixels, not 256"),
        (dict(seeds=0), {}, "seeds.*must be at least 1"),
        ({}, {"bilinear": LiFT(64, 16)}, "call this LiFT otherwise"),
        (
            {},
            {"other": LiFT(64, 14)},
            "'other': LiFT is for 64 channels and patches of 14 pixels, the ViT has 64 and 16",
        ),
    ],
)
def test_what_does_not_belong_together(
    net: TimmViT, data: tuple[LabelledImages, LabelledImages], settings: dict, lifts: dict, message: str
) -> None:
    given = Settings(**{**vars(SETTINGS), **settings})
    with pytest.raises(ValueError, match=message):
        compare(net, lifts, *data, given, report=lambda _: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments --checkpoint --pretrained is required"),
        (["--pretrained", "--lift", "file.safetensors"], "expected NAME=FILE.safetensors"),
        (["--pretrained", "--lift", "a=x", "--lift", "a=y"], "each name only once"),
        (["--pretrained", "--seeds", "0"], "expected a whole number from 1 on"),
    ],
)
def test_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--backbone", "test_vit", *arguments])
    assert message in capsys.readouterr().err


def test_unusable_files_end_with_a_sentence(tmp_path: Path) -> None:
    argv = ["--backbone", "test_vit", "--checkpoint", str(tmp_path / "no.safetensors"), "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"error: .*no\.safetensors"):
        main(argv)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("test_vit2", "backbone: trained with 'test_vit2', given 'test_vit'"),
        ("test_vit", r"weights: trained with 'tensor 0 on: .*', given 'tensor 0 on: .*'"),
    ],
)
def test_lift_of_another_vit_is_refused(other: str, message: str, tmp_path: Path) -> None:
    """Of the same width and patch size, so that it would run: another network, and other weights."""
    torch.manual_seed(0)
    save_file(TimmViT("test_vit").vit.state_dict(), tmp_path / "vit.safetensors")
    save_lift(LiFT(64, 16), tmp_path / "lift.safetensors", TimmViT(other).feature_spec().to_metadata())
    argv = ["--backbone", "test_vit", "--checkpoint", str(tmp_path / "vit.safetensors"), "--output", str(tmp_path)]
    argv += ["--lift", f"lift={tmp_path / 'lift.safetensors'}"]
    with pytest.raises(SystemExit, match=rf"(?s)error: .*lift\.safetensors was trained on other features.*{message}"):
        main(argv)
