"""Names and shapes in state dicts, on which released checkpoints depend."""

import json
from pathlib import Path

import pytest
from detectron2.config import instantiate

from lift_det import LiFT, LiFTPlus, model_zoo

KEYS = json.loads((Path(__file__).parent / "state_dict_keys.json").read_text())
BARE = dict(attention_kernel=0, standardize=False, preserve_norm=False)
LIFTS = {
    "paper8": (LiFT, 8, dict(residual=False)),
    "residual14": (LiFT, 14, {}),
    "plus14": (LiFTPlus, 14, {}),
    "trunk8": (LiFTPlus, 8, BARE),
    "pool514": (LiFTPlus, 14, {**BARE, "network": "paper", "attention_kernel": 5}),
}


def _shapes(module):
    return {name: list(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.parametrize("name", list(KEYS["lifts"]))
def test_lifts(name):
    kind, patch_size, options = LIFTS[name]
    assert _shapes(kind(16, patch_size, **options)) == KEYS["lifts"][name]


@pytest.mark.parametrize("name", list(KEYS["models"]))
def test_models_of_shipped_configs(name):
    model = model_zoo.get_config(name).model
    net = model.net if "net" in model else model.backbone.net
    if "pretrained" in net:
        net.pretrained = False
    assert _shapes(instantiate(model)) == KEYS["models"][name]
