"""Exit codes and messages of wrong command lines."""

import pytest

from lift_det import cli

CONFIG = "quick_schedules/mask_rcnn_lift_synthetic_cpu.py"
VIT = "--backbone vit.pth --architecture vit_tiny_patch16_224"
DATA = "--dataset nowhere.json:. --output OUT"
IMAGES = "--images . --output OUT --device cpu"


@pytest.mark.parametrize(
    ("command", "code", "part"),
    [
        ("", 2, "SUBCOMMAND"),
        ("no-such-subcommand", 2, "doctor"),
        ("configs x.y=1", 2, "x.y=1"),
        ("eval", 2, "--config-file"),
        ("eval a --config-file b", 2, "--config-file"),
        (f"eval --config-file {CONFIG}", 2, "--weights"),
        ("eval a b --weights c", 2, "--weights"),
        ("eval a --recorded --dataset c:d", 2, "--recorded"),
        ("eval a x.y=1 --recorded", 2, "--recorded"),
        ("eval absent", 1, "'absent'"),
        ("eval absent --recorded", 1, "absent"),
        ("plot absent", 1, "absent"),
        ("plot", 2, "DIR"),
        ("export lift --lift key.safetensors --output OUT/a.pth", 2, ".onnx"),
        ("export lift --lift key.safetensors --output OUT/a.pt2 --size 30 32", 1, "30×32"),
        ("export lift --lift key.safetensors --output OUT/a.pt2 --fixed --dynamic", 2, "--dynamic"),
        ("export lift --lift key.safetensors --output OUT/a.pt2 --fixed --size 32 32 --size 64 64", 1, "(64, 64)"),
        ("export backbone --from TRAINED --output OUT/a.pt2 --dynamic", 1, "square_pad=64"),
        ("export detector --from TRAINED --images photo.png --output OUT/a.pt2", 2, ".onnx"),
        ("export detector --from TRAINED --images absent.png --output OUT/a.onnx", 1, "absent.png"),
        ("export detector --from TRAINED --images a --output OUT/a.onnx model.backbone.square_pad=0", 2, "--size"),
        ("features photo.png --output OUT", 2, "--backbone"),
        (f"features photo.png --output OUT --from . {VIT}", 2, "--from"),
        ("features photo.png --output OUT --from . --layer 0", 2, "--layer"),
        (f"features photo.png --output OUT {VIT} model.x=1", 2, "--from"),
        (f"features photo.png --output OUT {VIT} --point 12", 2, "'12'"),
        (f"features photo.png --output OUT {VIT} --upsample 0", 2, "--upsample"),
        ("features photo.png --output OUT --from .", 1, "config.yaml"),
        (f"features photo.png --output OUT {VIT} --lift key.safetensors --facet token", 1, "facet"),
        (f"features photo.png --output OUT {VIT} --lift key.safetensors --layer 0", 1, "layer"),
        (f"features photo.png --output . {VIT}", 1, "--output"),  # would overwrite it
        ("predict photo.png --output OUT", 2, "--from"),
        ("predict photo.png --from TRAINED", 2, "--output"),
        ("predict model.x=1 --from TRAINED --output OUT", 2, "image"),
        ("predict absent.jpg --from TRAINED --output OUT", 1, "'absent.jpg'"),
        ("predict photo.png --from absent --output OUT", 1, "'absent'"),
        ("predict photo.png --from TRAINED --batch-size 0 --output OUT", 1, "batch_size=0"),
        (f"train LiFT/lift_vits14_cpu {DATA}", 2, "LiFT/lift_vits14_cpu"),
        (f"train no_such_config {DATA}", 1, "no_such_config"),
        (f"train {CONFIG} {DATA}", 1, "nowhere.json"),
        (f"train {CONFIG} {DATA} --unknown", 2, "--unknown"),
        (f"pretrain {IMAGES} --backbone vit_smal_patch14", 1, "vit_smal_patch14"),
        (f"pretrain {IMAGES} --backbone vit.pth", 1, "--architecture"),
        (f"pretrain {IMAGES} --backbone vit_tiny_patch16_224 --image-size 100", 1, " 64"),
        (f"pretrain {IMAGES} {VIT} --images absent", 1, "absent"),
        (f"pretrain {IMAGES} --backbone resnet50", 1, "resnet50"),
        (f"pretrain {IMAGES} --backbone nowhere/vit.pth", 1, "nowhere/vit.pth"),
    ],
)
def test_wrong_commands(inputs, detector_folder, tmp_path, monkeypatch, capsys, command, code, part):
    monkeypatch.chdir(inputs)
    files = sorted(inputs.iterdir())
    command = command.replace("TRAINED", str(detector_folder)).replace("OUT", str(tmp_path / "out"))
    assert cli.main(command.split()) == code
    error = capsys.readouterr().err
    assert part in error and "Traceback" not in error
    assert sorted(inputs.iterdir()) == files and not any(path.is_file() for path in tmp_path.rglob("*"))
