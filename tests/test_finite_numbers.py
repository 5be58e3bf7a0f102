"""Numbers are finite: predictions are checked, and JSON holds null where there is no number."""

import ast
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import unimask
from unimask.errors import NotFiniteError
from unimask.files import json_text, write_json
from unimask.inference.evaluation import measure
from unimask.inference.loading import load
from unimask.inference.measures import Evaluation
from unimask.inference.predictor import Predictor
from unimask.inference.segmenter import Segmenter
from unimask.metrics.confusion import Confusion
from unimask.structures import BoxMaskPrediction, BoxPrediction, ImageBatch, MaskPrediction, Prediction

SOURCE = Path(unimask.__file__).parent
HEAD = {"class_logits": torch.zeros(1, 2, 3, 4)}
PREDICTIONS: dict[str, Prediction] = {
    "masks": MaskPrediction(
        **HEAD, mask_embeddings=torch.zeros(1, 2, 3, 5), mask_features=torch.zeros(1, 2, 5, 6, 7)
    ),
    "boxes": BoxPrediction(**HEAD, boxes=torch.zeros(1, 2, 3, 4)),
    "boxes and masks": BoxMaskPrediction(
        **HEAD, boxes=torch.zeros(1, 2, 3, 4), mask_logits=torch.zeros(2, 3, 6, 7)
    ),
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_one_number_makes_a_prediction_not_finite(kind: str, value: float) -> None:
    prediction = PREDICTIONS[kind]
    assert prediction.finite().tolist() == [True, True]
    tensors = {name: value for name, value in vars(prediction).items() if isinstance(value, torch.Tensor)}
    assert len(tensors) > 1
    for name, tensor in tensors.items():
        changed = tensor.clone()
        changed.select(0 if name == "mask_logits" else 1, 1).flatten()[-1] = value
        assert replace(prediction, **{name: changed}).finite().tolist() == [True, False], name


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Segmenter:
    """A model that predicts NaN for images of which a corner is white."""
    segmenter = load("nuclei", device="cpu")
    forward = Predictor.forward

    def overflowing(self: Predictor, images: ImageBatch) -> Prediction:
        prediction = forward(self, images)
        assert isinstance(prediction, MaskPrediction)
        bad = images.pixels[:, :, 0, 0].mean(1) > 0.9
        features = torch.where(bad[:, None, None, None], math.nan, prediction.mask_features)
        return replace(prediction, mask_features=features)

    monkeypatch.setattr(Predictor, "forward", overflowing)
    return segmenter


def grey(*corners: int) -> list[np.ndarray]:
    images = [np.full((60, 60, 3), 90, np.uint8) for _ in corners]
    for image, corner in zip(images, corners, strict=True):
        image[:9, :9] = corner
    return images


def test_the_image_of_a_prediction_that_is_not_finite_is_named(broken: Segmenter) -> None:
    good, bad = grey(0, 255)
    assert len(broken.predict([good, good])) == 2
    with pytest.raises(NotFiniteError, match=r"^image_2: the model predicts numbers that are not finite"):
        broken.predict([good, good, bad])
    with pytest.raises(NotFiniteError, match=r"^image 2: "):
        list(broken.find([torch.from_numpy(one).permute(2, 0, 1) for one in (good, bad)], "instance"))


def test_the_evaluation_names_it_too(broken: Segmenter) -> None:
    class Data:
        categories = broken.categories

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> unimask.Sample:
            image = torch.from_numpy(grey(0, 255)[index]).permute(2, 0, 1).contiguous()
            truth = broken.predict(image * 0, "semantic").prediction
            return unimask.Sample(image=image, truth=truth, image_id=f"slide {index}")

    with pytest.raises(NotFiniteError, match=r"^slide 1: the model predicts"):
        measure(broken, Data(), "semantic", range(2))


def test_json_has_null_where_there_is_no_number(tmp_path: Path) -> None:
    content = {"loss": math.nan, "rates": (1.0, -math.inf, {"π": math.inf}), 3: [True, None, "NaN"]}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    expected = {"loss": None, "rates": [1.0, None, {"π": None}], "3": [True, None, "NaN"]}
    assert json.loads(text, parse_constant=pytest.fail) == expected
    assert json.loads(json_text(content, None, ascii_only=True)) == expected
    assert text.endswith("}\n")


def test_measures_of_nothing_are_null(tmp_path: Path) -> None:
    measured = Evaluation(
        task="instance",
        values={"AP": 0.5, "APl": None},
        per_category={},
        images=3,
        seconds=1.0,
        confusion=Confusion(unit="segments", names=(), matrix=((0,),), by_size={}),
    )
    measured.save(tmp_path / "a.json")
    written = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert written["values"] == {"AP": 0.5, "APl": None}


def test_there_is_one_writer_of_json() -> None:
    """Everything else would write NaN, which is no JSON."""
    calls = {
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in ("dump", "dumps")
        and isinstance(node.value, ast.Name)
        and node.value.id == "json"
    }
    assert {place.partition(":")[0] for place in calls} == {"files.py"}
