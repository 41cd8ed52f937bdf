"""A config of LiFT's training for a ViT and folders of images."""

from pathlib import Path

import pytest
from detectron2.config import instantiate

from lift_det.config import OverrideError
from lift_det.data import write_synthetic_coco
from lift_det.engine import pretraining_config
from lift_det.modeling import LiFTPlus, find_vit


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images."""
    return write_synthetic_coco(tmp_path_factory.mktemp("images"), num_train=40, num_val=2) / "train"


def config(images: Path, backbone: str = "vit_small_patch14_dinov2.lvd142m", **options):
    return pretraining_config(find_vit(backbone), [images], "out", device="cpu", **options)


@pytest.mark.parametrize(
    ("backbone", "size"),
    [("vit_small_patch14_dinov2.lvd142m", 448), ("vit_base_patch32_224.augreg_in21k", 512)],
)
def test_sizes_follow_the_patch(images: Path, backbone: str, size: int) -> None:
    cfg = config(images, backbone)
    assert cfg.dataloader.train.dataset.image_size == cfg.dataloader.test.dataset.image_size == size
    # LiFT's width and patch size are the ViT's
    assert set(cfg.model.lift) == {"_target_", "name", "checkpoint"}
    assert config(images, backbone, image_size=896).dataloader.train.dataset.image_size == 896
    with pytest.raises(ValueError, match=r"image_size=100: .* (56|128)"):
        config(images, backbone, image_size=100)


def test_the_model_is_of_the_given_vit(images: Path) -> None:
    cfg = config(images, "vit_base_patch32_224.augreg_in21k", layer=3, facet="key")
    cfg.model.net.pretrained = False
    model = instantiate(cfg.model)
    assert type(model.lift) is LiFTPlus and (model.lift.in_channels, model.lift.patch_size) == (768, 32)
    assert (model.backbone.layer, model.backbone.facet) == (3, "key")
    assert (model.pixel_mean == 127.5).all()  # augreg's


def test_without_val_every_twentieth_image_is_held_out(images: Path) -> None:
    train, test = (config(images).dataloader[split].dataset for split in ("train", "test"))
    assert train.holdout == test.holdout == 20
    assert (len(instantiate(train)), len(instantiate(test))) == (38, 2)
    train, test = (config(images, val=[images]).dataloader[split].dataset for split in ("train", "test"))
    assert (len(instantiate(train)), len(instantiate(test))) == (40, 40)


def test_lengths_and_cache(images: Path) -> None:
    """In the CPU's config two views of 38 images are 38 iterations of two."""
    cfg = config(images)
    assert cfg.train.max_iter == cfg.train.eval_period == 7000 and cfg.train.device == "cpu"
    assert cfg.model.feature_cache and cfg.dataloader.train.dataset.views == 2
    cfg = config(images, iterations=38)
    assert cfg.train.max_iter == cfg.train.eval_period == 38
    assert not cfg.model.feature_cache and cfg.dataloader.train.dataset.views == 0
    assert config(images, iterations=38, batch_size=4).model.feature_cache
    with pytest.raises(ValueError, match="iterations=0"):
        config(images, iterations=0)
    assert config(images, batch_size=8).train.max_iter == 7000  # it is in iterations
    with pytest.raises(ValueError, match="train.epochs"):
        config(images, overrides=["train.epochs=3"])


def test_overrides_come_last_but_the_folder_stays(images: Path) -> None:
    overrides = ["train.max_iter=9", "model.lift.name=lift", "train.output_dir=elsewhere"]
    cfg = config(images, iterations=5, overrides=overrides)
    assert cfg.train.max_iter == cfg.train.eval_period == 9
    assert cfg.model.lift.name == "lift" and cfg.train.output_dir == "out"
    with pytest.raises(OverrideError):
        config(images, overrides=["train.max_iter.x=9"])


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    folder = write_synthetic_coco(tmp_path, num_train=3, num_val=1) / "train"
    with pytest.raises(ValueError, match="--val"):
        config(folder)
