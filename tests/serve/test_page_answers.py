import base64
import io
import json
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from pycocotools.coco import COCO
from serve.served import (
    ColorNetwork,
    as_file,
    color_segmenter,
    random_box_segmenter,
    random_segmenter,
    scene,
    served,
    unmasked_segmenter,
)

from unimask.config.data import Tiles
from unimask.config.tasks import TASKS
from unimask.inference.segmenter import Segmenter
from unimask.results.writing import FORMATS
from unimask.serve.cached import predict_cached
from unimask.serve.examples import shipped_examples
from unimask.serve.layers import describe, on_canvas, query_of, watch

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of pycocotools
PICTURE = scene(4)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with served(color_segmenter(Tiles(size=48, overlap=24)), random_segmenter()) as one:
        yield one


def upload(client: TestClient, model: str = "first") -> str:
    answer = client.post("/page/images", files={"image": ("a.png", as_file(PICTURE))}, data={"model": model})
    assert answer.status_code == 200
    return f"/page/images/{answer.json()['id']}"


def unpacked(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=kind)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_read_from_one_upload(client: TestClient, task: str) -> None:
    place = upload(client)
    passes = len(_network(client).passes)
    result = color_segmenter(Tiles(size=48, overlap=24)).predict(PICTURE, task)
    found = client.get(f"{place}/result", params={"task": task}).json()
    layers = unpacked(found["map"], "<i2").reshape(found["layers"], *PICTURE.shape[:2])
    assert np.array_equal(layers, result.prediction.layers.numpy())
    assert [one["score"] for one in found["segments"]] == [one.score for one in result.segments]
    for one in found["segments"]:
        column, row = one["anchor"]
        assert one["id"] in layers[:, row, column]
    assert len(_network(client).passes) == passes, "the model was asked again"


def _network(client: TestClient) -> ColorNetwork:
    network = client.app.state.engine.segmenters["first"].model  # type: ignore[attr-defined]
    assert isinstance(network, ColorNetwork)
    return network


def test_thresholds_read_again(client: TestClient) -> None:
    place = upload(client)
    for score, count in ((0.5, 2), (1.0, 0)):
        found = client.get(f"{place}/result", params={"task": "instance", "score": score}).json()
        assert len(found["segments"]) == count
        assert found["thresholds"]["score"] == score
    boxes = client.get(f"{place}/result", params={"task": "detection"}).json()
    assert (boxes["kind"], len(boxes["segments"]), boxes["map"]) == ("boxes", 2, "")
    answer = client.get(f"{place}/result", params={"task": "semantic", "score": 0.5})
    assert answer.status_code == 422


def test_downloads(client: TestClient, tmp_path: Path) -> None:
    place = upload(client)
    for task in ("instance", "detection"):
        path = tmp_path / f"{task}.json"
        path.write_text(client.get(f"{place}/files/coco", params={"task": task}).text)
        coco = COCO(str(path))
        assert len(coco.getAnnIds(imgIds=[1])) == 2
        assert {coco.cats[one["category_id"]]["name"] for one in coco.anns.values()} == {"red", "green"}
    instances = COCO(str(tmp_path / "instance.json"))
    masks = color_segmenter(Tiles(size=48, overlap=24)).predict(PICTURE, "instance").prediction.masks()
    for number, mask in enumerate(masks.numpy(), start=1):
        assert np.array_equal(instances.annToMask(instances.anns[number]) > 0, mask)
    answer = client.get(f"{place}/files/coco")
    assert answer.headers["Content-Disposition"].endswith("''a.coco.zip")
    with ZipFile(io.BytesIO(answer.content)) as archive:
        panoptic = json.loads(archive.read("a.coco.json"))
        with Image.open(archive.open(panoptic["annotations"][0]["file_name"])) as image:
            ids = np.array(image)[..., 0]
    (annotation,) = panoptic["annotations"]
    areas = {one["id"]: one["area"] for one in annotation["segments_info"]}
    assert {one: int((ids == one).sum()) for one in areas} == areas
    refused = client.get(f"{place}/files/png", params={"task": "detection"})
    assert (refused.status_code, "may overlap" in refused.json()["error"]) == (422, True)
    assert "does not exist" in client.get(f"{place}/files/nonsense").json()["error"]
    with Image.open(io.BytesIO(client.get(f"{place}/image.png").content)) as image:
        assert np.array_equal(np.array(image), PICTURE)


def test_every_format_that_is_offered_can_be_saved(client: TestClient) -> None:
    place, offered = upload(client), client.get("/page/formats").json()
    names = {task: [one["name"] for one in formats] for task, formats in offered.items()}
    assert set(names["panoptic"]) == set(FORMATS) - {"overlay"}
    assert set(names["instance"]) == set(FORMATS) - {"overlay", "png"}
    for task in names:
        for name in names[task]:
            answer = client.get(f"{place}/files/{name}", params={"task": task})
            assert answer.status_code == 200, (task, name, answer.text)
            assert answer.content


def test_the_surest_instance_shows_in_the_id_map(client: TestClient) -> None:
    place = upload(client, "second")
    question = {"task": "instance", "score": 0.0}
    found = client.get(f"{place}/result", params=question).json()
    assert found["layers"] > 1
    layers = unpacked(found["map"], "<i2").reshape(found["layers"], *PICTURE.shape[:2]).astype(int)
    expected = np.where(layers == 0, 10**6, layers).min(axis=0) % 10**6
    form = {"task": "instance", "threshold": "0", "model": "second", "output": "ids"}
    answer = client.post("/v1/segment", files={"image": ("a.png", as_file(PICTURE))}, data=form)
    with Image.open(io.BytesIO(answer.content)) as image:
        assert np.array_equal(np.array(image)[..., 0] + 256 * np.array(image)[..., 1].astype(int), expected)


def test_another_model_needs_no_upload(client: TestClient) -> None:
    place = upload(client)
    answer = client.post(f"{place}/model", data={"model": "second"}).json()
    assert answer["model"] == "second"
    assert client.get(f"/page/images/{answer['id']}/result").status_code == 200


def test_unknown_pictures_and_segments(client: TestClient) -> None:
    assert client.get("/page/images/guessed/result").status_code == 404
    place = upload(client, "second")
    assert client.get(f"{place}/layers", params={"segment": 99}).status_code == 422
    assert client.get(f"{place}/layers", params={"segment": 1, "query": 99}).status_code == 422
    refused = client.get(f"{upload(client)}/layers", params={"segment": 1})
    assert refused.status_code == 422
    assert "Serve the model folder" in refused.json()["error"]


def test_the_layers_of_a_query(client: TestClient) -> None:
    place = upload(client, "second")
    told = client.get(f"{place}/layers", params={"task": "semantic", "segment": 1}).json()
    segmenter = random_segmenter()
    layers = segmenter.model_file.experiment.model.query_decoder.layers  # type: ignore[union-attr]
    assert [step["stride"] == 0 for step in told["steps"]] == [True] + [False] * layers
    assert told["window"] == [0, 0, PICTURE.shape[1], PICTURE.shape[0]]
    assert told["extent"] == [96 / 83, 64 / 61]
    assert told["query"] in [one["query"] for one in told["queries"]]
    (seen,) = predict_cached(segmenter, [_tensor()], [""], 1, lambda: None)
    watched = watch(segmenter, seen.image, seen.tiles[0])
    final = watched.prediction.mask_logits()[0, told["query"]].sigmoid()
    shown = told["steps"][-1]["mask"]
    values = unpacked(shown["data"], "u1").reshape(shown["rows"], shown["columns"])
    assert np.abs(values / 255 - final.numpy()).max() < 0.01
    for step in watched.steps[1:]:
        assert torch.allclose(step.shares.flatten(1).sum(1), torch.ones(len(step.shares)), atol=1e-4)
        assert bool((step.shares[~step.visible] == 0).all())
        guide = watched.prediction.mask_logits(step.prediction - 1)[0]
        assert step.visible.shape[0] == guide.shape[0]


def test_layers_are_told_while_others_ask(client: TestClient) -> None:
    """One model is watched for two visitors while the engine uses it for a third."""
    fresh = [upload(client, "second") for _ in range(3)]

    def ask(place: str) -> dict[str, object]:
        return client.get(f"{place}/layers", params={"segment": 1}).json()

    expected = ask(upload(client, "second"))["steps"]
    with ThreadPoolExecutor(6) as pool:
        told = [pool.submit(ask, place) for place in fresh]
        others = [pool.submit(upload, client, "second") for _ in range(6)]
        assert all(one.result(60)["steps"] == expected for one in told)
        assert all(one.result(60) for one in others)


@pytest.mark.parametrize(("segmenter", "masked"), [(random_segmenter, True), (unmasked_segmenter, False)])
def test_it_is_told_whether_attention_is_masked(segmenter: Callable[[], Segmenter], masked: bool) -> None:
    one = segmenter()
    (seen,) = predict_cached(one, [_tensor()], [""], 1, lambda: None)
    told = describe(watch(one, seen.image, seen.tiles[0]), 0, one.categories)
    assert told["masked"] == masked


def test_a_model_of_boxes(tmp_path: Path) -> None:
    """What it finds is what `predict` finds, and what it does not have is refused with the reason."""
    expected = random_box_segmenter().predict(PICTURE, "detection")
    with served(random_box_segmenter()) as client:
        (about,) = client.get("/v1/models").json()["models"]
        assert about["tasks"] == ["detection"]
        assert about["reasons"] == dict.fromkeys(TASKS, "This model finds boxes, not masks.")
        place = upload(client)
        found = client.get(f"{place}/result", params={"task": "detection"}).json()
        assert [one["bbox"] for one in found["segments"]] == [[*one.bbox] for one in expected]
        half = expected[len(expected) // 2].score
        few = client.get(f"{place}/result", params={"task": "detection", "score": half}).json()
        assert [one["score"] >= half for one in found["segments"]].count(True) == len(few["segments"])
        for task in TASKS:
            refused = client.get(f"{place}/result", params={"task": task})
            assert refused.status_code == 422
            assert refused.json() == {"error": "This model finds boxes, not masks."}
        refused = client.get(f"{place}/layers", params={"segment": 1, "task": "detection"})
        assert "This model finds boxes" in refused.json()["error"]
        (tmp_path / "a.json").write_text(client.get(f"{place}/files/coco", params={"task": "detection"}).text)
        coco = COCO(str(tmp_path / "a.json"))
        assert [one["bbox"] for one in coco.anns.values()] == [[*one.bbox] for one in expected]
        answer = client.post(
            "/v1/segment", files={"image": ("a.png", as_file(PICTURE))}, data={"task": "detection"}
        ).json()
        assert [one["bbox"] for one in answer["boxes"]] == [[*one.bbox] for one in expected]


def _tensor() -> torch.Tensor:
    return torch.from_numpy(PICTURE).permute(2, 0, 1).contiguous()


def test_the_query_of_a_mask_is_the_one_that_made_it() -> None:
    segmenter = random_segmenter()
    (seen,) = predict_cached(segmenter, [_tensor()], [""], 1, lambda: None)
    watched = watch(segmenter, seen.image, seen.tiles[0])
    placement = seen.tiles[0].placement
    restored = placement.restore(watched.prediction.mask_logits()[0].clone())
    labels = watched.prediction.class_logits[-1, 0, :, :-1].argmax(dim=1)
    found = [query_of(watched, restored[query] > 0, int(labels[query])) for query in range(len(labels))]
    masks = (restored > 0).flatten(1).float()
    both = masks @ masks.T
    iou = both / (masks.sum(1)[:, None] + masks.sum(1) - both).clamp(min=1)
    assert all(iou[query, other] > 0.8 for query, other in enumerate(found) if masks[query].any())


def test_masks_on_the_canvas() -> None:
    mask = torch.zeros((8, 12), dtype=torch.bool)
    mask[:4, :6] = True
    cells = on_canvas(mask, (8, 12), (16, 16), (4, 4))
    assert cells.tolist() == [[1, 0.5, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_examples_come_with_the_source() -> None:
    assert [path.name for path in shipped_examples()] == [f"nuclei_{number}.png" for number in range(1, 5)]
