"""Every stored case of the original post-processing: maps exactly equal, scores and class values to 1e-5."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from unimask.ops.windows import from_canvas, restoration, to_canvas
from unimask.postprocess.masks import instance, panoptic
from unimask.postprocess.semantic import semantic
from unimask.structures import Placement


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    options: dict
    image: dict
    arrays: dict
    class_logits: Tensor
    embeddings: Tensor
    features: Tensor
    placement: Placement
    is_thing: tuple[bool, ...]

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Placement]:
        return self.class_logits, self.embeddings, self.features, self.placement


@pytest.fixture(scope="module")
def cases(golden: Path) -> list[Case]:
    return list(read_cases(golden))


def read_cases(golden: Path) -> Iterator[Case]:
    stored = np.load(golden / "postprocess_cases.npz")
    for case in json.loads((golden / "postprocess_cases.json").read_text())["cases"]:
        name, things = case["name"], set(case["thing_classes"])
        for index, image in enumerate(case["images"]):
            resized = tuple(image["image_size"])
            prefix = f"{name}/{index}/"
            masks = torch.from_numpy(stored[f"{name}/mask_pred"][index])
            yield Case(
                name=f"{name}/{index}",
                options=case["options"],
                image=image,
                arrays={key[len(prefix) :]: stored[key] for key in stored.files if key.startswith(prefix)},
                class_logits=torch.from_numpy(stored[f"{name}/mask_cls"][index]),
                embeddings=torch.eye(masks.shape[0]),  # the stored logits are not factorised
                features=masks,
                placement=Placement(
                    original=tuple(image["output_size"] or resized),
                    resized=resized,
                    canvas=tuple(case["padded_canvas"]),
                ),
                is_thing=tuple(label in things for label in range(case["num_classes"])),
            )


def test_all_cases_are_read(cases: list[Case]):
    assert len({case.name.split("/")[0] for case in cases}) == 21


def test_semantic(cases: list[Case]):
    used = 0
    for case in cases:
        if "semantic_argmax" not in case.arrays:
            continue
        used += 1
        after = not case.options["sem_seg_postprocess_before_inference"]
        result = semantic(*case.inputs, resize_classes=after)
        assert result.layers.shape[0] == 1
        labels = result.labels[result.layers[0].long() - 1]
        assert (result.layers > 0).all(), case.name
        assert np.array_equal(labels.numpy(), case.arrays["semantic_argmax"]), case.name
        assert (result.scores > 0).all()
        assert (result.scores <= 1).all()
    assert used == 22


def test_the_two_orders_of_resizing_differ(cases: list[Case]):
    case = next(case for case in cases if case.name == "semantic_after/0")
    before, after = semantic(*case.inputs), semantic(*case.inputs, resize_classes=True)
    assert (before.labels[before.layers.long() - 1] != after.labels[after.layers.long() - 1]).any()


def test_semantic_values_at_the_probes(cases: list[Case]):
    for case in cases:
        if "semantic_probe" not in case.arrays:
            continue
        probabilities = case.class_logits.softmax(dim=1)[:, :-1]
        size = tuple(case.features.shape[1:])
        everything = tuple(slice(0, side) for side in case.placement.original)
        if case.options["sem_seg_postprocess_before_inference"]:
            windows = restoration(case.placement, size)
            masks = windows.resize(case.features[:, *windows.source(*everything)], *everything).sigmoid()
            values = torch.einsum("qk,qhw->khw", probabilities, masks)
        else:
            canvas = to_canvas(case.placement, size)
            whole = tuple(slice(0, side) for side in case.placement.canvas)
            masks = canvas.resize(case.features[:, *canvas.source(*whole)], *whole).sigmoid()
            crop = torch.einsum("qk,qhw->khw", probabilities, masks)
            windows = from_canvas(case.placement)
            values = windows.resize(crop[:, *windows.source(*everything)], *everything)
        y, x = case.arrays["semantic_probe_yx"].T
        expected = torch.from_numpy(case.arrays["semantic_probe"])
        torch.testing.assert_close(values[:, y, x].T, expected, atol=1e-5, rtol=0)


def test_panoptic(cases: list[Case]):
    used = 0
    for case in cases:
        if "panoptic" not in case.arrays:
            continue
        used += 1
        result = panoptic(
            *case.inputs,
            case.is_thing,
            object_threshold=case.options["object_mask_threshold"],
            overlap_threshold=case.options["overlap_threshold"],
        )
        assert np.array_equal(result.layers[0].numpy(), case.arrays["panoptic"]), case.name
        assert result.labels.tolist() == [segment["category_id"] for segment in case.image["segments"]]
        assert result.areas().tolist() == [segment["area"] for segment in case.image["segments"]]
        assert int((result.layers == 0).sum()) == case.image["void_pixels"]
        assert (result.scores > case.options["object_mask_threshold"]).all()
    assert used == 20


def test_panoptic_of_maskformer(golden: Path, cases: list[Case]):
    stored = np.load(golden / "postprocess_maskformer_v1.npz")
    facts = json.loads((golden / "postprocess_maskformer_v1.json").read_text())["cases"]
    images = {f"{case['name']}/{i}": image for case in facts for i, image in enumerate(case["images"])}
    differing = 0
    for case in cases:
        if case.name not in images:
            continue
        image = images.pop(case.name)
        result = panoptic(
            *case.inputs,
            case.is_thing,
            object_threshold=case.options["object_mask_threshold"],
            overlap_threshold=case.options["overlap_threshold"],
            fill="winner",
        )
        assert np.array_equal(result.layers[0].numpy(), stored[f"{case.name}/panoptic"]), case.name
        assert result.labels.tolist() == [segment["category_id"] for segment in image["segments"]]
        assert result.areas().tolist() == [segment["area"] for segment in image["segments"]]
        assert int((result.layers == 0).sum()) == image["void_pixels"]
        differing += not np.array_equal(stored[f"{case.name}/panoptic"], case.arrays["panoptic"])
    assert not images
    assert differing > 10


def test_instance(cases: list[Case]):
    used = 0
    for case in cases:
        if "instance_scores" not in case.arrays:
            continue
        used += 1
        # The original drops stuff only where panoptic segmentation is on.
        is_thing = case.is_thing if case.options["panoptic_on"] else tuple(True for _ in case.is_thing)
        result = instance(*case.inputs, is_thing, max_instances=case.options["topk_per_image"])
        expected_scores = torch.from_numpy(case.arrays["instance_scores"])
        assert len(result) == case.image["num_instances"] == len(expected_scores), case.name
        torch.testing.assert_close(result.scores, expected_scores, atol=1e-5, rtol=0)
        height, width = case.placement.original
        packed = case.arrays["instance_masks_packed"]
        masks = np.unpackbits(packed, axis=1, count=height * width).reshape(-1, height, width).astype(bool)
        expected = sorted(zip(case.arrays["instance_labels"].tolist(), map(np.ndarray.tobytes, masks)))
        found = sorted(
            zip(result.labels.tolist(), [mask.numpy().tobytes() for mask in result.masks()], strict=True)
        )
        assert found == expected, case.name
        for number in range(len(result) - 1):
            assert result.scores[number] >= result.scores[number + 1]
    assert used == 21


def test_a_threshold_cuts_the_list_of_instances(cases: list[Case]):
    for case in cases:
        everything = instance(*case.inputs, case.is_thing, max_instances=20)
        some = instance(*case.inputs, case.is_thing, max_instances=20, threshold=0.3)
        count = int((everything.scores >= 0.3).sum())
        assert len(some) == count
        assert torch.equal(some.labels, everything.labels[:count])
        assert torch.equal(some.masks(), everything.masks()[:count])
