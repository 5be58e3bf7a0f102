"""A folder of transformers is taken with all it states: our pixels and predictions are its own."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from parity.test_maskformer_transformers import random_model as random_maskformer
from parity.test_transformers import STAGES
from parity.test_transformers import random_model as random_mask2former
from transformers import SwinConfig

from unimask.checkpoints.images import load_model
from unimask.config.data import DataConfig, ShortSide
from unimask.conversion import convert
from unimask.conversion.hugging_face_pixels import NAME, read_pixels
from unimask.data.placing import batch_images, placement_for
from unimask.errors import WeightsError
from unimask.inference.loading import load

SIDES = {"shortest_edge": 64, "longest_edge": 90}
SETTINGS: dict[str, dict[str, object]] = {
    "short side": {"size": SIDES},
    "short side as a number": {"size": 64, "max_size": 90},
    "one size": {"size": {"height": 50, "width": 70}},
    "no resize": {"do_resize": False},
    "no rescaling": {
        "size": SIDES,
        "do_rescale": False,
        "image_mean": [9, 99.5, 70],
        "image_std": [50, 60, 70],
    },
    "another factor": {"size": SIDES, "rescale_factor": 1 / 127.5},
    "no normalisation": {"size": SIDES, "do_normalize": False},
    "neither": {"size": SIDES, "do_normalize": False, "do_rescale": False},
    "other statistics": {"size": SIDES, "image_mean": [0.5, 0.25, 0.125], "image_std": [1, 0.3, 0.2]},
    "divisor 16": {"size": SIDES, "size_divisor": 16},
    "no divisor": {"size": SIDES, "size_divisor": 0},
}
IMAGES = [(60, 83), (83, 60), (64, 64), (31, 200), (97, 71)]


def image(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", ["Mask2Former", "MaskFormer", "Detr"])
def test_pixels_are_those_of_the_image_processor(kind: str, name: str, tmp_path: Path) -> None:
    processor = getattr(transformers, f"{kind}ImageProcessor")(**SETTINGS[name])
    processor.save_pretrained(tmp_path)
    stated = read_pixels(tmp_path, f"{kind}ImageProcessor")
    config = replace(DataConfig(), **stated.data)
    for size in IMAGES:
        expected = processor(images=image(size), return_tensors="pt")["pixel_values"]
        placement = placement_for(size, config)
        given = torch.from_numpy(image(size)).permute(2, 0, 1)
        found = batch_images([given], [placement], stated.image_mean, stated.image_std).pixels
        torch.testing.assert_close(found, expected.float(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["Mask2Former", "MaskFormer"])
@pytest.mark.parametrize("name", ["short side", "one size", "no resize", "another factor"])
def test_predictions_are_those_of_transformers(kind: str, name: str, tmp_path: Path) -> None:
    """Also of a Swin of sizes that nobody has published."""
    swin = SwinConfig(
        embed_dim=16,
        depths=[2, 1, 3, 1],
        num_heads=[1, 2, 4, 2],
        window_size=4,
        out_features=STAGES,
        drop_path_rate=0.15,
    )
    theirs = {"Mask2Former": random_mask2former, "MaskFormer": random_maskformer}[kind](swin, seed=6)
    names = {0: "sky", 1: "car", 2: "tree", 3: "road, way", 4: "N/A", 5: "LABEL_5", 6: "bird"}
    theirs.config.id2label = names
    processor = getattr(transformers, f"{kind}ImageProcessor")(**SETTINGS[name])
    for part in (theirs, processor):
        part.save_pretrained(tmp_path / "theirs")
    model_file = convert(tmp_path / "theirs", tmp_path / "ours", stuff=["sky,tree", "road, way"])
    assert model_file.experiment.model.backbone.name == "swin_c16_d2-1-3-1_h1-2-4-2_w4"
    assert model_file.experiment.model.backbone.drop_path_rate == 0.15
    assert model_file.categories.names == (*list(names.values())[:4], "category 5", "category 6", "bird")
    assert model_file.categories.is_thing == (False, True, False, False, True, True, True)
    segmenter = load(tmp_path / "ours", device="cpu")
    for size in IMAGES[:2]:
        inputs = processor(images=image(size), return_tensors="pt")
        with torch.inference_mode():
            expected = theirs(**inputs)
        given = torch.from_numpy(image(size)).permute(2, 0, 1)
        found = segmenter.predictor.forward(segmenter.predictor.preprocess([given]))
        torch.testing.assert_close(
            found.class_logits[-1], expected.class_queries_logits, atol=1e-3, rtol=1e-4
        )
        torch.testing.assert_close(found.mask_logits(), expected.masks_queries_logits, atol=2e-3, rtol=1e-3)
    convert(tmp_path / "ours", tmp_path / "back", to="transformers")
    back = getattr(transformers, f"{kind}ImageProcessor").from_pretrained(tmp_path / "back")
    inputs = [one(images=image((60, 83)), return_tensors="pt") for one in (processor, back)]
    torch.testing.assert_close(inputs[0]["pixel_values"], inputs[1]["pixel_values"], atol=1e-4, rtol=1e-5)
    assert convert(tmp_path / "back", tmp_path / "again").experiment == model_file.experiment
    assert load_model(tmp_path / "again")[1].categories.names == model_file.categories.names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resample": 3}, "resample is 3; only 2"),
        ({"pad_size": {"height": 900, "width": 900}}, "pad_size is"),
        ({"size": {"shortest_edge": 64}}, r"size is \{.*\}; only shortest_edge with longest_edge, or height"),
        ({"size": {"max_height": 64, "max_width": 90}}, "size is"),
        ({"size": "large"}, "size is 'large'"),
        ({"size": {"height": 0, "width": 70}}, "size is"),
        ({"size_divisor": "32"}, "size_divisor is '32'"),
        ({"do_resize": "yes"}, "do_resize is 'yes'; it must be true or false"),
        ({"rescale_factor": 0}, "rescale_factor is 0; it must be a positive number"),
        ({"rescale_factor": "1/255"}, "rescale_factor is '1/255'"),
        ({"image_mean": [0.5, 0.5]}, "image_mean is"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std is .*positive"),
        ({"image_processor_type": "ViTImageProcessor"}, "is of a ViTImageProcessor"),
    ],
)
def test_settings_that_cannot_be_taken_over_are_refused_by_name(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    content = {"image_processor_type": "Mask2FormerImageProcessor", "size": SIDES, "resample": 2, **changes}
    (tmp_path / NAME).write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=message) as caught:
        read_pixels(tmp_path, "Mask2FormerImageProcessor")
    assert NAME in str(caught.value)


def test_other_names_of_image_processors(tmp_path: Path) -> None:
    for name in ("DetrFeatureExtractor", "DetrImageProcessorFast", "ConditionalDetrImageProcessor"):
        key = "feature_extractor_type" if name.endswith("Extractor") else "image_processor_type"
        (tmp_path / NAME).write_text(json.dumps({key: name, "size": 64}))
        data = read_pixels(tmp_path, "").data
        assert data == {"resize": ShortSide(size=64, longest=1333, fit="stretch"), "divisor": 1}
