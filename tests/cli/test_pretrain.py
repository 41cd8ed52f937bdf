"""`lift-det pretrain`."""

import json

from lift_det import load_lift
from lift_det.cli import main
from lift_det.data import write_synthetic_coco


def test_trains_prints_its_table_and_resumes(inputs, tmp_path, capsys):
    images = write_synthetic_coco(tmp_path, num_train=40, num_val=2) / "train"
    command = ["pretrain", "--images", images, "--backbone", inputs / "vit.pth"]
    command += ["--architecture", "vit_tiny_patch16_224", "--device", "cpu", "--output", tmp_path / "out"]
    command += ["--image-size", 64, "--facet", "key", "--layer", 2, "--batch-size", 2]
    assert main([str(argument) for argument in (*command, "--iterations", 3)]) == 0
    printed = capsys.readouterr()
    (bilinear,) = (line for line in printed.out.splitlines() if line.startswith("| bilinear"))
    (lift,) = (line for line in printed.out.splitlines() if line.startswith("| LiFT "))
    assert str(tmp_path / "out" / "lift.safetensors") in printed.out
    assert "3/3" in printed.err and "detectron2" not in printed.out  # its log is in the file
    assert "Environment info" in (tmp_path / "out" / "log.txt").read_text()
    metadata = load_lift(tmp_path / "out" / "lift.safetensors").metadata
    expected = {"steps": "3", "backbone": "vit_tiny_patch16_224", "layer": "2", "facet": "key", "final_norm": "false"}
    assert metadata.items() >= {**expected, "evaluated_images": "2"}.items()  # of 40
    last = json.loads((tmp_path / "out" / "metrics.json").read_text().splitlines()[-1])
    assert f"{last['cosine_2x/bilinear']:.4f}" in bilinear and f"{last['cosine_4x/lift']:.4f}" in lift

    assert main([str(argument) for argument in (*command, "--iterations", 5, "--resume")]) == 0
    assert load_lift(tmp_path / "out" / "lift.safetensors").metadata["steps"] == "5"
