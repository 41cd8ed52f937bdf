"""What of a checkpoint fitted a model: a report to log, and the rules by which a bad fit is refused."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from .files import CheckpointError

logger = logging.getLogger(f"detectron2.{__name__}")

# LayerScale as timm and DINOv2 (ls1.gamma), BEiT and EVA (gamma_1) and transformers (layer_scale1.lambda1) name it.
_LAYER_SCALE = re.compile(r"(^|\.)(ls[12]\.gamma|gamma_[12]|layer_scale[12]\.lambda1)$")
# ViTDet adds relative positions to a ViT that was pretrained without: their tables start from zero.
_REL_POS = re.compile(r"\.rel_pos_[hw]$")
_BLOCK = re.compile(r"blocks\.\d+\.")


@dataclass
class LoadReport:
    """How a state dict fits a model.

    Attributes:
        matched: names in both with equal shapes.
        missing: names the model has and the state dict lacks, with the model's shape.
        unexpected: names the state dict has and the model lacks, with the state dict's shape.
        mismatched: names in both with ``(the model's shape, the state dict's shape)``.
        format: what :func:`recognise_vit` says, where a ViT's weights were converted; else empty.
        mapped: the file's names to the model's; several may have become one.
        resized: the model's names of what was interpolated, with ``(the file's shape, the model's shape)``.
        ignored: the file's names of what was left out on purpose, with the reason.
    """

    matched: list[str] = field(default_factory=list)
    missing: dict[str, tuple[int, ...]] = field(default_factory=dict)
    unexpected: dict[str, tuple[int, ...]] = field(default_factory=dict)
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    format: str = ""
    mapped: dict[str, str] = field(default_factory=dict)
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)

    def ignore(self, name: str, reason: str) -> None:
        """Counts what the model would call ``name`` as left out; the file's names for it are reported."""
        sources = [source for source, target in self.mapped.items() if target == name]
        for source in sources:
            del self.mapped[source]
        self.ignored.update(dict.fromkeys(sources or [name], reason))

    def __str__(self) -> str:
        lines = [f"{f'format {self.format}, ' if self.format else ''}{len(self.matched)} tensors matched"]
        renamed = [f"{source} → {target}" for source, target in self.mapped.items() if source != target]
        lines += _lines("renamed or joined", renamed, show=2)
        lines += _lines("resized", [f"{k}: from {old} to {new}" for k, (old, new) in self.resized.items()])
        for reason in dict.fromkeys(self.ignored.values()):
            lines += _lines(f"ignored ({reason})", [k for k, r in self.ignored.items() if r == reason], show=2)
        lines += _lines("of another shape", [f"{k}: expected {e}, got {g}" for k, (e, g) in self.mismatched.items()])
        lines += _lines("missing in the checkpoint", [f"{k} {s}" for k, s in self.missing.items()])
        lines += _lines("not in the model", [f"{k} {s}" for k, s in self.unexpected.items()])
        return "\n".join(lines)


def _lines(title: str, items: Sequence[str], show: int = 6) -> list[str]:
    if not items:
        return []
    more = [f"    … and {len(items) - show} more"] if len(items) > show else []
    return [f"  {len(items)} {title}:", *(f"    {item}" for item in items[:show]), *more]


def compare_state_dicts(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> LoadReport:
    """Compares the names and shapes of a model's state dict (``expected``) with a checkpoint's (``given``)."""
    report = LoadReport()
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
    """Loads a state dict that has to fit: every tensor of the module, nothing left over.

    Args:
        module: takes the weights; unchanged if an error is raised.
        state_dict: names as the module has them.
        source: where the weights come from, for the messages.
        ignore_unexpected: regular expressions (``re.match``) of names that may be left over, such as a
            classifier's head. LayerScale is never left out.
        ignore_missing: regular expressions of names that keep their initialisation if the state dict lacks them.
        conversion: the report of :func:`convert_vit`, which is completed and returned.
        hint: what to do when it does not fit, appended to the error.

    Raises:
        CheckpointError: with the whole report.
    """
    report = compare_state_dicts(module.state_dict(), state_dict)
    if conversion is not None:
        report = replace(
            conversion,
            matched=report.matched,
            missing=report.missing,
            unexpected=report.unexpected,
            mismatched=report.mismatched,
        )
    # BatchNorm's step counter is absent from old files and from frozen norms, and is not needed to run
    for names in (report.missing, report.unexpected):
        for name in [n for n in names if n.endswith("num_batches_tracked")]:
            del names[name]
    patterns = [re.compile(p) for p in ignore_unexpected]
    for name in list(report.unexpected):
        if not _LAYER_SCALE.search(name) and any(p.match(name) for p in patterns):
            del report.unexpected[name]
            report.ignore(name, "not in the model, and allowed to be left over")
    may_be_missing = [re.compile(p) for p in ignore_missing]
    lacking = [name for name in report.missing if not any(p.match(name) for p in may_be_missing)]
    if lacking or report.mismatched or report.unexpected:
        raise CheckpointError(f"'{source}' does not fit {type(module).__name__}: {report}\n{hint}".rstrip())
    with torch.no_grad():
        module.load_state_dict({name: state_dict[name] for name in report.matched}, strict=False)
    logger.info("Loaded '%s' into %s: %s", source, type(module).__name__, report)
    return report


def check_partial_load(
    expected: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    *,
    groups: Sequence[str],
    required: Sequence[str] = (),
    allow_partial: Sequence[str] = (),
) -> str:
    """Decides whether a state dict that fits a detector only in part was meant to.

    A detector is loaded in part on purpose all the time: a ViT without heads, a ViTDet checkpoint without LiFT. Each
    *group* of names must then be there whole or not at all. Part of a group means that some of its tensors had another
    shape (another width, patch size or class count) or another depth: detectron2 would warn and train what is
    left from random numbers. A ViT that was pretrained without relative positions may leave them out.

    Args:
        expected: the model's state dict.
        given: the checkpoint's, under the model's names as far as they are known (names that detectron2's matching
            heuristics could not place may still be there as they were in the file).
        groups: name prefixes, such as ``"backbone.net."``, that belong together; the first that fits a name counts, and
            the last, ``""``, fits all.
        required: those of ``groups`` without which a checkpoint makes no sense.
        allow_partial: prefixes of the groups that may be loaded in part.

    Returns:
        The report to log.

    Raises:
        CheckpointError: LayerScale would be dropped, nothing fitted, or a group fitted only in part.
    """
    report = compare_state_dicts(expected, given)
    dropped = [name for name in report.unexpected if _LAYER_SCALE.search(name)]
    if dropped:
        raise CheckpointError(
            f"The checkpoint has LayerScale ({len(dropped)} tensors, such as '{dropped[0]}') and this model has none: "
            "without it the features are wrong and nothing would say so. Use lift_det.TimmViT with the timm name of "
            "the ViT that the checkpoint belongs to."
        )
    if given and not report.matched:
        raise CheckpointError(
            "Not one tensor of the checkpoint fits this model. For a bare pretrained ViT put "
            f"'?matching_heuristics=True' behind the file's name; else compare its width and names:\n{report}"
        )

    def group_of(name: str) -> str:
        return next(g for g in groups if name.startswith(g))

    there = Counter(group_of(name) for name in report.matched)
    without_rel_pos = not any(_REL_POS.search(name) for name in given)
    lacking: dict[str, list[str]] = {}
    for name in [*report.missing, *report.mismatched]:
        optional = name.endswith("num_batches_tracked") or (without_rel_pos and _REL_POS.search(name))
        if not optional:
            lacking.setdefault(group_of(name), []).append(name)
    # what a deeper ViT has more
    for name in report.unexpected:
        group = group_of(name)
        if required and _BLOCK.match(name):
            group = required[0]  # without a prefix: a bare ViT's, which the heuristics could not place
        if group in required and not any(other.endswith("." + name) for other in expected):
            lacking.setdefault(group, []).append(name)
    summary, problems = [], []
    for group in sorted(lacking, key=groups.index):
        names = lacking[group]
        absent = not there[group] and all(name in report.missing for name in names)
        if absent and group not in required:
            summary.append(f"{group}* ({len(names)} tensors) is not in the checkpoint: keeps its own initialisation")
        elif any(group.startswith(prefix) for prefix in allow_partial):
            summary.append(f"{group}*: {there[group]} tensors loaded, {len(names)} not (allow_partial)")
        else:
            problems.append(group)
    if problems:
        raise CheckpointError(_partial_message(problems, lacking, there, expected, report))
    summary += [f"{group}*: all {n} tensors loaded" for group, n in there.items() if group not in lacking]
    if report.unexpected:
        names = list(report.unexpected)
        summary.append(f"ignored, not in this model: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}")
    return "\n".join(["Checkpoint:", *(f"  {line}" for line in summary)])


def _partial_message(
    problems: list[str],
    lacking: Mapping[str, list[str]],
    there: Mapping[str, int],
    expected: Mapping[str, Tensor],
    report: LoadReport,
) -> str:
    def fit(name: str) -> str:
        if name in report.unexpected:
            return f"{name}: got {report.unexpected[name]}, which the model does not have"
        return f"{name}: expected {tuple(expected[name].shape)}, {what_came(name)}"

    def what_came(name: str) -> str:
        if name in report.mismatched:
            return f"got {report.mismatched[name][1]}"
        # a name that the heuristics could not place because of its shape is still there under its own, shorter name
        for other, shape in report.unexpected.items():
            if name.endswith("." + other):
                return f"got {shape}"
        return "got none, or another shape, which detectron2 has dropped"

    lines = []
    for group in problems:
        names = lacking[group]
        lines.append(
            f"The checkpoint fits '{group}*' only in part: {there[group]} of {there[group] + len(names)} tensors."
        )
        lines += _lines("do not fit", [fit(name) for name in names])
    # roi_heads come in several groups, which a new number of classes changes together
    allow = sorted({"roi_heads" if g.startswith("roi_heads") else g.rstrip(".") for g in problems})
    lines.append(
        "Most often the config has another embed_dim, depth, patch_size, img_size or num_classes than the checkpoint: "
        "make them equal. To train new class predictors, or to keep what fits, say so: "
        f"model.allow_partial=[{','.join(allow)}] (yacs: MODEL.LIFT.ALLOW_PARTIAL)"
    )
    return "\n".join(lines)
