"""Fixtures of several subcommands."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch

from lift_det import FeatureExtractor
from lift_det.modeling import LiFT, find_vit, save_lift


@pytest.fixture(autouse=True)
def small_models(one_thread):
    """All models here are small."""


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Path:
    """A folder with the weights of a small ViT, vit.pth, LiFTs for its tokens and its keys, and photo.png."""
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), folder / "vit.pth")
    net = find_vit(str(folder / "vit.pth"), "vit_tiny_patch16_224").build()
    for facet in ("token", "key"):
        spec = FeatureExtractor(net, facet=facet).feature_spec()
        save_lift(LiFT(192, 16), folder / f"{facet}.safetensors", spec.to_metadata())
    cv2.imwrite(str(folder / "photo.png"), np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    return folder
