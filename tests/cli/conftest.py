"""Fixtures of several subcommands."""

from pathlib import Path

import pytest
import timm
import torch


@pytest.fixture(autouse=True)
def small_models(one_thread):
    """All models here are small."""


@pytest.fixture(scope="session")
def vit_file(tmp_path_factory) -> Path:
    """Random weights of vit_tiny_patch16_224."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), path)
    return path
