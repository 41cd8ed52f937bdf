import json

import pytest

from lift_det.data import write_synthetic_coco


@pytest.fixture
def annotations(tmp_path):
    """COCO annotations of 12 synthetic images of 96 pixels, with objects of four classes in each."""
    folder = write_synthetic_coco(tmp_path / "coco", num_train=1, num_val=12, image_size=96)
    return json.loads((folder / "annotations" / "instances_val.json").read_text())
