"""detectron2's ``DatasetMapper``, which names the file where an image cannot be used."""

from __future__ import annotations

from typing import Any

from detectron2.data import DatasetMapper as _DatasetMapper
from detectron2.data.detection_utils import SizeMismatchError

from .errors import DatasetError, datasets_root_note
from .images import read_rgb


class DatasetMapper(_DatasetMapper):
    """Maps a dataset dict to a model's input exactly as upstream's mapper does; the arguments are upstream's too.

    Only its errors differ: an image that is missing, cut off, not an image or of another size than its annotations
    say raises :class:`DatasetError`. Every other error passes through as it is.
    """

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Reads, augments and converts one image.

        Args:
            dataset_dict: one image in detectron2's dataset format; it is not changed.

        Returns:
            A dict with ``image`` (uint8, (3, H, W), in ``image_format``) and for training ``instances``.

        Raises:
            DatasetError: the image cannot be read, or its size is not the annotated one.
        """
        try:
            return super().__call__(dataset_dict)
        except SizeMismatchError as error:
            raise DatasetError(
                f"{_describe(dataset_dict, 'file_name')} has another size than its annotations say: {error} "
                "The annotation file and the image folder probably belong to different data sets, or the image was "
                "resized or turned after it was annotated: put the original image back, or correct width, height and "
                "the boxes in the annotation file."
            ) from error
        except Exception as error:
            # Upstream's call reads, augments and converts in one. Whether it was the file that failed is asked of
            # the file, so that an error in an annotation or an augmentation is never put down to the image.
            for key in ("file_name", "sem_seg_file_name"):
                reason = read_rgb(dataset_dict[key])[1] if key in dataset_dict else ""
                if reason:
                    raise DatasetError(
                        f"{_describe(dataset_dict, key)} cannot be read: {reason}. Expected a whole image file. Fetch "
                        "or unpack it again, or remove the image from the annotation file. "
                        f"{datasets_root_note()}"
                    ) from error
            raise


def _describe(dataset_dict: dict[str, Any], key: str) -> str:
    what = "Image" if key == "file_name" else "Segmentation map"
    return f"{what} '{dataset_dict[key]}' (image id {dataset_dict.get('image_id', 'unknown')})"
