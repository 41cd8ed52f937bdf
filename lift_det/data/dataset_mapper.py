"""Dataset mapper with errors that name the image."""

from __future__ import annotations

from typing import Any

from detectron2.data import DatasetMapper as _DatasetMapper
from detectron2.data.detection_utils import SizeMismatchError

from .errors import DatasetError, datasets_root_note
from .images import read_rgb


class DatasetMapper(_DatasetMapper):
    """detectron2's ``DatasetMapper``, except that it raises :class:`DatasetError` for images that cannot be used.

    These are images that are missing, broken or of another size than annotated.
    """

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        image_id = dataset_dict.get("image_id", "unknown")
        try:
            return super().__call__(dataset_dict)
        except SizeMismatchError as error:
            raise DatasetError(
                f"'{dataset_dict['file_name']}' (image id {image_id}) has another size than annotated: {error} Restore "
                "the original image or correct its annotations. The annotation file may belong to other images."
            ) from error
        except Exception as error:
            # The error may also come from an annotation or an augmentation.
            for key in ("file_name", "sem_seg_file_name"):
                reason = read_rgb(dataset_dict[key])[1] if key in dataset_dict else ""
                if reason:
                    raise DatasetError(
                        f"'{dataset_dict[key]}' (image id {image_id}) cannot be read: {reason}. Fetch it again, or "
                        f"remove the image from the annotation file. {datasets_root_note()}"
                    ) from error
            raise
