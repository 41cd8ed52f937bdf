"""What a check of a COCO-format data set found, and the page that says so."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lift_det.files import write_text_atomically

ERROR, SKIPPED, NOTED = "error", "skipped", "noted"

_HEADINGS = {
    ERROR: "Errors: training cannot start before these are mended",
    SKIPPED: "Skipped: left out, everything else is used",
    NOTED: "Noted: kept and used as said",
}
_PAGE_LINES = 58
_MOST_EXAMPLES = 6
_MOST_COLUMNS = 200


@dataclass(frozen=True)
class CocoFinding:
    """One thing that is not as it should be.

    Attributes:
        kind: of fault, in a few words; the same for all of the kind.
        severity: ``"error"``, training cannot start; ``"skipped"``, an image, an annotation or a part of one is left
            out; ``"noted"``, it is kept.
        text: a sentence that names the annotation, the image and its file, and says what is the matter.
        annotation_id: as the file has it; None where it is not about one annotation, or that has no id.
        image_id: of the image, in the same way.
    """

    kind: str
    severity: str
    text: str
    annotation_id: Any = None
    image_id: Any = None


@dataclass
class CocoCheck:
    """What :func:`lift_det.data.check_coco` found.

    Attributes:
        json_file: the annotation file.
        image_root: the folder that file names start from.
        findings: everything that is not as it should be.
        categories: names by category id, in the order of the ids.
        cleaned: the content of the annotation file without what was skipped, ids as they were.
        images_listed: in the file.
        annotations_listed: in the file.
    """

    json_file: str
    image_root: str
    findings: list[CocoFinding]
    categories: dict[int, str]
    cleaned: dict[str, Any]
    images_listed: int
    annotations_listed: int

    @property
    def num_images(self) -> int:
        """Images that are left to use."""
        return len(self.cleaned["images"])

    @property
    def num_annotations(self) -> int:
        """Annotations that are left to use, crowds among them."""
        return len(self.cleaned["annotations"])

    @property
    def num_annotated_images(self) -> int:
        """Images that are left and show an object that is no crowd: those that detectron2's training goes through."""
        return len({a["image_id"] for a in self.cleaned["annotations"] if not a["iscrowd"]})

    @property
    def masks(self) -> str:
        """The masks of what is left: ``"none"``, ``"polygon"``, or ``"bitmask"`` where some are run-length encoded.

        The last two are what detectron2's ``DatasetMapper`` takes as ``instance_mask_format``. Crowds do not count:
        training leaves them out.
        """
        kinds = {type(a.get("segmentation") or None) for a in self.cleaned["annotations"] if not a["iscrowd"]}
        return "bitmask" if dict in kinds else "polygon" if list in kinds else "none"

    @property
    def errors(self) -> list[CocoFinding]:
        """Why training cannot start."""
        return self._of(ERROR)

    @property
    def skipped(self) -> list[CocoFinding]:
        """What is left out."""
        return self._of(SKIPPED)

    @property
    def notes(self) -> list[CocoFinding]:
        """What is kept, and worth knowing."""
        return self._of(NOTED)

    def page(self, all_in: str = "") -> str:
        """A report of at most 60 lines: numbers, then what was found, by kind, with the first of each.

        Args:
            all_in: where :meth:`write_findings` has written all, which the page then says.
        """
        counts = Counter(a["category_id"] for a in self.cleaned["annotations"])
        classes = [f"{name} {counts[id_]}" for id_, name in self.categories.items()]
        lines = [
            f"{self.json_file} with images in {self.image_root}",
            f"  in the file: {self.images_listed} images, {self.annotations_listed} annotations",
            f"  to use:      {self.num_images} images, {self.num_annotated_images} of them with objects; "
            f"{self.num_annotations} annotations; masks: {self.masks}",
            _cut(f"  {len(classes)} classes with their annotations: {', '.join(classes)}"),
            "",
        ]
        if not self.findings:
            return "\n".join([*lines, "Nothing is wrong with it."])
        groups: dict[tuple[str, str], list[CocoFinding]] = defaultdict(list)
        for severity in _HEADINGS:
            for finding in self._of(severity):
                groups[severity, finding.kind].append(finding)
        room = _PAGE_LINES - len(lines)
        for examples in range(_MOST_EXAMPLES, -1, -1):
            body = _body(groups, examples)
            if len(body) <= room:
                break
        else:
            body = [*body[: room - 1], f"  ... and {len(body) - room + 1} kinds more"]
        where = f"in {all_in}" if all_in else "CocoCheck.write_findings(path) writes them"
        return "\n".join([*lines, *body, f"All {len(self.findings)} findings: {where}."])

    def write_findings(self, path: str | os.PathLike) -> None:
        """Writes every finding: a line of text for each, or a list of objects if the name ends in ``.json``.

        Raises:
            OSError: the file cannot be written.
        """
        if os.fspath(path).endswith(".json"):
            content = json.dumps([asdict(finding) for finding in self.findings], indent=1)
        else:
            content = "".join(f"{f.severity}, {f.kind}: {f.text}\n" for f in self.findings)
        write_text_atomically(path, content)

    def _of(self, severity: str) -> list[CocoFinding]:
        return [finding for finding in self.findings if finding.severity == severity]


def entry_fault(entry: Any, keys: Mapping[str, type]) -> str:
    """Why an image, an annotation or a category lacks what it has to have; empty if it does not.

    Args:
        entry: as the file has it.
        keys: the types by name; strings may not be empty. True and false are no whole numbers here.
    """
    if not isinstance(entry, dict):
        return f"it is {entry!r:.30}, no object with the keys {', '.join(keys)}"
    words = {int: "a whole number", str: "text"}
    faults = [
        f"'{key}' is {entry[key]!r:.30}, expected {words[kind]}" if key in entry else f"'{key}' is missing"
        for key, kind in keys.items()
        if type(entry.get(key)) is not kind or entry[key] == ""
    ]
    return "; ".join(faults)


def _body(groups: dict[tuple[str, str], Sequence[CocoFinding]], examples: int) -> list[str]:
    """The findings by severity and kind; without examples each kind is one line, with its first."""
    lines: list[str] = []
    severity = None
    for (group_severity, kind), group in groups.items():
        if group_severity != severity:
            severity = group_severity
            total = sum(len(findings) for (of, _), findings in groups.items() if of == severity)
            lines.append(f"{_HEADINGS[severity]} ({total})")
        if examples == 0 or len(group) == 1:
            more = f" (and {len(group) - 1} more)" if len(group) > 1 else ""
            lines.append(_cut(f"  {kind}{more}: {group[0].text}"))
            continue
        lines.append(f"  {kind} ({len(group)})")
        lines += [_cut(f"    {finding.text}") for finding in group[:examples]]
        if len(group) > examples:
            lines.append(f"    ... and {len(group) - examples} more")
    return lines


def _cut(line: str) -> str:
    return line if len(line) <= _MOST_COLUMNS else line[: _MOST_COLUMNS - 4] + " ..."
