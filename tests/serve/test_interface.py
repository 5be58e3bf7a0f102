import io
import json
import re
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from data.deep_png import png16
from fastapi.testclient import TestClient
from PIL import Image
from pycocotools import mask as coco_mask
from serve.served import as_file, box_segmenter, color_segmenter, random_segmenter, scene, served

from unimask.config.data import Tiles
from unimask.config.tasks import TASKS
from unimask.serve.images import FORMATS, display_name
from unimask.serve.limits import Limits
from unimask.serve.middleware import LOOPBACK_NAMES, Access

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of pycocotools
PICTURE = scene(1)
SENTENCE_ENDS = (".", ")", "?")


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with served(limits=Limits(bytes=200_000, pixels=40_000)) as one:
        yield one


def send(client: TestClient, content: bytes, name: str = "a.png", **fields: object):
    data = {key: str(value) for key, value in fields.items()}
    return client.post("/v1/segment", files={"image": (name, content)}, data=data)


def sentence(answer) -> str:
    """The error of an answer, which is a sentence."""
    found = answer.json()
    assert list(found) == ["error"]
    assert found["error"][0].isupper()
    assert found["error"].endswith(SENTENCE_ENDS)
    return found["error"]


@pytest.mark.parametrize("task", TASKS)
def test_json_is_what_predict_says(client: TestClient, task: str) -> None:
    found = send(client, as_file(PICTURE), "my picture.png", task=task)
    assert found.status_code == 200
    answer, result = found.json(), color_segmenter().predict(PICTURE, task)
    assert (answer["model"], answer["name"], answer["task"]) == ("first", "my picture", task)
    assert (answer["height"], answer["width"]) == PICTURE.shape[:2]
    expected = {"panoptic": 3, "instance": 2, "semantic": 3}[task]
    assert len(answer["segments"]) == len(result.segments) == expected
    masks = result.prediction.masks().numpy()
    for got, wanted in zip(answer["segments"], result.segments):
        assert (got["id"], got["category"], got["score"]) == (wanted.id, wanted.category, wanted.score)
        assert np.array_equal(coco_mask.decode(got["segmentation"]) > 0, masks[got["id"] - 1])


def test_images_are_read_as_the_model_wants_them() -> None:
    """Colours of a 12-bit camera in 16 bits, which would be nearly black by their high bytes."""
    segmenter = color_segmenter().with_reading(depth=12)
    content = png16((PICTURE.astype(np.int64) * 4095 + 127) // 255, 2)
    with served(segmenter) as client:
        answer = send(client, content, task="semantic").json()
    expected = color_segmenter().predict(PICTURE, "semantic")
    assert [one["area"] for one in answer["segments"]] == [one.area for one in expected]


def test_what_of_a_file_was_not_read_or_was_guessed_is_said(client: TestClient) -> None:
    stream = io.BytesIO()
    page = Image.fromarray(PICTURE)
    page.save(stream, format="TIFF", save_all=True, append_images=[page, page], compression="tiff_deflate")
    pages = stream.getvalue()
    told = send(client, pages, "a.tif").json()
    assert [note.partition(";")[0] for note in told["notes"]] == ["page 1 of 3 is read"]
    for output in ("overlay", "ids"):
        answer = send(client, pages, "a.tif", output=output)
        assert json.loads(answer.headers["X-Notes"]) == told["notes"]
    uploaded = client.post("/page/images", files={"image": ("a.tif", pages)}).json()
    assert uploaded["notes"] == told["notes"]
    again = client.post(f"/page/images/{uploaded['id']}/model", data={"model": "first"}).json()
    assert again["notes"] == told["notes"]
    deep = send(client, png16(PICTURE.astype(np.int64) * 16, 2)).json()
    assert any("12" in note and "bit" in note for note in deep["notes"])
    plain = send(client, as_file(PICTURE))
    assert plain.json()["notes"] == []
    assert "X-Notes" not in send(client, as_file(PICTURE), output="ids").headers


def test_boxes_around_instances(client: TestClient) -> None:
    answer = send(client, as_file(PICTURE), task="detection").json()
    instances = color_segmenter().predict(PICTURE, "instance").segments
    assert [box["bbox"] for box in answer["boxes"]] == [[*map(float, one.bbox)] for one in instances]


def test_without_a_task_a_model_does_what_it_was_trained_for() -> None:
    with served(color_segmenter(), box_segmenter()) as both:
        assert send(both, as_file(PICTURE)).json()["task"] == "panoptic"
        assert send(both, as_file(PICTURE), model="second").json()["task"] == "detection"


def test_pictures_come_back(client: TestClient) -> None:
    result = color_segmenter().predict(PICTURE)
    overlay = send(client, as_file(PICTURE), output="overlay")
    assert overlay.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(overlay.content)) as image:
        assert np.array_equal(np.array(image), np.array(result.plot()))
    with Image.open(io.BytesIO(send(client, as_file(PICTURE), output="ids").content)) as image:
        assert np.array_equal(np.array(image)[..., 0], result.prediction.layers[0].numpy())


@pytest.mark.parametrize("format", [one for one in FORMATS if one != "GIF"])
def test_formats(client: TestClient, format: str) -> None:
    assert len(send(client, as_file(PICTURE, format)).json()["segments"]) == 3


def test_thresholds(client: TestClient) -> None:
    assert send(client, as_file(PICTURE), task="instance", threshold=1).json()["segments"] == []
    assert send(client, as_file(PICTURE), task="panoptic", threshold=1).json()["segments"] == []
    assert len(send(client, as_file(PICTURE), threshold=0, overlap=0).json()["segments"]) == 3


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, and is short."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 400, "empty"),
        (b"no picture at all", 415, "not an image"),
        (as_file(PICTURE)[:150], 422, "damaged or cut off"),
        (bomb(201, 200), 413, "at most 40,000"),
        (bomb(60_000, 60_000), 413, "at most 40,000"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "not an image"),
        (b"\0" * 300_000, 413, "too large"),
    ],
    ids=["empty", "text", "cut off", "large", "bomb", "postscript", "bytes"],
)
def test_bad_pictures(client: TestClient, content: bytes, status: int, words: str) -> None:
    answer = send(client, content)
    assert answer.status_code == status
    assert words in sentence(answer)
    assert len(send(client, as_file(PICTURE)).json()["segments"]) == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "everything"},
        {"model": "../first"},
        {"threshold": 1.5},
        {"threshold": "nan"},
        {"threshold": "high"},
        {"task": "semantic", "threshold": 0.5},
        {"output": "exe"},
        {"task": "detection", "output": "ids"},
    ],
    ids=str,
)
def test_bad_fields(client: TestClient, fields: dict[str, object]) -> None:
    answer = send(client, as_file(PICTURE), **fields)
    assert answer.status_code == 422
    sentence(answer)


def test_what_a_sentence_echoes_is_cut(client: TestClient) -> None:
    for fields in ({"model": "x" * 100_000}, {"task": "y " * 90_000}, {"z" * 3000: "1"}):
        answer = send(client, as_file(PICTURE), **fields)
        assert answer.status_code == 422
        assert len(sentence(answer)) < 1300
    headers = {"content-length": "9" * 5000}
    assert client.post("/v1/segment", content=b"a", headers=headers).status_code == 413


def test_no_path_and_no_address_is_opened(client: TestClient) -> None:
    for given in ("/etc/hostname", "file:///etc/hostname", "http://127.0.0.1:9/a.png"):
        answer = client.post("/v1/segment", data={"image": given})
        assert answer.status_code == 422
        sentence(answer)
    assert send(client, as_file(PICTURE), "../../etc/passwd.png").json()["name"] == "passwd"
    for name in (
        "/static/../app.py",
        "/static/%2e%2e%2fapp.py",
        "/page/examples/..%2f..%2fREADME.md",
        "/nothing",
    ):
        assert client.get(name).status_code == 404
    assert display_name("C:\\pictures\\a<b>.png") == "a_b_"
    assert display_name("...") == "image"


def test_a_long_body_without_a_length_is_cut(client: TestClient) -> None:
    def parts() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        for _ in range(30):
            yield bytes(10_000)
        yield b"\r\n--x--\r\n"

    answer = client.post(
        "/v1/segment", content=parts(), headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert answer.status_code == 413
    assert "too large" in sentence(answer)


def test_too_many_tiles() -> None:
    with served(color_segmenter(Tiles(size=32, overlap=16)), limits=Limits(views=8)) as client:
        assert send(client, as_file(PICTURE[:40, :60])).status_code == 200
        answer = send(client, as_file(PICTURE))
        assert answer.status_code == 413
        assert "15 tiles" in sentence(answer)


def test_what_is_served() -> None:
    with served(color_segmenter(), random_segmenter()) as client:
        told = client.get("/v1/models").json()
        assert [one["name"] for one in told["models"]] == ["first", "second"]
        assert told["models"][0]["tasks"] == [*TASKS, "detection"]
        assert told["models"][0]["thresholds"]["panoptic"] == {"score": 0.5, "overlap": 0.1}
        assert told["models"][0]["categories"][0] == {
            "id": 3,
            "name": "red",
            "isthing": 1,
            "color": [220, 60, 50],
        }
        assert told["limits"]["waiting"] == Limits().waiting
        assert client.get("/healthz").json() == {"status": "ok", "waiting": 0}
        assert send(client, as_file(PICTURE), model="second").json()["model"] == "second"
        described = client.get("/openapi.json").json()
        assert set(described["paths"]) == {"/v1/segment", "/v1/models", "/healthz", "/metrics"}
        assert "SegmentAnswer" in described["components"]["schemas"]


def test_every_file_of_the_page_is_ours_and_guarded(client: TestClient) -> None:
    for path in ("/", "/docs", "/static/script.js", "/static/style.css", "/favicon.svg"):
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        text = answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text
    assert "style=" not in client.get("/").text


def test_a_token_is_wanted() -> None:
    with served(access=Access(token="secret", names=frozenset())) as client:
        assert client.get("/").status_code == client.get("/healthz").status_code == 200
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer \xe4".encode("latin-1")},
        ):
            answer = client.get("/v1/models", headers=headers)
            assert answer.status_code == 401
            assert "token" in sentence(answer)
        assert send(client, as_file(PICTURE)).status_code == 401
        assert client.get("/page/examples").status_code == 401
        client.headers["Authorization"] = "Bearer secret"
        assert send(client, as_file(PICTURE)).status_code == 200


def test_strangers_on_loopback() -> None:
    with served(access=Access(token="", names=LOOPBACK_NAMES)) as client:
        for name in ("localhost:8000", "127.0.0.1", "[::1]:8000", "[::1]"):
            assert client.get("/healthz", headers={"host": name}).status_code == 200, name
        for name in ("evil.example", "127.0.0.1.evil.example:8000", ""):
            assert client.get("/v1/models", headers={"host": name}).status_code == 421, name
        headers = {"host": "localhost", "sec-fetch-site": "cross-site"}
        assert client.post("/v1/segment", headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("fields", "query", "reason"),
    [
        ({"tresholds": 0.5}, "", r"There is no field `tresholds`; there are: image, task"),
        ({}, "?task=instance", r"`task` stands in the address"),
        ({"task": ["instance", "semantic"]}, "", r"`task` is there more than once"),
    ],
    ids=["misspelt", "in the address", "twice"],
)
def test_what_would_be_passed_over_is_refused(
    client: TestClient, fields: dict[str, object], query: str, reason: str
) -> None:
    found = client.post(f"/v1/segment{query}", files={"image": ("a.png", as_file(PICTURE))}, data=fields)
    assert found.status_code == 422
    assert re.search(reason, sentence(found))


def test_names_are_compared_without_case_and_more_can_be_allowed() -> None:
    with served(access=Access(token="", names=LOOPBACK_NAMES | {"seg.example.org"})) as one:
        for host, status in (("LOCALHOST:80", 200), ("Seg.Example.org", 200), ("evil.example.org", 421)):
            assert one.get("/v1/models", headers={"host": host}).status_code == status


def test_pages_of_allowed_sites_may_ask() -> None:
    with served(access=Access(token="t", names=frozenset(), origins=frozenset({"https://a.org"}))) as one:
        for origin, allowed in (("https://a.org", True), ("https://b.org", False)):
            asked = {"origin": origin, "access-control-request-method": "POST",
                     "access-control-request-headers": "authorization"}  # fmt: skip
            assert (one.options("/v1/segment", headers=asked).status_code == 200) == allowed
            said = {"origin": origin, "sec-fetch-site": "cross-site", "authorization": "Bearer t"}
            found = one.post("/v1/segment", files={"image": ("a.png", as_file(PICTURE))}, headers=said)
            assert found.status_code == (200 if allowed else 403)
            assert (found.headers.get("access-control-allow-origin") == origin) == allowed
