import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serve.served import as_file, box_segmenter, color_segmenter, scene, served

from unimask.data.formats.label_studio import open_label_studio
from unimask.errors import NotFiniteError
from unimask.serve import label_studio as studio_module
from unimask.serve.label_studio import LabelStudio, read_interface
from unimask.serve.middleware import Access

INTERFACE = """<View><!-- of our street --><Image name="photo" value="$url" zoom="true"/>
  <BrushLabels name="tag" toName="photo"><Label value="Red"/><Label value="Blue"/></BrushLabels></View>"""
PICTURE = scene(1)
LEGACY, PERSONAL = "a1b2c3", "eyJh.eyJ0.c2ln"


def label_studio(request: httpx.Request) -> httpx.Response:
    """What a Label Studio with one image answers, to whom it may concern."""
    if request.url.path == "/api/token/refresh":
        right = json.loads(request.content) == {"refresh": PERSONAL}
        return httpx.Response(200, json={"access": "short"}) if right else httpx.Response(401)
    if request.headers.get("authorization") not in (f"Token {LEGACY}", "Bearer short"):
        return httpx.Response(401)
    answers = {
        "/data/upload/1/ab-street.png": httpx.Response(200, content=as_file(PICTURE)),
        "/tasks/1/presign/": httpx.Response(302, headers={"location": "http://elsewhere.org/a.png"}),
        "/large": httpx.Response(200, content=b"x" * (33 * 2**20)),
    }
    return answers.get(request.url.path, httpx.Response(404))


def studio(token: str = LEGACY) -> LabelStudio:
    transport = httpx.MockTransport(label_studio)
    return LabelStudio(address="http://studio:8080", token=token, transport=transport)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with served(label_studio=studio()) as one:
        yield one


def ask(client: TestClient, *addresses: str, interface: str = INTERFACE) -> httpx.Response:
    """Ask as Label Studio does."""
    tasks = [{"id": number, "data": {"url": one}} for number, one in enumerate(addresses, 7)]
    asked: dict[str, Any] = {
        "tasks": tasks,
        "project": "1.1764432000",
        "label_config": interface,
        "model_version": "",
    }
    asked["params"] = {"login": None, "password": None, "context": None}
    return client.post("/predict", content=json.dumps(asked))


def test_tasks_get_brushes_that_a_training_reads(client: TestClient, tmp_path: Path) -> None:
    asked = {"project": "1.1764432000", "schema": INTERFACE, "hostname": "", "access_token": ""}
    assert client.post("/setup", json=asked).json() == {"model_version": "first"}
    address = "/data/upload/1/ab-street.png"
    answer = ask(client, address).json()
    (prediction,) = answer["results"]
    assert (answer["model_version"], prediction["model_version"]) == ("first", "first")
    (region,) = prediction["result"]  # green and ground are no labels of the interface
    assert (region["from_name"], region["to_name"], region["type"]) == ("tag", "photo", "brushlabels")
    assert region["value"]["brushlabels"] == ["Red"]  # as the interface spells it

    export = [{"id": 7, "data": {"url": address}, "annotations": [{"result": prediction["result"]}]}]
    (tmp_path / "export.json").write_text(json.dumps(export), encoding="utf-8")
    Image.fromarray(PICTURE).save(tmp_path / "ab-street.png")
    (sample,) = open_label_studio(tmp_path / "export.json")
    result = color_segmenter().predict(PICTURE, "instance")
    (red,) = [mask for name, mask in zip(result.names, result.masks) if name == "red"]
    assert np.array_equal(sample.truth.masks().numpy()[0], red)


def test_polygons_go_around_the_same_pixels(client: TestClient) -> None:
    interface = INTERFACE.replace("BrushLabels", "PolygonLabels")
    (prediction,) = ask(client, "/data/upload/1/ab-street.png", interface=interface).json()["results"]
    result = color_segmenter().predict(PICTURE, "instance")
    (parts,) = [polygons for name, polygons in zip(result.names, result.polygons) if name == "red"]
    assert [region["type"] for region in prediction["result"]] == ["polygonlabels"] * len(parts)
    for region, rings in zip(prediction["result"], parts):
        assert region["value"]["polygonlabels"] == ["Red"]
        points = np.array(region["value"]["points"]) * (PICTURE.shape[1], PICTURE.shape[0]) / 100
        assert np.allclose(points, rings[0])


def test_boxes_get_rectangles() -> None:
    interface = INTERFACE.replace("BrushLabels", "RectangleLabels")
    with served(box_segmenter(), label_studio=studio()) as client:
        (prediction,) = ask(client, "/data/upload/1/ab-street.png", interface=interface).json()["results"]
        wrong = ask(client, "/data/upload/1/ab-street.png")
    (region,) = prediction["result"]
    assert region["type"] == "rectanglelabels"
    (red,) = [one for one in box_segmenter().predict(PICTURE, "detection") if one.category == "red"]
    height, width = PICTURE.shape[:2]
    shares = np.array([region["value"][key] for key in ("x", "y", "width", "height")]) / 100
    assert shares * (width, height, width, height) == pytest.approx(red.bbox, abs=0.01)
    assert wrong.status_code == 422
    assert "boxes, not masks" in wrong.json()["error"]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://elsewhere.org/a.png", "is not on http://studio:8080"),
        ("//elsewhere.org/a.png", "is not on http://studio:8080"),
        ("file:///etc/passwd", "is not on http://studio:8080"),
        ("/data/nothing.png", "answers 404"),
        ("/tasks/1/presign/?fileuri=czM6", "turn on the proxy of the storage"),
        ("/large", "larger than 32 MiB"),
        ("", "has no address of an image under 'url'"),
        ("http://[", "has no address that can be read"),
        ("/data/\x00.png", "cannot be reached"),
        ("/data/\ud800.png", "cannot be reached"),
        ("/data/" + "x" * 100_000, "..."),
    ],
)
def test_an_image_that_cannot_be_fetched_is_named(client: TestClient, address: str, said: str) -> None:
    answer = ask(client, address)
    assert answer.status_code in (413, 422)
    assert said in answer.json()["error"]


def test_one_bad_task_does_not_stop_the_others(client: TestClient) -> None:
    first, second = ask(client, "/data/nothing.png", "/data/upload/1/ab-street.png").json()["results"]
    assert (first["result"], len(second["result"])) == ([], 1)
    assert "answers 404" in first["error"]


def test_any_error_of_a_task_is_that_of_the_task(client: TestClient) -> None:
    error = NotFiniteError(0, "street")
    with mock.patch.object(studio_module, "result_of", side_effect=error):
        first, second = ask(client, *["/data/upload/1/ab-street.png"] * 2).json()["results"]
    assert first["error"] == second["error"] == str(error)


@pytest.mark.parametrize("answer", [{"content": b"<html>"}, {"json": ["access"]}, {"json": {"access": 3}}])
def test_answers_to_the_token_that_are_none(answer: dict[str, Any]) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, **answer))
    other = LabelStudio(address="http://studio:8080", token=PERSONAL, transport=transport)
    with served(label_studio=other) as client:
        found = ask(client, "/data/upload/1/ab-street.png")
    assert found.status_code == 422
    assert "http://studio:8080" in found.json()["error"] or "does not take the token" in found.json()["error"]


def test_tokens_of_both_kinds_are_sent() -> None:
    with served(label_studio=studio(PERSONAL)) as client:
        for _ in range(2):  # the second one with the token that is still good
            assert ask(client, "/data/upload/1/ab-street.png").is_success
    for token, said in (("", "set LABEL_STUDIO_TOKEN"), ("a.b.c", "does not take the token")):
        with served(label_studio=studio(token)) as client:
            assert said in ask(client, "/data/upload/1/ab-street.png").json()["error"]


@pytest.mark.parametrize(
    ("interface", "said"),
    [
        ("<View>", "is not XML"),
        ("<View>\ud800</View>", "is not XML that is read here"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><View/>', "is not XML that is read here"),
        ('<View><Image name="a" value="$b"/><Choices name="c" toName="a"/></View>', "has no BrushLabels"),
        (
            INTERFACE.replace("Red", "cat"),
            r"None of the labels \(cat, Blue\) is a category of the model \(red",
        ),
    ],
)
def test_an_interface_that_does_not_fit_is_refused(client: TestClient, interface: str, said: str) -> None:
    answer = client.post("/setup", content=json.dumps({"project": "1.1", "schema": interface}))
    assert answer.status_code == 422
    assert re.search(said, answer.json()["error"])


def test_the_best_control_is_taken() -> None:
    both = INTERFACE.replace(
        "</View>", '<RectangleLabels name="r" toName="photo"><Label value="x"/></RectangleLabels></View>'
    )
    found = read_interface(both)
    assert (found.control, found.kind, found.key, found.labels) == (
        "tag", "brush", "url", {"red": "Red", "blue": "Blue"},
    )  # fmt: skip


def test_the_rest_of_what_is_called(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "UP", "model_class": "first"}
    assert client.get("/versions").json() == {"versions": ["first"]}
    for path in ("/webhook", "/train"):
        assert client.post(path, json={"action": "ANNOTATION_CREATED"}).status_code == 201
    for content in (b"no JSON", b"[" * 100_000, b"\xff", b"1" * 5000):
        answer = client.post("/predict", content=content)
        assert answer.status_code == 422
        assert answer.json()["error"].startswith("The request is no")
    assert client.post("/predict", json={"tasks": 3}).status_code == 422


def test_nobody_else_may_ask() -> None:
    with served(label_studio=studio(), access=Access(token="secret", names=frozenset())) as client:
        assert ask(client, "/data/upload/1/ab-street.png").status_code == 401
        basic = base64.b64encode(b"anybody:secret").decode()
        client.headers["Authorization"] = f"Basic {basic}"  # as Label Studio sends user and password
        assert ask(client, "/data/upload/1/ab-street.png").is_success
        client.headers["Authorization"] = "Basic no"
        assert ask(client, "/data/upload/1/ab-street.png").status_code == 401
    with served() as client:
        assert client.get("/health").status_code == 404  # only where it was asked for
