"""Compares checkpoints with models, and rejects those that do not fit."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .files import CheckpointError

logger = logging.getLogger(f"detectron2.{__name__}")

# LayerScale in timm and DINOv2 (ls1.gamma), BEiT and EVA (gamma_1), and transformers (layer_scale1.lambda1).
_LAYER_SCALE = re.compile(r"(^|\.)(ls[12]\.gamma|gamma_[12]|layer_scale[12]\.lambda1)$")
# ViTDet's relative positions, which are zero at first, and which pretrained ViTs do not have.
_REL_POS = re.compile(r"\.rel_pos_[hw]$")
_BLOCK = re.compile(r"blocks\.\d+\.")
# Counter of BatchNorm, which is not needed. Old files and frozen norms do not have it.
_STEP_COUNTER = "num_batches_tracked"
# Parts of a detector, of which a checkpoint has to have all parameters or none. The first matching prefix counts.
_VIT = "backbone.net."
_GROUPS = (
    _VIT,
    "backbone.lift.",
    "backbone.simfp_",
    "proposal_generator.",
    "roi_heads.box",
    "roi_heads.mask",
    "roi_heads.",
    "",
)


@dataclass
class LoadReport:
    """Differences between the state dicts of a model and of a file; ``str()`` returns them as text."""

    matched: list[str] = field(default_factory=list)  # same name and shape
    missing: dict[str, tuple[int, ...]] = field(default_factory=dict)  # only in the model: its shape
    unexpected: dict[str, tuple[int, ...]] = field(default_factory=dict)  # only in the state dict: its shape
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)  # both shapes
    format: str = ""  # of recognise_vit
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)  # old and new shape
    ignored: dict[str, str] = field(default_factory=dict)  # left out on purpose: the reason

    def __str__(self) -> str:
        lines = [f"{f'format {self.format}, ' if self.format else ''}{len(self.matched)} tensors matched"]
        lines += _list("resized", [f"{k}: from {old} to {new}" for k, (old, new) in self.resized.items()])
        for reason in dict.fromkeys(self.ignored.values()):
            lines += _list(f"ignored ({reason})", [k for k, r in self.ignored.items() if r == reason], show=2)
        lines += _list("of another shape", [f"{k}: expected {e}, got {g}" for k, (e, g) in self.mismatched.items()])
        lines += _list("missing in the checkpoint", [f"{k} {shape}" for k, shape in self.missing.items()])
        lines += _list("not in the model", [f"{k} {shape}" for k, shape in self.unexpected.items()])
        return "\n".join(lines)


def _list(title: str, items: Sequence[str], show: int = 6) -> list[str]:
    if not items:
        return []
    more = [f"    … and {len(items) - show} more"] if len(items) > show else []
    return [f"  {len(items)} {title}:", *(f"    {item}" for item in items[:show]), *more]


def compare_state_dicts(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor], report: LoadReport | None = None
) -> LoadReport:
    """Compares the names and shapes of a model's state dict (``expected``) with those of a file (``given``)."""
    report = report or LoadReport()
    for name, tensor in expected.items():
        shape = tuple(tensor.shape)
        if name not in given:
            report.missing[name] = shape
        elif tuple(given[name].shape) != shape:
            report.mismatched[name] = (shape, tuple(given[name].shape))
        else:
            report.matched.append(name)
    report.unexpected = {name: tuple(t.shape) for name, t in given.items() if name not in expected}
    return report


def load_strictly(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    source: str,
    *,
    ignore_unexpected: Iterable[str] = (),
    ignore_missing: Iterable[str] = (),
    conversion: LoadReport | None = None,
    hint: str = "",
) -> LoadReport:
    """Loads a state dict into a module, if all names and shapes match.

    Args:
        module: is not changed if an error is raised.
        state_dict: the weights.
        source: origin of the weights, for messages.
        ignore_unexpected: regular expressions (``re.match``) of names that only the state dict may have. LayerScale is
            never ignored.
        ignore_missing: regular expressions of names that only the module may have.
        conversion: the report of :func:`convert_vit`, to which this one is added.
        hint: appended to the error message.

    Raises:
        CheckpointError: names or shapes differ. The message has the whole report.
    """
    report = compare_state_dicts(module.state_dict(), state_dict, conversion)
    for names in (report.missing, report.unexpected):
        for name in [name for name in names if name.endswith(_STEP_COUNTER)]:
            del names[name]
    for name in list(report.unexpected):
        if not _LAYER_SCALE.search(name) and any(re.match(pattern, name) for pattern in ignore_unexpected):
            del report.unexpected[name]
            report.ignored[name] = "not in the model"
    missing = [name for name in report.missing if not any(re.match(pattern, name) for pattern in ignore_missing)]
    if missing or report.mismatched or report.unexpected:
        raise CheckpointError(f"'{source}' does not fit {type(module).__name__}: {report}\n{hint}".rstrip())
    with torch.no_grad():
        module.load_state_dict({name: state_dict[name] for name in report.matched}, strict=False)
    logger.info("Loaded '%s' into %s: %s", source, type(module).__name__, report)
    return report


def check_partial_load(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor], ignore_mismatch: Sequence[str] = ()
) -> str:
    """Checks a state dict that may lack some parts of a detector, such as the heads.

    The ViT has to be complete, except for relative positions. Any other part (LiFT, pyramid, heads) has to be complete
    or missing. An incomplete one has another width, depth, patch size or number of classes than the model, and
    detectron2 would train it from random weights.

    Args:
        expected: the model's state dict.
        given: the checkpoint's, where names that detectron2's heuristics could not match are those of the file.
        ignore_mismatch: prefixes of names that may be incomplete.

    Returns:
        A report for the log.

    Raises:
        CheckpointError: nothing fits, a part is incomplete, or LayerScale would be dropped.
    """
    report = compare_state_dicts(expected, given)
    dropped = [name for name in report.unexpected if _LAYER_SCALE.search(name)]
    if dropped:
        raise CheckpointError(
            f"The checkpoint has LayerScale ({len(dropped)} tensors, such as '{dropped[0]}') and this model has none; "
            "without it the features are wrong. Use lift_det.TimmViT with the timm name of the checkpoint's ViT."
        )
    if given and not report.matched:
        raise CheckpointError(
            "No tensor of the checkpoint fits this model. For a bare pretrained ViT append "
            f"'?matching_heuristics=True' to the file's name; otherwise compare width and names:\n{report}"
        )

    def group_of(name: str) -> str:
        return next(group for group in _GROUPS if name.startswith(group))

    loaded = Counter(group_of(name) for name in report.matched)
    has_rel_pos = any(_REL_POS.search(name) for name in given)
    misfits: dict[str, list[str]] = {}
    for name in [*report.missing, *report.mismatched]:
        if not name.endswith(_STEP_COUNTER) and (has_rel_pos or not _REL_POS.search(name)):
            misfits.setdefault(group_of(name), []).append(name)
    for name in report.unexpected:  # blocks of a deeper ViT; detectron2's heuristics leave them without a prefix
        group = _VIT if _BLOCK.match(name) else group_of(name)
        if group == _VIT and not any(other.endswith("." + name) for other in expected):
            misfits.setdefault(_VIT, []).append(name)

    summary, problems, ignored = [], [], tuple(ignore_mismatch)
    for group in sorted(misfits, key=_GROUPS.index):
        names = misfits[group]
        absent = not loaded[group] and report.missing.keys() >= set(names)
        if absent and group != _VIT:
            summary.append(f"{group}* ({len(names)} tensors) is not in the checkpoint: keeps its own initialisation")
        elif group.startswith(ignored) or all(name.startswith(ignored) for name in names):
            summary.append(f"{group}*: {loaded[group]} tensors loaded, {len(names)} not (ignore_mismatch)")
        else:
            problems.append(group)
    if problems:
        raise CheckpointError(_partial_load_message({g: misfits[g] for g in problems}, loaded, expected, report))
    summary += [f"{group}*: all {count} tensors loaded" for group, count in loaded.items() if group not in misfits]
    if report.unexpected:
        names = list(report.unexpected)
        summary.append(f"ignored, not in this model: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}")
    return "\n".join(["Checkpoint:", *(f"  {line}" for line in summary)])


def _partial_load_message(
    problems: Mapping[str, list[str]], loaded: Counter[str], expected: Mapping[str, Tensor], report: LoadReport
) -> str:
    def describe(name: str) -> str:
        if name in report.unexpected:
            return f"{name}: got {report.unexpected[name]}, which the model does not have"
        got = report.mismatched.get(name, (None, "none, or another shape that detectron2 has dropped"))[1]
        for other, shape in report.unexpected.items():  # names that the heuristics left because of their shape
            if name.endswith("." + other):
                got = shape
        return f"{name}: expected {tuple(expected[name].shape)}, got {got}"

    lines = []
    for group, names in problems.items():
        total = loaded[group] + len(names)
        lines.append(f"The checkpoint fits '{group}*' only in part: {loaded[group]} of {total} tensors.")
        lines += _list("do not fit", [describe(name) for name in names])
    # roi_heads has several groups, all of which depend on the number of classes
    parts = sorted({"roi_heads" if group.startswith("roi_heads") else group.rstrip(".") for group in problems})
    lines.append(
        "Check embed_dim, depth, patch_size, img_size and num_classes of the config against the checkpoint. To load "
        f"what fits, for example with new classes: model.ignore_mismatch=[{','.join(parts)}] "
        "(yacs: MODEL.IGNORE_MISMATCH)."
    )
    return "\n".join(lines)
