import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unimask.config.images import Experiment
from unimask.conversion import hugging_face, original
from unimask.conversion.checkpoint_format import CheckpointFormat
from unimask.conversion.rules import Rule, substitute, to_ours, to_theirs
from unimask.models.build import build_model
from unimask.presets.mask2former import published_model

FULL_SIZE = [
    ("R50_coco_panoptic", "resnet50", 100, 133, True),
    ("R101_coco_panoptic", "resnet101", 100, 133, True),
    ("R50_ade20k_semantic", "resnet50", 100, 150, True),
    ("R101_ade20k_semantic", "resnet101", 100, 150, False),
    ("SwinT_coco_panoptic", "swin_tiny", 100, 133, True),
    ("SwinS_coco_panoptic", "swin_small", 100, 133, True),
    ("SwinB_coco_panoptic", "swin_base", 100, 133, True),
    ("SwinL_coco_panoptic", "swin_large", 200, 133, True),
]


def full_size(backbone: str, queries: int, classes: int, freeze_norm: bool) -> dict[str, Tensor]:
    with torch.device("meta"):
        return build_model(published_model(backbone, queries, freeze_norm), classes).state_dict()


def shapes(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    return {key: list(tensor.shape) for key, tensor in tensors.items()}


@pytest.mark.parametrize(("manifest", "backbone", "queries", "classes", "frozen"), FULL_SIZE)
def test_original_names_are_a_bijection_at_full_size(
    golden: Path, manifest: str, backbone: str, queries: int, classes: int, frozen: bool
) -> None:
    expected = json.loads((golden / f"key_manifests/mask2former_{manifest}.json").read_text())["shapes"]
    ours = full_size(backbone, queries, classes, frozen)
    theirs = to_theirs(ours, original.MASK2FORMER.rules)
    assert theirs.unknown == ()
    assert len(theirs.tensors) == len(ours)
    constants = original.MASK2FORMER.constants(theirs.tensors, Experiment())
    assert not constants.keys() & theirs.tensors.keys()
    assert shapes({**theirs.tensors, **constants}) == expected

    empty = {
        key: torch.empty(shape, device="meta") for key, shape in expected.items() if key not in constants
    }
    back = to_ours(empty, original.MASK2FORMER.rules)
    assert back.unknown == ()
    assert shapes(back.tensors) == shapes(ours)


@pytest.mark.parametrize(
    ("backbone", "queries", "frozen"), sorted({(row[1], row[2], row[4]) for row in FULL_SIZE})
)
def test_names_of_transformers_are_a_bijection_at_full_size(
    backbone: str, queries: int, frozen: bool
) -> None:
    ours = full_size(backbone, queries, 133, frozen)
    theirs = to_theirs(ours, hugging_face.MASK2FORMER.rules)
    assert theirs.unknown == ()
    split = 9 + 12 * (backbone == "swin_tiny") + 24 * (backbone in ("swin_small", "swin_base", "swin_large"))
    assert len(theirs.tensors) == len(ours) + 2 * 2 * split  # one weight and bias become three
    back = to_ours(theirs.tensors, hugging_face.MASK2FORMER.rules)
    assert back.unknown == ()
    assert shapes(back.tensors) == shapes(ours)


@pytest.mark.parametrize("backbone", ["resnet50", "swin_tiny"])
def test_names_and_shapes_of_transformers_are_its_own(backbone: str) -> None:
    import transformers

    stages = ["stage1", "stage2", "stage3", "stage4"]
    kind = transformers.ResNetConfig if backbone == "resnet50" else transformers.SwinConfig
    config = transformers.Mask2FormerConfig(backbone_config=kind(out_features=stages), num_labels=133)
    with torch.device("meta"):
        model = transformers.Mask2FormerForUniversalSegmentation(config)
        expected = shapes(hugging_face.MASK2FORMER.current_names(model.state_dict()))
        ours = to_theirs(full_size(backbone, 100, 133, True), hugging_face.MASK2FORMER.rules).tensors
    assert shapes({**ours, **hugging_face.MASK2FORMER.constants(ours, Experiment())}) == expected


FORMATS = (
    original.MASK2FORMER,
    original.MASKFORMER,
    original.MASKFORMER_DEEP_STEM,
    original.DETR,
    hugging_face.MASK2FORMER,
    hugging_face.MASKFORMER,
    hugging_face.DETR,
)


@pytest.mark.parametrize("checkpoint_format", FORMATS, ids=lambda one: f"{one.model} of {one.title}")
def test_no_rule_occurs_twice(checkpoint_format: CheckpointFormat) -> None:
    rules = checkpoint_format.rules
    ours = [pattern for rule in rules for pattern in rule.our_patterns]
    theirs = [pattern for rule in rules for pattern in rule.their_patterns]
    assert len(set(ours)) == len(ours)
    assert len(set(theirs)) == len(theirs)


def test_several_tensors_become_one_and_come_back() -> None:
    rules = [
        Rule(
            "layers.{layer}.input.{parameter}",
            tuple(f"block{{layer}}.{part}.{{parameter}}" for part in "qkv"),
        )
    ]
    theirs = {f"block5.{part}.weight": torch.rand(2, 3) for part in "vkq"}
    merged = to_ours(theirs, rules)
    assert merged.unknown == ()
    assert torch.equal(
        merged.tensors["layers.5.input.weight"], torch.cat([theirs[f"block5.{p}.weight"] for p in "qkv"])
    )
    back = to_theirs(merged.tensors, rules)
    assert back.tensors.keys() == theirs.keys()
    assert all(torch.equal(back.tensors[key], theirs[key]) for key in theirs)


def test_keys_without_rule_or_partner_are_named() -> None:
    rules = [Rule("together", ("first", "second")), Rule("layers.{layer}.weight", "block{layer}.weight")]
    found = to_ours(
        {"first": torch.ones(1), "blockA.weight": torch.ones(1), "block1.weight": torch.ones(1)}, rules
    )
    assert found.tensors.keys() == {"layers.1.weight"}
    assert found.unknown == ("first", "blockA.weight")


def test_two_keys_of_one_meaning_are_refused() -> None:
    assert substitute(["old.a", "b"], [(r"^old\.", "new.")]) == {"old.a": "new.a", "b": "b"}
    with pytest.raises(ValueError, match=r"new\.a and old\.a both mean new\.a"):
        substitute(["new.a", "old.a"], [(r"^old\.", "new.")])
