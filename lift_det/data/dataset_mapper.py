"""detectron2's ``DatasetMapper`` with errors that name the image."""

from __future__ import annotations

from typing import Any

from detectron2.data import DatasetMapper as _DatasetMapper
from detectron2.data.detection_utils import SizeMismatchError

from .errors import DatasetError, datasets_root_note
from .images import read_rgb


class DatasetMapper(_DatasetMapper):
    """detectron2's ``DatasetMapper``, except that images that cannot be used raise :class:`DatasetError`."""

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Reads, augments and converts an image in detectron2's dataset format.

        Raises:
            DatasetError: the image is missing, broken or of another size than annotated.
        """
        name = f"'{dataset_dict.get('file_name')}' (image id {dataset_dict.get('image_id', 'unknown')})"
        try:
            return super().__call__(dataset_dict)
        except SizeMismatchError as error:
            raise DatasetError(
                f"Image {name} has another size than annotated: {error} Restore the original image or correct its "
                "annotations; the annotation file may belong to another image folder."
            ) from error
        except Exception as error:
            # Only blame a file that cannot be read: annotations and augmentations have errors, too.
            for key in ("file_name", "sem_seg_file_name"):
                reason = read_rgb(dataset_dict[key])[1] if key in dataset_dict else ""
                if reason:
                    raise DatasetError(
                        f"'{dataset_dict[key]}' of image {name} cannot be read: {reason}. Fetch it again, or remove "
                        f"the image from the annotation file. {datasets_root_note()}"
                    ) from error
            raise
