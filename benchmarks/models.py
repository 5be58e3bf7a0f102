"""Models with random weights in the architectures of the paper, as folders of transformers and of ours."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from transformers import (
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    SwinConfig,
)
from transformers.utils import logging

from benchmarks.settings import CLASSES
from unimask.benchmark.measure import example_picture
from unimask.checkpoints.images import ModelFile, save_model
from unimask.conversion.run import import_hugging_face
from unimask.models.build import Model, build_model
from unimask.structures import Size

FOUND = 30  # queries that find something, as in a picture of COCO with much in it
SPREAD = 5.0  # standard deviation of class logits, about that of a trained model
STAGES = ["stage1", "stage2", "stage3", "stage4"]
KINDS = ("R50", "Swin-T")
EOMT_SIZES = {"EoMT-S": (384, 6), "EoMT-B": (768, 12)}  # width, heads


@dataclass(frozen=True, kw_only=True)
class Folders:
    theirs: Path  # of transformers
    ours: Path
    model_file: ModelFile


def _backbone(kind: str) -> PreTrainedConfig:
    if kind == "R50":
        return ResNetConfig(out_features=STAGES)
    return SwinConfig(out_features=STAGES, drop_path_rate=0.0)


def _eomt(kind: str, size: Size, masked: bool) -> tuple[EomtForUniversalSegmentation, EomtImageProcessor]:
    channels, heads = EOMT_SIZES[kind]
    config = EomtConfig(
        hidden_size=channels,
        num_hidden_layers=12,
        num_attention_heads=heads,
        num_blocks=3,
        image_size=size[0],
        num_labels=CLASSES,
        pos_embed_rescale=None,
    )
    model = EomtForUniversalSegmentation(config)
    model.attn_mask_probs.fill_(float(masked))
    sides = {"shortest_edge": size[0], "longest_edge": size[0]}
    return model, EomtImageProcessor(size=sides, do_pad=True)


@contextmanager
def random_model(kind: str, size: Size, *, masked: bool = False) -> Iterator[Folders]:
    """The same random weights in the folders of both libraries; both are gone afterwards.

    An EoMT is for squares of `size`, and attends through masks if `masked`: as at the start of a training.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    model: PreTrainedModel
    if kind in EOMT_SIZES:
        model, processor = _eomt(kind, size, masked)
    else:
        config = Mask2FormerConfig(backbone_config=_backbone(kind), num_labels=CLASSES)
        model, processor = Mask2FormerForUniversalSegmentation(config), Mask2FormerImageProcessor()
    with tempfile.TemporaryDirectory(prefix="unimask_benchmark_") as name:
        theirs, ours = Path(name) / "theirs", Path(name) / "ours"
        liven(model, size)
        model.save_pretrained(theirs)
        processor.save_pretrained(theirs)
        imported, model_file = import_hugging_face(theirs, "random weights", "none")
        experiment = model_file.experiment
        reading = replace(experiment.postprocess, object_threshold=0.3, overlap_threshold=0.0)
        model_file = replace(model_file, experiment=replace(experiment, postprocess=reading))
        if kind not in EOMT_SIZES:
            imported, model_file = freeze_norms(imported, model_file)
        save_model(ours, imported, model_file)
        yield Folders(theirs=theirs, ours=ours, model_file=model_file)


def freeze_norms(model: nn.Module, model_file: ModelFile) -> tuple[Model, ModelFile]:
    """The same model with norms that do not move in training, as those of pretrained backbones."""
    experiment = model_file.experiment
    backbone = replace(experiment.model.backbone, freeze_norm=True)
    experiment = replace(experiment, model=replace(experiment.model, backbone=backbone))
    frozen = build_model(experiment.model, CLASSES)
    frozen.load_state_dict({k: v for k, v in model.state_dict().items() if "num_batches_tracked" not in k})
    return frozen, replace(model_file, experiment=experiment)


@torch.no_grad()
def liven(model: PreTrainedModel, size: Size) -> None:
    """Changes random weights so that signals neither vanish nor explode and `FOUND` queries find something.

    Otherwise nothing would be left to post-process and to encode.
    """
    pixels = (example_picture(size).float()[None] - 127.5) / 64
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.fill_(1)
        norm.momentum = 1.0
    if norms:
        model.train()
        model(pixel_values=pixels)  # sets the statistics of the norms
        for norm in norms:
            norm.momentum = 0.1
    model.eval()
    head = model.class_predictor
    logits = model(pixel_values=pixels).class_queries_logits[0]
    factor = SPREAD / logits.std()
    head.weight.mul_(factor)
    head.bias.mul_(factor)
    margins = logits[:, :-1].amax(dim=1) * factor - logits[:, -1] * factor
    head.bias[-1] += margins.sort(descending=True).values[FOUND - 1 : FOUND + 1].mean()
