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
from serve.served import as_file, box_segmenter, color_segmenter, random_segmenter, scene

from unimask.inference.segmenter import Segmenter
from unimask.serve.app import create_app
from unimask.serve.examples import shipped_examples
from unimask.serve.limits import Limits
from unimask.serve.middleware import LOOPBACK_NAMES, Access

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (group dev)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt install chromium)")

PICTURE = scene(4)
RED, GREEN = (PICTURE[..., channel] == 255 for channel in (0, 1))
AREAS = {one.category: one.area for one in color_segmenter().predict(PICTURE, "instance").segments}
SLOW = 60_000  # milliseconds; a busy machine is no failure


def serve(access: Access, models: dict[str, Segmenter], prefix: str = "") -> Iterator[str]:
    served = create_app(
        models,
        Limits(),
        access,
        batch_size=2,
        examples=shipped_examples()[1:2],
        reports={"colors": Path(__file__)},
    )

    async def app(scope: Any, receive: Any, send: Any) -> None:
        """As behind a proxy that leaves out the prefix; what comes without it would not reach this server."""
        if scope["type"] == "http":
            path = scope["path"]
            scope = {**scope, "path": path.removeprefix(prefix) if path.startswith(prefix) else "/nowhere"}
        await served(scope, receive, send)

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}{prefix}/"
    server.should_exit = True
    thread.join(20)
    listening.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    models = {"real": random_segmenter(), "colors": color_segmenter(), "boxes": box_segmenter()}
    yield from serve(Access(token="", names=LOOPBACK_NAMES), models)


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
    assert "png" not in visit.page.locator("#format option").all_text_contents()  # instances may overlap
    visit.page.select_option("#format", "coco")
    name, content = visit.saved("#save-format")
    assert name == "two boxes.coco.json"
    assert [one["area"] for one in json.loads(content)["annotations"]] == [*AREAS.values()]
    visit.page.select_option("#format", "geojson")
    assert "two boxes.geojson: polygons" in visit.page.text_content("#format-help")
    name, content = visit.saved("#save-format")
    assert (name, len(json.loads(content)["features"])) == ("two boxes.geojson", 2)
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
    held: list[Any] = []
    page.route("**/layers?*", lambda route: held.append(route))
    with page.expect_request("**/layers?*"):  # the page shows that it waits a moment before it asks
        page.locator("#inside").scroll_into_view_if_needed()
    page.wait_for_selector("#inside-wait:not([hidden])")
    for hidden in ("#inside-body", "#inside-lead", "#query-field", "#inside-reason"):
        assert page.is_hidden(hidden)
    deadline = time.monotonic() + 10
    while not held and time.monotonic() < deadline:  # the request is known before its route is
        page.wait_for_timeout(20)
    assert held
    page.unroute("**/layers?*")  # and what was held goes on
    page.wait_for_selector("#film button")
    assert page.is_hidden("#inside-wait")
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
    assert page.text_content("#error-text").startswith("This is not an image")
    assert page.get_attribute("#error", "role") == "alert"
    assert page.is_visible("#drop")
    page.click("#error-close")
    page.click("#example-list button")
    page.wait_for_selector("#list-title")
    page.wait_for_selector("#busy", state="hidden")
    page.click("#again")
    assert page.is_visible("#drop")
    page.close()


GIVE = """([kind, name, content, text]) => {
    const data = new DataTransfer();
    if (content) data.items.add(new File([Uint8Array.from(content)], name, { type: "image/png" }));
    else data.setData("text/plain", text);
    const how = { bubbles: true, cancelable: true };
    if (kind === "paste") return dispatchEvent(new ClipboardEvent("paste", { ...how, clipboardData: data }));
    const place = document.querySelector("#drop, #stage");
    const drag = { ...how, dataTransfer: data };
    for (const one of ["dragenter", "dragover"]) place.dispatchEvent(new DragEvent(one, drag));
    const marked = document.body.classList.contains("dragging");
    const free = place.dispatchEvent(new DragEvent("drop", drag));
    return marked && !free;  // the browser itself does not open the file
}"""


def test_drop_and_paste(browser: Any, address: str) -> None:
    visit = Visit(browser, address)
    page = visit.page
    page.wait_for_selector("#example-list button")
    page.select_option("#model", "colors")
    assert page.evaluate(GIVE, ["drop", "dropped.png", list(as_file(PICTURE)), ""])
    visit.expect_text("#what", "dropped")
    visit.expect_text("#list-title", "3 segments")
    assert page.locator("body.dragging").count() == 0
    small = as_file(PICTURE[:47, :59])
    page.evaluate(GIVE, ["paste", "", list(small), ""])  # over a picture that is there
    visit.expect_text("#what", "pasted")
    visit.expect_text("#facts", "59 \u00d7 47")
    page.evaluate(GIVE, ["paste", "", None, "https://example.com/a.png"])  # words are no picture
    assert page.is_hidden("#error")
    page.evaluate(GIVE, ["drop", "", None, "https://example.com/a.png"])
    visit.expect_text("#error-text", "That was no file. Save the image and drop the file here.")
    page.evaluate(GIVE, ["drop", "broken.png", list(as_file(PICTURE)[:150]), ""])
    playwright.expect(page.locator("#error-text")).to_contain_text("damaged or cut off")
    page.wait_for_selector("#busy", state="hidden")
    visit.expect_text("#what", "pasted")  # what was there stays
    assert visit.uploads() == 3
    page.close()


def test_boxes_of_a_detector(browser: Any, address: str) -> None:
    result = box_segmenter().predict(PICTURE, "detection")
    assert [box.category for box in result.segments] == ["red", "green", "ground"]
    visit = Visit(browser, address)
    page = visit.page
    visit.upload("boxes")
    visit.expect_text("#list-title", f"{len(result)} boxes")
    assert page.locator("#list .row").count() == len(result)
    assert page.is_checked("#tasks input[value=detection]")
    for task in ("panoptic", "instance", "semantic"):
        assert page.locator(f"#tasks input[value={task}]").count() == 0
    visit.expect_text(
        "#tasks-off", "Panoptic, instance and semantic are off: this model finds boxes, not masks."
    )
    assert page.is_visible("#tasks-off")
    page.locator("#inside").scroll_into_view_if_needed()
    assert page.text_content("#inside-reason") == (
        "This model finds boxes: its queries have no masks that could restrict their attention."
    )
    assert page.is_hidden("#inside-body")
    assert page.is_hidden("#inside-lead")

    least = result[0]  # hover: the smallest of those that lie there
    visit.point_at(*middle(RED))
    assert page.text_content("#tip-name") == "red"
    assert page.get_attribute("#list .lit", "data-id") == str(least.id)
    assert f"{least.score * 100:.1f} %" in page.text_content("#tip-facts")
    page.mouse.down()
    page.mouse.up()
    assert page.get_attribute("#list .row[aria-pressed=true]", "data-id") == str(least.id)
    _the_box_is_drawn(visit, least.bbox)
    page.keyboard.press("Escape")
    assert page.locator("#list .row[aria-pressed=true]").count() == 0

    page.fill("#score", "0.8")
    kept = sum(box.score >= 0.8 for box in result)
    visit.expect_text("#list-title", f"{kept} boxes")
    assert kept == 2
    assert page.is_hidden("#overlap-field")
    page.select_option("#format", "coco")
    name, content = visit.saved("#save-format")
    assert name == "two boxes.coco.json"
    annotations = json.loads(content)["annotations"]
    assert [one["bbox"] for one in annotations] == [[*box.bbox] for box in result.segments[:kept]]
    name, content = visit.saved("#save-overlay")
    with Image.open(io.BytesIO(content)) as image:
        assert image.width % PICTURE.shape[1] == image.height % PICTURE.shape[0] == 0
    page.select_option("#model", "colors")
    playwright.expect(page.locator("#tasks-off")).to_be_hidden()
    visit.expect_text("#list-title", "2 boxes")  # around its instances
    assert visit.complaints == []
    page.close()


def test_models_side_by_side(browser: Any, address: str) -> None:
    visit = Visit(browser, address)
    page = visit.page
    visit.upload("colors")
    visit.expect_text("#beside-lead", "The same image with real, colors and boxes.")
    assert page.get_attribute("#report", "href").startswith("report/")
    page.click("#compare")
    cell = "#beside-list li:nth-child({})"
    visit.expect_text(f"{cell.format(2)} .told", "colors3 segments \u00b7 panoptic")
    visit.expect_text(f"{cell.format(3)} .told", "boxes3 boxes \u00b7 detection")
    playwright.expect(page.locator("#beside-list canvas")).to_have_count(3)
    assert page.text_content(f"{cell.format(2)} .summary") == "redgreenground"
    assert page.is_hidden("#compare")
    uploads = visit.uploads()  # the image itself is sent once, and each other model runs once
    assert uploads == 3
    visit.choose_task("instance", "2 segments")
    visit.expect_text(f"{cell.format(2)} .told", "colors2 segments \u00b7 instance")
    page.click(f"{cell.format(3)} button")
    visit.expect_text("#list-title", "3 boxes")
    assert page.locator("#model").input_value() == "boxes"
    assert page.get_attribute(f"{cell.format(3)} button", "aria-pressed") == "true"
    assert page.is_hidden("#report")
    assert visit.uploads() == uploads
    page.click("#again")
    assert page.is_hidden("#beside")
    assert visit.complaints == []
    page.close()


BORDER = """() => {  // of what has changed since the last call: left, top, right, bottom, and how many pixels
    const view = document.getElementById("view"), { width, height } = view;
    const pixels = new Uint32Array(view.getContext("2d").getImageData(0, 0, width, height).data.buffer);
    const last = window.last ?? pixels;
    const changed = [...pixels.keys()].filter((at) => pixels[at] !== last[at]);
    const rows = changed.map((at) => Math.floor(at / width)), columns = changed.map((at) => at % width);
    window.last = pixels;
    const ends = [Math.min(...columns), Math.min(...rows), Math.max(...columns) + 1, Math.max(...rows) + 1];
    return [width, changed.length, ...ends];
}"""


def _the_box_is_drawn(visit: Visit, box: tuple[float, ...]) -> None:
    """What outlines change in the picture is the border of the box, which is the only one shown."""
    visit.page.uncheck("#labels")
    visit.page.evaluate(BORDER)
    visit.page.uncheck("#outlines")
    width, changed, *ends = visit.page.evaluate(BORDER)
    visit.page.check("#outlines")
    left, top, wide, high = (width / PICTURE.shape[1] * part for part in box)
    assert ends == pytest.approx([left, top, left + wide, top + high], abs=3)
    assert 0 < changed < 4 * 2 * (wide + high)


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
    for address in serve(Access(token="secret", names=frozenset()), {"colors": color_segmenter()}):
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


def test_the_page_works_below_a_prefix(browser: Any) -> None:
    models = {"boxes": box_segmenter(), "colors": color_segmenter()}
    serving = serve(Access(token="", names=LOOPBACK_NAMES), models, "/tools/unimask")
    visit = Visit(browser, next(serving))
    visit.upload("colors")
    visit.choose_task("instance", "2 segments")
    visit.page.click("a[href=docs]")
    visit.page.wait_for_selector("h3")
    assert not visit.complaints
    assert all("/tools/unimask" in one for one in visit.asked if "blob:" not in one)
    next(serving, None)
