import asyncio
import gc
from pathlib import Path

import httpx
import pytest
import torch
from fastapi import FastAPI
from serve.served import ANYBODY, as_file, color_segmenter, scene
from shape_checks import no_shape_checks

from unimask.serve.app import create_app
from unimask.serve.limits import Limits

BAD = {
    "no picture": (b"not a picture", {}, 415),
    "cut off": (as_file(scene(0))[:120], {}, 422),
    "no task": (as_file(scene(0)), {"task": "nothing"}, 422),
    "too large": (bytes(400_000), {}, 413),
    "empty": (b"", {}, 400),
}


def app_with(**limits: int) -> FastAPI:
    return create_app({"colors": color_segmenter()}, Limits(bytes=300_000, **limits), ANYBODY, batch_size=8)


def client_of(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://server", timeout=120)


async def ask(client: httpx.AsyncClient, content: bytes, fields: dict[str, str]) -> httpx.Response:
    return await client.post("/v1/segment", files={"image": ("a.png", content)}, data=fields)


@pytest.mark.parametrize("waiting", [256, 50])
def test_two_hundred_at_once_with_bad_ones_among_them(waiting: int) -> None:
    """Nothing is lost and every answer belongs to its question, also where most are told to come back."""
    pictures = [scene(seed, *((61, 83) if seed % 3 else (90, 70))) for seed in range(20)]
    expected = [[one.bbox for one in color_segmenter().predict(one, "instance").segments] for one in pictures]
    contents = [as_file(one) for one in pictures]
    bad = list(BAD.values())

    async def one(client: httpx.AsyncClient, number: int) -> tuple[bool, int]:
        is_bad = number % 5 == 3
        content, fields, status = bad[number // 5 % len(bad)] if is_bad else (b"", {}, 200)
        seed = number % len(pictures)
        refused = 0
        while True:
            if is_bad:
                answer = await ask(client, content, fields)
            else:
                answer = await ask(client, contents[seed], {"task": "instance"})
            if answer.status_code != 503:
                break
            assert int(answer.headers["retry-after"]) >= 1
            refused += 1
            await asyncio.sleep(1)  # impatient: the header says at least that
        right = answer.status_code == status
        if not is_bad:
            boxes = [tuple(segment["bbox"]) for segment in answer.json()["segments"]]
            right = right and boxes == expected[seed]
        return right, refused

    async def all_of_them() -> list[tuple[bool, int]]:
        app = app_with(waiting=waiting)
        async with client_of(app) as client:
            answers = await asyncio.gather(*(one(client, number) for number in range(200)))
        assert app.state.engine.largest_batch > 1
        app.state.engine.close()
        assert app.state.engine.waiting == 0
        return answers

    with no_shape_checks():
        answers = asyncio.run(all_of_them())
    assert len(answers) == 200
    assert all(right for right, _ in answers)
    assert (sum(refused for _, refused in answers) > 0) == (waiting < 200)


def resident() -> int:
    """Memory of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def tensors() -> int:
    """How many are alive."""
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc (Linux)")
def test_memory_stays_flat_over_a_thousand_requests() -> None:
    content = as_file(scene(1))
    kept = 400_000  # bytes of predictions for the page: a few pictures

    async def some(client: httpx.AsyncClient, count: int) -> None:
        for start in range(0, count, 10):
            api = [ask(client, content, {"task": "instance"}) for _ in range(6)]
            page = [client.post("/page/images", files={"image": ("a.png", content)}) for _ in range(3)]
            bad = [ask(client, content[:100], {})]
            answers = await asyncio.gather(*api, *page, *bad)
            assert [one.status_code for one in answers] == [200] * 9 + [422], start

    async def measured() -> tuple[int, int]:
        app = app_with(kept_bytes=kept)
        async with client_of(app) as client:
            await some(client, 200)
            before = resident(), tensors()
            await some(client, 1000)
            after = resident(), tensors()
            app.state.engine.close()
            return after[0] - before[0], after[1] - before[1]

    with no_shape_checks():
        grown, more = asyncio.run(measured())
    assert grown < 12 * 2**20
    assert abs(more) < 50, "tensors are kept; a request has several"
