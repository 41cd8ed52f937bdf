"""A config of LiFT's training for a ViT and folders of images."""

import pytest
from detectron2.config import instantiate

from lift_det.data import write_synthetic_coco
from lift_det.engine import pretraining_config
from lift_det.modeling import LiFTPlus, find_vit


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Forty images."""
    return write_synthetic_coco(tmp_path_factory.mktemp("images"), num_train=40, num_val=2) / "train"


def config(images, backbone="vit_small_patch14_dinov2.lvd142m", **options):
    return pretraining_config(find_vit(backbone), [images], "out", device="cpu", **options)


@pytest.mark.parametrize(
    ("backbone", "size"),
    [("vit_small_patch14_dinov2.lvd142m", 448), ("vit_base_patch32_224.augreg_in21k", 512)],
)
def test_sizes_follow_the_patch(images, backbone, size):
    cfg = config(images, backbone)
    assert cfg.dataloader.train.dataset.image_size == cfg.dataloader.test.dataset.image_size == size
    # LiFT's width and patch size are the ViT's
    assert set(cfg.model.lift) == {"_target_", "name", "checkpoint"}
    assert config(images, backbone, image_size=896).dataloader.train.dataset.image_size == 896
    with pytest.raises(ValueError, match="image_size=100.* (56|128)"):
        config(images, backbone, image_size=100)


def test_the_model_is_of_the_given_vit(images):
    cfg = config(images, "vit_base_patch32_224.augreg_in21k", layer=3, facet="key")
    cfg.model.net.pretrained = False
    model = instantiate(cfg.model)
    assert type(model.lift) is LiFTPlus and (model.lift.in_channels, model.lift.patch_size) == (768, 32)
    assert (model.backbone.layer, model.backbone.facet) == (3, "key")
    assert (model.pixel_mean == 127.5).all()  # augreg's


@pytest.mark.parametrize(("val", "numbers"), [(False, (38, 2)), (True, (40, 40))])
def test_without_val_every_twentieth_image_is_held_out(images, val, numbers):
    loader = config(images, val=[images] if val else None).dataloader
    assert (len(instantiate(loader.train.dataset)), len(instantiate(loader.test.dataset))) == numbers


@pytest.mark.parametrize(
    ("options", "iterations", "views"),
    [
        ({}, 7000, 2),
        ({"batch_size": 8}, 7000, 2),  # the length is in iterations
        ({"iterations": 38}, 38, 0),  # 38 iterations of two are all views of 38 images
        ({"iterations": 38, "batch_size": 4}, 38, 2),
        ({"iterations": 5, "overrides": ["train.max_iter=9", "train.output_dir=elsewhere"]}, 9, 0),
    ],
)
def test_lengths_cache_and_overrides(images, options, iterations, views):
    cfg = config(images, **options)
    assert cfg.train.max_iter == cfg.train.eval_period == iterations
    assert cfg.dataloader.train.dataset.views == views and bool(cfg.model.feature_cache) is (views > 0)
    assert (cfg.train.device, cfg.train.output_dir) == ("cpu", "out")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"iterations": 0}, "iterations=0"),
        ({"overrides": ["train.epochs=3"]}, "train.epochs"),
        ({"overrides": ["train.max_iter.x=9"]}, "train.max_iter.x=9"),
    ],
)
def test_wrong_options_are_refused(images, options, name):
    with pytest.raises(ValueError, match=name):
        config(images, **options)


def test_too_few_images_are_refused(tmp_path):
    folder = write_synthetic_coco(tmp_path, num_train=3, num_val=1) / "train"
    with pytest.raises(ValueError, match="--val"):
        config(folder)
