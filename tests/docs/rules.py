"""How the commands of the documentation are run in tests: the tables. Who adds a command that fits none adds a line.

Imports the standard library only: shims.py reads it before every command.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.docs.commands import Snippet

SHELL_LANGUAGES = ("bash", "sh")
OUTPUT_LANGUAGES = ("text", "yaml", "json", "bibtex")
# A block without a language is for the eye if one of these is found in it: BibTeX, drawings, columns of figures.
OUTPUT = (r"^\s*@\w+\{", r"[─│└┌→]", r"(?m)\w {2,}\d[\d.]*( / [\d.]+)?$")

# Words that start a command. Those of STATE are run before each later command of their document as well.
STATE = ("export", "assignment", "cd", "source")
PROGRAMS = (
    *STATE,
    *("python", "lift-det", "make", "pip", "git", "torchrun", "srun", "sbatch", "script", "tensorboard", "pre-commit"),
    *("cat", "cp", "mkdir", "ls", "head", "unzip"),
)

KINDS = ("quick", "long", "parsed")
# Parsed up to what would install, start other programs, or need other machines; launches.py says how each is checked.
# Searched in the command with its line breaks and double spaces made one space.
PARSED = (
    r"(^| )(\S*/)?(make|git|pip|pre-commit|tensorboard|torchrun|srun|sbatch) ",
    r"python3? -m (pip|venv|pytest|torch\.distributed\.run) ",
    r"--num-gpus [2-9]|--num-machines [2-9]",
    r"^#!",
)
# Done in a few seconds, so that `make test` runs it; nothing that needs what another command leaves.
QUICK = (
    r"^python tools/install_detectron2\.py",
    r"^lift-det (configs|.*--help)",
)
QUICK_EXAMPLES = ("LiFTFeaturePyramid(",)


def kind(snippet: Snippet) -> str:
    """Which of KINDS a command or example is: run by `make test`, run by `make test-docs`, or parsed by `make test`."""
    text = " ".join(re.sub(r"\\\n", " ", snippet.text).split())
    if snippet.language == "python":
        return "quick" if any(example in text for example in QUICK_EXAMPLES) else "long"
    text = re.sub(r" #.*", "", text)
    # a subcommand that the text speaks of, with nothing to work on
    mentioned = snippet.inline and re.fullmatch(r"lift-det [a-z]+", text)
    if mentioned or any(re.search(pattern, text) for pattern in PARSED):
        return "parsed"
    if snippet.program in STATE or any(re.search(pattern, text) for pattern in QUICK):
        return "quick"
    return "long"


# Words of a command that stand for something of the reader's -> what that is in the sandbox.
PLACEHOLDERS = {
    "/path/to/datasets": "datasets",
    "DATASETS": "datasets",
    "WEIGHTS": "weights",
    "CONFIG": "configs/quick_schedules/mask_rcnn_lift_synthetic_cpu.py",
    "DIR": "photos",
    "FILE": "model_final.pth",
    "cd lift_det": "cd .",  # after git clone
}
# In one document something else.
PLACEHOLDERS_OF = {
    "docs/results.md": {"DIR": "output/mine"},
    "projects/linear_probe/README.md": {"WEIGHTS": "weights/vit_small_patch14_fp16.safetensors"},
}


def fill_in(document: str, text: str) -> str:
    """A command with its placeholders replaced."""
    for word, value in {**PLACEHOLDERS, **PLACEHOLDERS_OF.get(document, {})}.items():
        text = re.sub(rf"(?<![\w./-]){re.escape(word)}(?![\w-]|\.\w)", value, text)
    return text


# What a Python example takes for granted: a line of it -> the lines to put before it.
BEFORE_EXAMPLE = {
    "dataloader.evaluator._target_ = COCOEvaluator": (
        "from lift_det import model_zoo\n"
        'dataloader = model_zoo.get_config("COCO/mask_rcnn_lift_vitdet_b_100ep.py").dataloader\n'
    ),
}


@dataclass(frozen=True)
class Shorter:
    """What makes a command shorter.

    Attributes:
        match: a regular expression, searched in the command as the shell has expanded it: program, arguments.
        options: set to these values, in place of a value that is there.
        overrides: added at the end.
    """

    match: str
    options: dict[str, str] | None = None
    overrides: tuple[str, ...] = ()


_TRAINS = r"^python \S*lazyconfig_train_net\.py |^lift-det train "
_LOADERS = ("dataloader.train.total_batch_size=2", "dataloader.train.num_workers=0", "dataloader.test.num_workers=0")
_ON_CPU = ("train.device=cpu", "train.amp.enabled=False", "train.ddp.fp16_compression=False")
_TWO_STEPS = ("train.max_iter=2", "train.eval_period=2", "train.log_period=1", "train.checkpointer.period=2")
_FEW_PROPOSALS = ("model.proposal_generator.post_nms_topk=[100,50]", "model.roi_heads.batch_size_per_image=16")
_SMALL_IMAGES = (
    "dataloader.train.mapper.augmentations.1.target_height=128",
    "dataloader.train.mapper.augmentations.1.target_width=128",
    "dataloader.train.mapper.augmentations.2.crop_size=[128,128]",
    "dataloader.test.mapper.augmentations.0.short_edge_length=128",
    "dataloader.test.mapper.augmentations.0.max_size=128",
    "model.backbone.square_pad=128",
)
# One block of ViT-B; the weights that it starts from are made to fit (given.py).
_ONE_BLOCK = ("model.backbone.net.depth=1", "model.backbone.net.window_block_indexes=[0]")

# Every rule that matches is applied, from the first to the last.
SHORTER = (
    # training and evaluating detectors and LiFT
    Shorter(_TRAINS, overrides=(*_ON_CPU, *_TWO_STEPS, *_LOADERS)),
    Shorter(rf"({_TRAINS}).*(COCO/|my_config)", overrides=(*_SMALL_IMAGES, *_FEW_PROPOSALS)),
    Shorter(rf"({_TRAINS}).*(vitdet_b|my_config)", overrides=_ONE_BLOCK),
    Shorter(r"^lift-det train ", {"--iterations": "20"}),  # with fewer nothing is found, and export compares detections
    Shorter(
        r"^python tools/train_net\.py\b",
        overrides=(
            *(
                "MODEL.DEVICE",
                "cpu",
                "SOLVER.AMP.ENABLED",
                "False",
                "SOLVER.MAX_ITER",
                "2",
                "SOLVER.IMS_PER_BATCH",
                "2",
            ),
            *("DATALOADER.NUM_WORKERS", "0", "MODEL.VIT.DEPTH", "1", "MODEL.VIT.WINDOW_BLOCK_INDEXES", "[0]"),
            *("INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MAX_SIZE_TRAIN", "128", "INPUT.MIN_SIZE_TEST", "128"),
            *("INPUT.MAX_SIZE_TEST", "128", "MODEL.SIMPLE_FPN.SQUARE_PAD", "128", "SOLVER.STEPS", "(1,)"),
            *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "100", "MODEL.RPN.POST_NMS_TOPK_TEST", "50"),
        ),
    ),
    Shorter(r"^lift-det pretrain\b", {"--steps": "2", "--batch-size": "2", "--image-size": "112"}),
    Shorter(r"^lift-det features .*--backbone", {"--size": "112"}),
    Shorter(r"^lift-det pretrain .*(patch16|dino_deitsmall16)", {"--image-size": "128"}),
    # measuring
    Shorter(
        r"^python tools/benchmark_model\.py\b",
        {"--repeats": "1", "--image-size": "128"},
        overrides=("--stock=model.backbone.net.depth=1", "model.backbone.net.depth=1"),
    ),
    Shorter(r"^python tools/benchmark_ops\.py\b", {"--repeats": "1", "--masks": "10x28"}),
    Shorter(r"^python tools/benchmark_lift\.py\b", {"--rounds": "1", "--batch-size": "1"}),
    Shorter(r"^python tools/benchmark_evaluation\.py\b", {"--rounds": "1"}),
    Shorter(r"^python tools/compile_kernels\.py\b", {"--match": "mask paste, fp32", "--arch": "90"}),
    Shorter(r"^python -m projects\.linear_probe ", {"--limit": "4", "--seeds": "1", "--iterations": "3"}),
)


def shorten(name: str, arguments: Sequence[str]) -> list[str]:
    """A command's arguments with all rules that match applied."""
    line, result = " ".join([name, *arguments]), list(arguments)
    for rule in SHORTER:
        if re.search(rule.match, line):
            for option, value in (rule.options or {}).items():
                if option in result:
                    result[result.index(option) + 1] = value
                else:
                    result += [option, value]
            result += rule.overrides
    return result
