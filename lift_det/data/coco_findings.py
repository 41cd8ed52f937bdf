"""Results of a check of a COCO-format dataset."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from lift_det.files import write_text_atomically

ERROR, SKIPPED, NOTED = "error", "skipped", "noted"

_HEADINGS = {
    ERROR: "Errors: fix these before training",
    SKIPPED: "Skipped: these are left out",
    NOTED: "Noted: these are used",
}
_MAX_COLUMNS = 200


@dataclass(frozen=True)
class CocoFinding:
    """A problem in a dataset.

    Attributes:
        kind: short name of the problem, by which the report groups findings.
        severity: ``"error"`` (training cannot start), ``"skipped"`` (an image or annotation is left out) or
            ``"noted"`` (it is kept).
        text: description with the ids of the annotation and image, and the name of the image file.
        annotation_id, image_id: as in the file; None if the finding is not about a single annotation or image.
    """

    kind: str
    severity: str
    text: str
    annotation_id: Any = None
    image_id: Any = None


@dataclass
class CocoCheck:
    """Result of :func:`lift_det.data.check_coco`.

    Attributes:
        json_file, image_root: the annotation file, and the folder that its file names are relative to.
        findings: all problems.
        categories: class names by category id, in ascending order of the ids.
        cleaned: the content of the annotation file without skipped entries; ids are unchanged.
        images_listed, annotations_listed: numbers of entries in the file.
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
        """Number of usable images."""
        return len(self.cleaned["images"])

    @property
    def num_annotations(self) -> int:
        """Number of usable annotations, including crowds."""
        return len(self.cleaned["annotations"])

    @property
    def num_annotated_images(self) -> int:
        """Number of usable images with an object other than a crowd. detectron2 trains on these."""
        return len({a["image_id"] for a in self.cleaned["annotations"] if not a["iscrowd"]})

    @property
    def masks(self) -> str:
        """The mapper's ``instance_mask_format``: ``"polygon"``, ``"bitmask"`` for RLE, or ``"none"`` without masks."""
        kinds = {type(a.get("segmentation") or None) for a in self.cleaned["annotations"] if not a["iscrowd"]}
        return "bitmask" if dict in kinds else "polygon" if list in kinds else "none"

    @property
    def errors(self) -> list[CocoFinding]:
        """Findings that prevent training."""
        return [finding for finding in self.findings if finding.severity == ERROR]

    @property
    def skipped(self) -> list[CocoFinding]:
        """Findings about images and annotations that are left out."""
        return [finding for finding in self.findings if finding.severity == SKIPPED]

    @property
    def notes(self) -> list[CocoFinding]:
        """Findings about images and annotations that are kept."""
        return [finding for finding in self.findings if finding.severity == NOTED]

    def page(self, all_in: str = "") -> str:
        """Returns a report of at most 60 lines: counts, then the findings by kind with examples.

        The last line refers to ``all_in``, the path of a file that :meth:`write_findings` has written.
        """
        counts = Counter(a["category_id"] for a in self.cleaned["annotations"])
        classes = ", ".join(f"{name} {counts[id_]}" for id_, name in self.categories.items())
        lines = [
            f"{self.json_file} with images in {self.image_root}",
            f"  in the file: {self.images_listed} images, {self.annotations_listed} annotations",
            f"  usable:      {self.num_images} images, {self.num_annotated_images} of them with objects; "
            f"{self.num_annotations} annotations; masks: {self.masks}",
            f"  {len(self.categories)} classes with their annotations: {classes}",
        ]
        num_kinds = len({(finding.severity, finding.kind) for finding in self.findings})
        examples = max(1, min(6, 45 // max(num_kinds, 1)))
        for severity, heading in _HEADINGS.items():
            texts_by_kind = defaultdict(list)
            for finding in self.findings:
                if finding.severity == severity:
                    texts_by_kind[finding.kind].append(finding.text)
            if texts_by_kind:
                lines += ["", heading]
            for kind, texts in texts_by_kind.items():
                lines.append(f"  {kind} ({len(texts)}): {texts[0]}")
                lines += [f"    {text}" for text in texts[1:examples]]
        where = f"in {all_in}" if all_in else "CocoCheck.write_findings(path) writes them"
        lines += ["", f"All {len(self.findings)} findings: {where}." if self.findings else "No problems found."]
        return "\n".join(line if len(line) <= _MAX_COLUMNS else f"{line[: _MAX_COLUMNS - 4]} ..." for line in lines)

    def write_findings(self, path: str | os.PathLike) -> None:
        """Writes a line of text for each finding.

        Raises:
            OSError: the file cannot be written.
        """
        write_text_atomically(path, "".join(f"{f.severity}, {f.kind}: {f.text}\n" for f in self.findings))
