"""LiFT's self-supervised training as a detectron2 model: images in, losses out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from ..backbones import PlainViT
from ..features import FeatureExtractor
from ..norms import synchronise_batchnorm
from ..upsamplers import FeatureUpsampler, LazyUpsampler, resize, save_lift
from .checked_loading import CheckedLoading
from .feature_cache import FeatureCache, digest

#: what is reconstructed from what: (name, size it starts from, size it ends at), sizes as shares of the image
OBJECTIVES = {
    "full_from_half": (2, 1),
    "half_from_quarter": (4, 2),
    "full_from_quarter": (4, 1),
}
#: the tasks of an evaluation, under the names that its figures have
TASKS = {"2x": (2, 1), "2x_half": (4, 2), "4x": (4, 1)}


class LiFTPretraining(CheckedLoading, nn.Module):
    """Trains LiFT to give an image's features from those of the image at a smaller size (section 3.1 of the paper).

    Full size is reconstructed from half, and half from quarter; ``full_from_quarter`` trains the recursion (section
    3.3), which the paper leaves untrained. The ViT is frozen and stays in evaluation mode. Its name here is
    ``backbone.net`` and LiFT's is ``backbone.lift``, as in a detector: a checkpoint of this model is an
    ``init_checkpoint`` of one.

    Several processes train as one does: BatchNorm sees the whole batch.
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
        norm: bool | None = None,
        objectives: Mapping[str, float] | None = None,
        losses: Mapping[str, float] | None = None,
        feature_cache: str | os.PathLike = "",
        autocast: str = "",
        mirror: bool = False,
        freeze_norm: bool = False,
    ) -> None:
        """
        Args:
            net: the ViT.
            lift: what is trained. A :class:`LazyUpsampler` without a name and a checkpoint is ``"lift_plus"``.
            pixel_mean: of each channel on the 0 to 255 scale, in the order of the loader's images (RGB); None takes
                the ViT's own.
            pixel_std: of each channel, too.
            layer, facet, norm: which of the ViT's features, see :class:`lift_det.FeatureExtractor`.
            objectives: weights of ``full_from_half``, ``half_from_quarter`` (the paper's two, which None stands for)
                and ``full_from_quarter``, which goes through LiFT twice, the image enlarged bilinearly in between.
            losses: weights of ``cosine`` (one minus the cosine similarity of the channels), ``l1`` and ``l2`` (mean
                absolute and mean squared difference), each a mean over positions, and ``relative_l2`` (the squared
                difference as a share of the true features' square, whatever their scale); None is cosine alone, which
                leaves the length of the features free to drift.
            mirror: every second step sees images and maps mirrored, left and right: twice the data where a cache limits
                the views. (A ViT's map of a mirrored image is not quite the mirrored map.)
            feature_cache: folder where the ViT's maps are kept, in half precision, and found again when the same image
                (the same crop) comes back; empty keeps none. Of use where the dataset has a limited number of views.
            autocast: ``"bfloat16"`` trains in mixed precision on any device, where detectron2's ``train.amp`` needs
                CUDA. Evaluations are in the weights' own precision, with either.
            freeze_norm: LiFT's BatchNorm normalises with the statistics that it has, in training as in evaluation, and
                leaves them as they are; its scale and shift are trained. For a LiFT that is trained already: then a
                batch computed in parts (``accumulate`` of :class:`Trainer`) has the gradients of the whole.

        Raises:
            ValueError: unknown objectives or losses, or no image statistics.
        """
        super().__init__()
        self.objectives = _weights(objectives or {"full_from_half": 1.0, "half_from_quarter": 1.0}, OBJECTIVES)
        self.losses = _weights(losses or {"cosine": 1.0}, _LOSSES)
        net.requires_grad_(False)
        if lift is None:
            raise ValueError("LiFT's training needs a lift to train: a FeatureUpsampler, or a LazyUpsampler.")
        if isinstance(lift, LazyUpsampler):
            lift = lift.with_default("lift_plus")
        self.backbone = FeatureExtractor(
            net, lift, layer=layer, facet=facet, norm=norm, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        if comm.get_world_size() > 1:
            synchronise_batchnorm(self.backbone.lift)
        for name, values in zip(("pixel_mean", "pixel_std"), self.backbone.pixel_statistics(), strict=True):
            self.register_buffer(name, torch.tensor(list(values)).view(-1, 1, 1), persistent=False)
        #: training steps so far; in checkpoints, so that a LiFT says how long it was trained
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        if autocast not in ("", "bfloat16", "float16"):
            raise ValueError(f"autocast is 'bfloat16', 'float16' or empty, not '{autocast}'.")
        self.autocast = autocast
        self.mirror = mirror
        self.freeze_norm = freeze_norm
        self._counted: int | None = None
        self.feature_cache = feature_cache
        self._cache: FeatureCache | None = None

    @property
    def lift(self) -> FeatureUpsampler:
        """What is trained."""
        return self.backbone.lift

    def train(self, mode: bool = True) -> LiFTPretraining:
        """The ViT stays in evaluation mode, and so does a frozen BatchNorm."""
        super().train(mode)
        self.backbone.net.eval()
        if self.freeze_norm:
            for module in self.lift.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        self._counted = None
        return self

    def forward(self, batch: list[dict]) -> dict[str, Tensor] | Reconstructions:
        """
        Args:
            batch: of dicts with ``"image"``, uint8 or float (3, H, W) on the 0 to 255 scale, all of one size:
                multiples of four patches.

        Returns:
            In training the losses, weighted, as ``loss_<objective>`` (``loss_<objective>_<loss>`` where there are
            several). In evaluation :class:`Reconstructions`.

        Raises:
            ValueError: a size that is no multiple of four patches.
        """
        if not self.training:
            with torch.autocast(self.pixel_mean.device.type, enabled=False):
                return Reconstructions(self._scores(*self._inputs(batch, TASKS)), self)
        self._count_step()
        if not self.autocast:
            return self._training_losses(*self._inputs(batch, OBJECTIVES))
        with torch.autocast(self.pixel_mean.device.type, getattr(torch, self.autocast)):
            return self._training_losses(*self._inputs(batch, OBJECTIVES))

    def _count_step(self) -> None:
        """Once for each of a trainer's iterations, which may come in several parts; without a trainer, every time."""
        iteration = get_event_storage().iter if has_event_storage() else None
        if iteration is None or iteration != self._counted:
            self.steps += 1
        self._counted = iteration

    def _inputs(
        self, batch: list[dict], pairs: Mapping[str, tuple[int, int]]
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """The images at each size that ``pairs`` speak of, and the ViT's maps of them; both by share of the size."""
        raw = [item["image"] for item in batch]
        images = torch.stack(raw).to(self.pixel_mean.device)
        images = (images - self.pixel_mean) / self.pixel_std  # (N, 3, H, W)
        height, width = images.shape[-2:]
        patch = self.backbone.patch_size
        if height % (4 * patch) or width % (4 * patch):
            raise ValueError(
                f"Images of {height}×{width} pixels cannot be quartered into patches of {patch}: "
                f"choose multiples of {4 * patch}."
            )
        used = sorted({part for pair in pairs.values() for part in pair})
        scaled = {part: resize(images, (height // part, width // part)) for part in used}
        return scaled, self._features(raw, scaled)

    def _training_losses(self, scaled: dict[int, Tensor], features: dict[int, Tensor]) -> dict[str, Tensor]:
        if self.mirror and self.steps % 2:
            scaled, features = ({part: x.flip(-1) for part, x in maps.items()} for maps in (scaled, features))
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
            for kind, share in self.losses.items():
                key = f"loss_{name}" if len(self.losses) == 1 else f"loss_{name}_{kind}"
                # in full precision: half a precision's error is as large as what is left to learn
                losses[key] = weight * share * _LOSSES[kind](lifted.float(), features[end])
        return losses

    @torch.no_grad()
    def _features(self, raw: Sequence[Tensor], scaled: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The ViT's maps at each scale, from the cache where it has them: share → (N, C, h / share, w / share)."""
        if not self.feature_cache:
            return {part: self.backbone.extract(images).float() for part, images in scaled.items()}
        if self._cache is None:
            # here and not at construction, because a checkpoint may have been loaded in between
            self._cache = FeatureCache(
                self.feature_cache, digest(self.backbone.net, self.backbone.feature_spec().to_metadata())
            )
        cache, parts = self._cache, tuple(scaled)
        # and the precision, which is another in training where there is an autocast
        device = self.pixel_mean.device
        precision = str(torch.get_autocast_dtype(device.type)) if torch.is_autocast_enabled(device.type) else ""
        sizes = tuple(tuple(images.shape[-2:]) for images in scaled.values())
        keys = [cache.key(image, (*sizes, precision)) for image in raw]
        found = [cache.get(key) for key in keys]
        if None in found:
            # all of them: sums may depend on what else is in a batch, and a resumed training may find only some
            new = {part: self.backbone.extract(images).float() for part, images in scaled.items()}
            for i in (i for i, maps in enumerate(found) if maps is None):
                # rounded as they are kept, so that a training that finds them goes on as one that made them
                rounded = {str(part): maps[i].half().float() for part, maps in new.items()}
                if all(maps.isfinite().all() for maps in rounded.values()):
                    found[i] = rounded
                    cache.put(keys[i], rounded)
                else:  # out of half precision's range
                    found[i] = {str(part): maps[i] for part, maps in new.items()}
        return {part: torch.stack([maps[str(part)].to(device) for maps in found]) for part in parts}

    def _scores(self, scaled: dict[int, Tensor], features: dict[int, Tensor]) -> list[dict[str, dict[str, float]]]:
        size = tuple(features[1].shape[-2:])
        results: dict[str, dict[str, Tensor]] = {}
        for task, (start, end) in TASKS.items():
            true, steps = features[end], (start // end).bit_length() - 1
            target = (size[0] // end, size[1] // end)
            candidates = {
                mode: F.interpolate(
                    features[start], size=target, mode=mode, **({} if mode == "nearest" else {"align_corners": False})
                )
                for mode in ("nearest", "bilinear", "bicubic")
            }
            candidates["lift"] = self.lift.upsample(scaled[start], features[start], steps)
            if steps > 1:  # where there is the whole image, later steps look at it and not at an enlarged one
                candidates["lift_original"] = self.lift.upsample(scaled[end], features[start], steps)
            for name, map_ in candidates.items():
                results.setdefault(f"cosine_{task}", {})[name] = F.cosine_similarity(map_, true, dim=1).mean((1, 2))
                results.setdefault(f"rel_l2_{task}", {})[name] = relative_l2(map_, true)
        return [
            {figure: {name: value[i].item() for name, value in values.items()} for figure, values in results.items()}
            for i in range(features[1].shape[0])
        ]


class Reconstructions(list):
    """For each image the figures of an evaluation, and the model that they are of.

    Each item is ``{"cosine_2x": {"nearest": …, "bilinear": …, "bicubic": …, "lift": …}, …}`` with the cosine similarity
    (averaged over positions) and the relative L2 error to the true features, for ``2x`` (full from half), ``2x_half``
    (half from quarter) and ``4x`` (full from quarter by recursion; there ``lift_original`` is the recursion whose
    second step looks at the real image at half size rather than at the enlarged one).
    """

    def __init__(self, scores: Sequence[dict[str, dict[str, float]]], model: LiFTPretraining) -> None:
        super().__init__(scores)
        self._model = model

    def save_lift(self, path: str | os.PathLike, metadata: Mapping[str, str]) -> None:
        """Writes the LiFT with its settings and ``metadata``, see :func:`lift_det.modeling.save_lift`."""
        model = self._model
        features = model.backbone.feature_spec().to_metadata()
        save_lift(model.lift, path, {**features, "steps": str(int(model.steps)), **metadata})


def relative_l2(a: Tensor, b: Tensor) -> Tensor:
    """‖a − b‖ / ‖b‖ of each image: (N, C, h, w) twice → (N,)."""
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


def _weights(given: Mapping[str, float], known: Mapping[str, Any]) -> dict[str, float]:
    """The weights that are not zero, in the order given."""
    unknown = [name for name in given if name not in known]
    weights = {name: float(weight) for name, weight in given.items() if weight}
    if unknown or not weights or min(weights.values()) < 0:
        raise ValueError(f"Expected positive weights for some of {list(known)}, got {dict(given)}.")
    return weights
