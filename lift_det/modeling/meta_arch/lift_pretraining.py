"""LiFT's self-supervised training as a detectron2 model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from ..backbones import PlainViT
from ..features import FeatureExtractor
from ..norms import synchronise_batchnorm
from ..upsamplers import FeatureUpsampler, LazyUpsampler, resize, save_lift
from .checked_loading import CheckedLoading
from .feature_cache import FeatureCache

#: objective -> (input, target): features of the image with its sides divided by these numbers
OBJECTIVES = {
    "full_from_half": (2, 1),
    "half_from_quarter": (4, 2),
    "full_from_quarter": (4, 1),
}
#: the same for the tasks of an evaluation
TASKS = {"2x": (2, 1), "2x_half": (4, 2), "4x": (4, 1)}


class LiFTPretraining(CheckedLoading, nn.Module):
    """Trains LiFT to predict an image's features from those of the image at a smaller size (section 3.1 of the paper).

    The ViT is frozen. BatchNorm is synchronised across processes. State-dict names are ``backbone.net.*`` and
    ``backbone.lift.*``, so that a checkpoint can initialise a detector.
    """

    def __init__(
        self,
        net: PlainViT,
        lift: FeatureUpsampler | LazyUpsampler,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        *,
        layer: int | None = None,
        facet: str = "token",
        final_norm: bool | None = None,
        objectives: Mapping[str, float] | None = None,
        losses: Mapping[str, float] | None = None,
        feature_cache: str | os.PathLike = "",
        autocast: str = "",
        freeze_batchnorm: bool = False,
    ) -> None:
        """
        Args:
            net: the ViT.
            lift: the upsampler to train. A :class:`LazyUpsampler` without name and checkpoint builds a ``"lift_plus"``.
            pixel_mean, pixel_std: of the images, RGB, 0 to 255. Default: the ViT's.
            layer, facet, final_norm: see :meth:`PlainViT.feature_map`.
            objectives: weights of ``"full_from_half"``, ``"half_from_quarter"`` and ``"full_from_quarter"``. The last
                one applies LiFT twice (section 3.3), with the image enlarged bilinearly in between. Default: 1 for the
                first two, as in the paper.
            losses: weights of ``"cosine"`` (1 - cosine similarity over channels), ``"l1"`` and ``"l2"`` (mean absolute
                and squared differences) and ``"relative_l2"`` (``"l2"`` divided by the mean square of the target).
                Default: 1 for ``"cosine"``, which does not train the features' norm.
            feature_cache: folder for a cache of the ViT's features, for training images that repeat exactly. Default:
                no cache.
            autocast: dtype of mixed precision in training, ``"bfloat16"`` or ``"float16"``. Default: none.
            freeze_batchnorm: normalise with LiFT's BatchNorm statistics in training, and keep them, to continue the
                training of a LiFT. Gradients then do not depend on ``accumulate`` of :class:`lift_det.engine.Trainer`.

        Raises:
            ValueError: an unknown objective, loss or dtype, or the image statistics are unknown.
        """
        super().__init__()
        self.objectives = _check_weights(objectives or {"full_from_half": 1.0, "half_from_quarter": 1.0}, OBJECTIVES)
        self.losses = _check_weights(losses or {"cosine": 1.0}, _LOSSES)
        net.requires_grad_(False)
        if lift is None:
            raise ValueError("lift is None: expected a FeatureUpsampler or a LazyUpsampler to train.")
        if isinstance(lift, LazyUpsampler) and not (lift.name or lift.checkpoint):
            lift = LazyUpsampler("lift_plus", **lift.settings)
        self.backbone = FeatureExtractor(
            net, lift, layer=layer, facet=facet, final_norm=final_norm, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        synchronise_batchnorm(self.backbone.lift)
        for name, values in zip(("pixel_mean", "pixel_std"), self.backbone.pixel_statistics(), strict=True):
            self.register_buffer(name, torch.tensor(list(values)).view(-1, 1, 1), persistent=False)
        #: number of training iterations, kept in checkpoints
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        if autocast not in ("", "bfloat16", "float16"):
            raise ValueError(f"autocast is 'bfloat16', 'float16' or empty, not '{autocast}'.")
        self.autocast = autocast
        self.freeze_batchnorm = freeze_batchnorm
        self._counted: int | None = None
        self.feature_cache = feature_cache
        self._cache: FeatureCache | None = None

    @property
    def lift(self) -> FeatureUpsampler:
        """The upsampler that is trained."""
        return self.backbone.lift

    def train(self, mode: bool = True) -> LiFTPretraining:
        """Sets the mode. The ViT and frozen BatchNorms stay in evaluation mode."""
        super().train(mode)
        self.backbone.net.eval()
        if self.freeze_batchnorm:
            for module in self.lift.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        self._counted = None
        return self

    def forward(self, batch: list[dict]) -> dict[str, Tensor] | Reconstructions:
        """
        Args:
            batch: dicts with ``"image"``: (3, H, W), uint8 or float, RGB, 0 to 255. All images have the same size, with
                H and W multiples of four patches.

        Returns:
            In training, the weighted losses ``loss_<objective>``, or ``loss_<objective>_<loss>`` if there are several
            losses. In evaluation, :class:`Reconstructions`.

        Raises:
            ValueError: H or W is not a multiple of four patches.
        """
        if not self.training:
            with torch.autocast(self.pixel_mean.device.type, enabled=False):
                return Reconstructions(self._scores(*self._inputs(batch)), self)
        self._count_step()
        if not self.autocast:
            return self._training_losses(*self._inputs(batch))
        with torch.autocast(self.pixel_mean.device.type, getattr(torch, self.autocast)):
            return self._training_losses(*self._inputs(batch))

    def _count_step(self) -> None:
        """Counts iterations, each of which may call the model several times."""
        iteration = get_event_storage().iter if has_event_storage() else None
        if iteration is None or iteration != self._counted:
            self.steps += 1
        self._counted = iteration

    def _inputs(self, batch: list[dict]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Returns the images and their features by the divisor of the image's size: 1, 2 and 4."""
        raw = [item["image"] for item in batch]
        images = torch.stack(raw).to(self.pixel_mean.device)
        images = (images - self.pixel_mean) / self.pixel_std  # (N, 3, H, W)
        height, width = images.shape[-2:]
        patch = self.backbone.patch_size
        if height % (4 * patch) or width % (4 * patch):
            raise ValueError(
                f"Images of {height}×{width} pixels: both sides have to be multiples of {4 * patch} (four patches)."
            )
        scaled = {part: resize(images, (height // part, width // part)) for part in (1, 2, 4)}
        return scaled, self._features(raw, scaled)

    def _training_losses(self, scaled: dict[int, Tensor], features: dict[int, Tensor]) -> dict[str, Tensor]:
        losses = {}
        half_from_quarter: Tensor | None = None
        for name, weight in self.objectives.items():
            start, end = OBJECTIVES[name]
            if start == 4 and half_from_quarter is None:
                half_from_quarter = self.lift.step(scaled[4], features[4])
            if name == "half_from_quarter":
                lifted = half_from_quarter
            elif name == "full_from_quarter":
                lifted = self.lift.step(resize(scaled[4], tuple(scaled[2].shape[-2:])), half_from_quarter)
            else:
                lifted = self.lift.step(scaled[start], features[start])
            for kind, factor in self.losses.items():
                key = f"loss_{name}" if len(self.losses) == 1 else f"loss_{name}_{kind}"
                # in float32, because the rounding of half precision is as large as the remaining loss
                losses[key] = weight * factor * _LOSSES[kind](lifted.float(), features[end])
        return losses

    @torch.no_grad()
    def _features(self, raw: Sequence[Tensor], scaled: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Returns the ViT's features, (N, C, h / divisor, w / divisor), by divisor."""

        def compute() -> dict[str, Tensor]:
            return {str(part): self.backbone.extract(images).float() for part, images in scaled.items()}

        if not self.feature_cache:
            return {int(part): maps for part, maps in compute().items()}
        if self._cache is None:  # not created in __init__, because a checkpoint may change the ViT afterwards
            self._cache = FeatureCache(
                self.feature_cache, self.backbone.net, self.backbone.feature_spec().to_metadata()
            )
        device = self.pixel_mean.device
        precision = str(torch.get_autocast_dtype(device.type)) if torch.is_autocast_enabled(device.type) else ""
        sizes = [tuple(images.shape[-2:]) for images in scaled.values()]
        maps = self._cache.maps(raw, (*sizes, precision), compute)
        return {part: torch.stack([item.to(device) for item in maps[str(part)]]) for part in scaled}

    def _scores(self, scaled: dict[int, Tensor], features: dict[int, Tensor]) -> list[dict[str, dict[str, float]]]:
        size = tuple(features[1].shape[-2:])
        results: dict[str, dict[str, Tensor]] = {}
        for task, (start, end) in TASKS.items():
            true, steps = features[end], (start // end).bit_length() - 1
            target = (size[0] // end, size[1] // end)
            modes = ("nearest", "bilinear", "bicubic")
            candidates = {mode: F.interpolate(features[start], size=target, mode=mode) for mode in modes}
            candidates["lift"] = self.lift.upsample(scaled[start], features[start], steps)
            if steps > 1:  # the second step gets the image at half size, not the enlarged quarter
                candidates["lift_original"] = self.lift.upsample(scaled[end], features[start], steps)
            for name, map_ in candidates.items():
                results.setdefault(f"cosine_{task}", {})[name] = F.cosine_similarity(map_, true, dim=1).mean((1, 2))
                results.setdefault(f"rel_l2_{task}", {})[name] = relative_l2(map_, true)
        return [
            {figure: {name: value[i].item() for name, value in values.items()} for figure, values in results.items()}
            for i in range(features[1].shape[0])
        ]


class Reconstructions(list):
    """The scores of each image in an evaluation.

    Each item is ``{"cosine_2x": {"nearest": …, "bilinear": …, "bicubic": …, "lift": …}, "rel_l2_2x": …, …}`` with the
    cosine similarity (mean over positions) and the relative L2 error to the true features. The tasks are ``2x`` (full
    size from half), ``2x_half`` (half from quarter) and ``4x`` (full from quarter). ``4x`` also has
    ``"lift_original"``, where the second doubling gets the image at half size instead of the enlarged quarter.
    """

    def __init__(self, scores: Sequence[dict[str, dict[str, float]]], model: LiFTPretraining) -> None:
        super().__init__(scores)
        self._model = model

    def save_lift(self, path: str | os.PathLike, metadata: Mapping[str, str]) -> None:
        """Saves the trained LiFT with the metadata of its features; see :func:`lift_det.save_lift`."""
        model = self._model
        features = model.backbone.feature_spec().to_metadata()
        save_lift(model.lift, path, {**features, "steps": str(int(model.steps)), **metadata})


def relative_l2(a: Tensor, b: Tensor) -> Tensor:
    """‖a − b‖ / ‖b‖ of each image; (N, C, h, w) → (N,)."""
    return (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)


def _cosine_loss(a: Tensor, b: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(a, b, dim=1).mean()


def _relative_l2_loss(a: Tensor, b: Tensor) -> Tensor:
    return F.mse_loss(a, b) / b.square().mean()


_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": _cosine_loss,
    "relative_l2": _relative_l2_loss,
    "l1": F.l1_loss,
    "l2": F.mse_loss,
}


def _check_weights(given: Mapping[str, float], known: Mapping[str, Any]) -> dict[str, float]:
    """Returns the non-zero weights."""
    unknown = [name for name in given if name not in known]
    weights = {name: float(weight) for name, weight in given.items() if weight}
    if unknown or not weights or min(weights.values()) < 0:
        raise ValueError(f"Expected positive weights for some of {list(known)}, got {dict(given)}.")
    return weights
