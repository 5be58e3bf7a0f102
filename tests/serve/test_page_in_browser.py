"""The whole way through the page, in the Chromium of the system."""

import io
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image
from serve.served import as_file, color_segmenter, random_segmenter, scene

from unimask.serve.app import create_app
from unimask.serve.examples import shipped_examples
from unimask.serve.gate import LOOPBACK_NAMES, Access
from unimask.serve.limits import Limits

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (group dev)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt install chromium)")

PICTURE = scene(4)
RED, GREEN = (PICTURE[..., channel] == 255 for channel in (0, 1))
AREAS = {one.category: one.area for one in color_segmenter().predict(PICTURE, "instance").segments}
SLOW = 60_000  # milliseconds; a busy machine is no failure


def serve(access: Access) -> Iterator[str]:
    models = {"real": random_segmenter(), "colors": color_segmenter()}
    app = create_app(models, Limits(), access, batch_size=2, examples=shipped_examples()[1:2])
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join(20)
    listening.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    yield from serve(Access(token="", names=LOOPBACK_NAMES))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright.expect.set_options(timeout=SLOW)
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visit:
    """A page that was opened, with all that it asked for and complained about."""

    def __init__(self, browser: Any, address: str, width: int = 1280) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 800}, accept_downloads=True)
        self.page.set_default_timeout(SLOW)
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(f"{request.method} {request.url}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console",
            lambda message: self.complaints.append(message.text) if message.type == "error" else None,
        )
        self.page.goto(address)

    def upload(self, model: str, content: bytes = as_file(PICTURE), name: str = "two boxes.png") -> None:
        self.page.wait_for_selector("#example-list button")
        self.page.select_option("#model", model)
        self.page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})

    def uploads(self) -> int:
        return sum(one.startswith("POST") for one in self.asked)

    def point_at(self, row: float, column: float) -> None:
        box = self.page.locator("#view").bounding_box()
        height, width = PICTURE.shape[:2]
        x = box["x"] + (column + 0.5) / width * box["width"]
        self.page.mouse.move(x, box["y"] + (row + 0.5) / height * box["height"])

    def choose_task(self, task: str, count: str) -> None:
        self.page.check(f"#tasks input[value={task}]", force=True)
        self.expect_text("#list-title", count)

    def expect_text(self, place: str, text: str) -> None:
        playwright.expect(self.page.locator(place)).to_have_text(text)

    def saved(self, button: str) -> tuple[str, bytes]:
        with self.page.expect_download() as waiting:
            self.page.click(button)
        return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def middle(mask: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return float(rows.mean()), float(columns.mean())


def test_the_whole_way(browser: Any, address: str) -> None:
    visit = Visit(browser, address)
    page = visit.page
    visit.upload("colors")
    page.wait_for_selector("#list .row")
    assert page.text_content("#list-title") == "3 segments"
    visit.choose_task("detection", "2 boxes")
    visit.choose_task("semantic", "3 segments")
    assert page.is_visible("#no-thresholds")
    visit.choose_task("instance", "2 segments")
    assert visit.uploads() == 1, "a switch of the task sent the picture again"

    visit.point_at(*middle(GREEN))  # hover: picture, list and the words beside the pointer
    assert page.text_content("#tip-name") == "green"
    assert f"{AREAS['green']} px" in page.text_content("#tip-facts")
    assert page.get_attribute("#list .lit", "aria-label").startswith("green")
    page.mouse.move(*[part + 5 for part in (page.locator("#view").bounding_box()[key] for key in ("x", "y"))])
    assert page.is_hidden("#tip")

    visit.point_at(*middle(RED))
    page.mouse.down()
    page.mouse.up()
    assert page.get_attribute("#list .row[aria-pressed=true]", "aria-label").startswith("red")
    page.keyboard.press("Escape")
    assert page.locator("#list .row[aria-pressed=true]").count() == 0

    page.focus("#stage")  # the same by keyboard
    page.keyboard.press("ArrowRight")
    first = page.get_attribute("#list .lit", "data-id")
    page.keyboard.press("Enter")
    assert page.get_attribute("#list .row[aria-pressed=true]", "data-id") == first
    page.keyboard.press("Enter")

    page.focus("#score")
    page.keyboard.press("End")
    visit.expect_text("#list-title", "0 segments")
    assert "Move the slider" in page.text_content("#list")
    page.fill("#score", "0.5")
    visit.expect_text("#list-title", "2 segments")
    page.uncheck("#labels")
    page.focus("#opacity")
    page.keyboard.press("End")
    assert page.text_content("#opacity-value") == "100 %"
    assert visit.uploads() == 1
    _downloads(visit)
    assert visit.complaints == []
    page.close()


def _downloads(visit: Visit) -> None:
    name, content = visit.saved("#save-coco")
    assert name == "two boxes.coco.json"
    assert [one["area"] for one in json.loads(content)["annotations"]] == [*AREAS.values()]
    name, content = visit.saved("#save-ids")
    assert name == "two boxes.segments.png"
    with Image.open(io.BytesIO(content)) as image:
        assert (np.array(image)[..., 0] > 0).sum() == sum(AREAS.values())
    name, content = visit.saved("#save-overlay")
    assert name == "two boxes.overlay.png"
    with Image.open(io.BytesIO(content)) as image:
        scale = image.width // PICTURE.shape[1]
        row, column = (round(scale * (part + 0.5)) for part in middle(RED))
        shown = np.array(image.convert("RGB"))[row, column]
    assert shown[0] > 150  # opacity 100 %: a shade of the category's colour, not the picture's red
    assert shown[1] > 20


def test_how_it_saw_it(browser: Any, address: str) -> None:
    visit = Visit(browser, address)
    page = visit.page
    visit.upload("real")
    page.wait_for_selector("#list .row")
    page.locator("#inside").scroll_into_view_if_needed()
    page.wait_for_selector("#film button")
    steps = page.locator("#film button").count()
    assert steps == random_segmenter().model_file.experiment.model.query_decoder.layers + 1  # type: ignore[union-attr]
    assert page.text_content("#step-title") == f"Layer {steps - 1}"
    last = page.evaluate("document.getElementById('says').toDataURL()")
    page.focus("#layer")
    page.keyboard.press("Home")
    assert page.text_content("#step-title") == "Before the first layer"
    assert page.evaluate("document.getElementById('says').toDataURL()") != last
    page.keyboard.press("ArrowRight")
    assert page.text_content("#step-title") == "Layer 1"
    assert "%" in page.get_attribute("#looks", "aria-label")
    other = page.locator("#query option:not(:checked)").first.get_attribute("value")
    page.select_option("#query", other)
    playwright.expect(page.locator("#inside-lead")).to_contain_text(f"Query {other} made")
    page.select_option("#model", "colors")  # a model that cannot be watched says so
    page.wait_for_selector("#inside-reason:not([hidden])")
    assert "Serve the model folder" in page.text_content("#inside-reason")
    assert visit.complaints == []
    page.close()


def test_errors_are_sentences_and_the_page_goes_on(browser: Any, address: str) -> None:
    visit = Visit(browser, address)
    page = visit.page
    visit.upload("colors", b"no picture", "notes.txt")
    page.wait_for_selector("#error:not([hidden])")
    assert page.text_content("#error-text").startswith("This is not a picture")
    assert page.get_attribute("#error", "role") == "alert"
    assert page.is_visible("#drop")
    page.click("#error-close")
    page.click("#example-list button")
    page.wait_for_selector("#list-title")
    page.wait_for_selector("#busy", state="hidden")
    page.click("#again")
    page.evaluate(  # paste
        """content => {
            const data = new DataTransfer();
            data.items.add(new File([Uint8Array.from(content)], "", { type: "image/png" }));
            dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
        }""",
        list(as_file(PICTURE)),
    )
    visit.expect_text("#list-title", "3 segments")
    page.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_and_everything_has_a_name(browser: Any, address: str, width: int) -> None:
    visit = Visit(browser, address, width)
    page = visit.page
    visit.upload("real")
    page.wait_for_selector("#list .row")
    page.locator("#inside").scroll_into_view_if_needed()
    page.wait_for_selector("#film button")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, a, canvas[role=img]")]
            .filter((one) => !(one.ariaLabel || one.textContent.trim() || one.labels?.length || one.title))
            .map((one) => one.outerHTML)"""
    )
    assert nameless == []
    page.close()


def test_a_token_is_asked_for(browser: Any) -> None:
    for address in serve(Access(token="secret", names=frozenset())):
        visit = Visit(browser, address)
        visit.page.fill("#token", "secret")
        visit.page.click("#token-form button")
        visit.page.wait_for_selector("#example-list button")
        visit.page.close()
        visit = Visit(browser, f"{address}#token=secret")
        visit.page.wait_for_selector("#example-list button")
        assert "secret" not in visit.page.url
        assert not any("secret" in one for one in visit.asked[1:])
        visit.page.close()
