"""The command line in this process, and a tiny model with random weights."""

import json
import re
import sys
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

from unimask.checkpoints.images import ModelFile, save_model
from unimask.cli import main, output
from unimask.config.tasks import Task
from unimask.models.build import build_model
from unimask.presets.own_data import tiny
from unimask.structures import Categories

CATEGORIES = Categories(
    names=("cat", "dog", "grass [wet]"),
    is_thing=(True, True, False),
    file_ids=(3, 7, 9),
    colors=((220, 40, 40), (40, 60, 220), (40, 160, 60)),
)


output.screen.width = 200  # tables do not break their words


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command left on the screen."""

    code: int
    out: str
    err: str

    def json(self) -> object:
        """Standard output as JSON, and nothing else on it."""
        return json.loads(self.out)


def unimask(*arguments: object) -> Outcome:
    """Runs `unimask ARGUMENTS` through the entry point of the script."""
    out, err = StringIO(), StringIO()
    words = ["unimask", *map(str, arguments)]
    with mock.patch.object(sys, "argv", words), mock.patch("sys.stdout", out), mock.patch("sys.stderr", err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return Outcome(code=code, out=plain(out.getvalue()), err=plain(err.getvalue()))


def plain(text: str) -> str:
    """The text without colours and moves of the cursor, which some environments force."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")


def refused(*arguments: object) -> str:
    """The message of a command that is the input's fault: on standard error, exit code 2, no traceback."""
    outcome = unimask(*arguments)
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert sum(line.startswith("error ") for line in outcome.err.splitlines()) == 1, outcome.err
    return outcome.err


def save_tiny_model(folder: Path, task: Task = "panoptic") -> Path:
    """A model folder; its queries differ enough to find something everywhere."""
    torch.manual_seed(3)
    experiment = tiny()
    model = build_model(experiment.model, len(CATEGORIES))
    decoder = model.query_decoder
    for parameter in (decoder.query_features.weight, *decoder.heads.parameters()):
        parameter.data *= 3
    experiment = replace(
        experiment,
        postprocess=replace(
            experiment.postprocess, object_threshold=0.05, overlap_threshold=0.0, instance_threshold=0.01
        ),
    )
    about = ModelFile(
        experiment=experiment, task=task, categories=CATEGORIES, licence="CC0-1.0", provenance="random"
    )
    save_model(folder, model, about)
    return folder


def picture(height: int = 47, width: int = 61, seed: int = 0) -> Image.Image:
    """Blurred noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
