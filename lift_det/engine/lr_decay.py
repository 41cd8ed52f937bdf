"""Layer-wise learning-rate decay that knows LiFT and timm's ViTs."""

from __future__ import annotations

# Names that come before the first block in detectron2's and timm's ViTs.
_EMBEDDINGS = (".pos_embed", ".patch_embed", ".cls_token", ".dist_token", ".reg_token", ".norm_pre")


def get_lift_vit_lr_decay_rate(
    name: str, lr_decay_rate: float = 1.0, num_layers: int = 12, lift_lr_rate: float = 1.0
) -> float:
    """The factor on the learning rate of a parameter, for ``get_default_optimizer_params(lr_factor_func=…)``.

    As detectron2's ``get_vit_lr_decay_rate``: ``lr_decay_rate`` to the power of the number of layers above. That one
    knows only detectron2's ViT; this one also knows the prefix tokens of timm's, and LiFT.

    Args:
        name: the parameter's name in the detector, such as ``"backbone.net.blocks.3.attn.qkv.weight"``.
        lr_decay_rate: from layer to layer.
        num_layers: blocks of the ViT.
        lift_lr_rate: LiFT's factor. 1 (the heads' rate) suits one that starts untrained; one that was trained on this
            ViT's features belongs to the pretrained part: give it ``lr_decay_rate``, the last block's.
    """
    if name.startswith("backbone.lift."):
        return lift_lr_rate
    layer = num_layers + 1
    if name.startswith("backbone.net."):
        if ".blocks." in name and ".residual." not in name:
            layer = int(name.split(".blocks.")[1].split(".")[0]) + 1
        elif any(part in name for part in _EMBEDDINGS):
            layer = 0
    return lr_decay_rate ** (num_layers + 1 - layer)
