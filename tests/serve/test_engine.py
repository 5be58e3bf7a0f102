import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from serve.served import ColorNetwork, as_file, color_segmenter, model_file, scene, served
from torch import Tensor

from unimask.config.data import Tiles
from unimask.inference.segmenter import Segmenter
from unimask.serve.cached import CachedPrediction, Thresholds, result_of
from unimask.serve.engine import Engine, fastest_batch_size
from unimask.serve.limits import Limits, Refusal
from unimask.serve.store import Kept, Store
from unimask.structures import MaskPrediction


class Turnstile(ColorNetwork):
    """Waits in every pass until it is told to go on; stumbles over a picture that is all white."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def forward(self, pixels: Tensor, valid: Tensor) -> MaskPrediction:
        assert self.go.wait(20)
        white = (pixels.amin(dim=1) > 1.5).float().mean(dim=(1, 2))  # normalised; padding is 0
        if bool((white > 0.5).any()):
            raise RuntimeError("stumbled")
        return super().forward(pixels, valid)


def image(seed: int, height: int = 61, width: int = 83) -> Tensor:
    return torch.from_numpy(scene(seed, height, width)).permute(2, 0, 1).contiguous()


def itself(seen: CachedPrediction) -> CachedPrediction:
    return seen


def engine_with(network: ColorNetwork, batch_size: int, **limits: float) -> Engine:
    return Engine({"one": Segmenter(network, model_file())}, Limits(**limits), batch_size)  # type: ignore[arg-type]


def submit(engine: Engine, picture: Tensor) -> "Future[CachedPrediction]":
    return engine.submit("one", "name", picture, itself)


def wait_until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_requests_of_one_size_share_a_batch_and_get_their_own_answers() -> None:
    network = Turnstile()
    engine = engine_with(network, 4)
    first = submit(engine, image(0))
    wait_until(lambda: engine._running == 1)
    futures = [submit(engine, image(seed, *size)) for seed, size in enumerate([(61, 83), (90, 57)] * 5)]
    network.go.set()
    first.result(20)
    segmenter = color_segmenter()
    for seed, (future, size) in enumerate(zip(futures, [(61, 83), (90, 57)] * 5)):
        seen = future.result(20)
        assert torch.equal(seen.image, image(seed, *size))
        alone = next(segmenter.find([image(seed, *size)], "panoptic"))
        result = result_of(segmenter, seen, "panoptic", Thresholds(score=0.5, overlap=0.1))
        assert torch.equal(result.prediction.layers, alone.layers)
    assert network.passes == [1, 4, 4, 1, 1]
    assert engine.largest_batch == 4
    engine.close()


def test_a_picture_that_fails_takes_no_other_with_it() -> None:
    network = Turnstile()
    engine = engine_with(network, 8)
    first = submit(engine, image(0))
    wait_until(lambda: engine._running == 1)
    good = [submit(engine, image(seed)) for seed in range(3)]
    bad = submit(engine, torch.full((3, 61, 83), 255, dtype=torch.uint8))
    network.go.set()
    first.result(20)
    assert all(torch.equal(one.result(20).image, image(seed)) for seed, one in enumerate(good))
    with pytest.raises(RuntimeError, match="stumbled"):
        bad.result(20)
    assert torch.equal(submit(engine, image(9)).result(20).image, image(9))
    engine.close()


def test_a_full_line_refuses_and_says_when_to_come_back() -> None:
    network = Turnstile()
    engine = engine_with(network, 1, waiting=3)
    futures = [submit(engine, image(seed)) for seed in range(3)]
    with pytest.raises(Refusal, match="too many requests") as refused:
        submit(engine, image(3))
    assert refused.value.status == 503
    assert int(refused.value.headers["Retry-After"]) >= 1
    network.go.set()
    assert all(future.result(20) for future in futures)
    engine.close()
    with pytest.raises(Refusal, match="shutting down"):
        submit(engine, image(4))


def test_time_runs_out_in_the_line_and_in_work() -> None:
    network = Turnstile()
    engine = engine_with(network, 1, seconds=0.05)
    futures = [submit(engine, image(seed)) for seed in range(2)]
    time.sleep(0.1)
    network.go.set()
    for future in futures:
        with pytest.raises(Refusal, match=r"longer than 0\.05 seconds"):
            future.result(20)
    engine.close()


def test_a_request_that_nobody_waits_for_is_left_out() -> None:
    network = Turnstile()
    engine = engine_with(network, 1)
    first, second, third = (submit(engine, image(seed)) for seed in range(3))
    assert second.cancel()
    network.go.set()
    assert first.result(20)
    assert third.result(20)
    assert len(network.passes) == 2
    engine.close()


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 0.1, 2: 0.12, 4: 0.2, 8: 0.42}, 4),
        ({1: 0.1, 2: 0.195, 4: 0.4, 8: 0.8}, 1),  # five percent are not worth the wait
        ({1: 0.9, 2: 1.2}, 2),  # larger ones take too long to try
        ({1: 0.3, 2: 0.4}, 2),  # and here there is no memory for them
    ],
    ids=str,
)
def test_batches_are_as_large_as_is_fastest(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], best: int
) -> None:
    def timed(segmenter: Segmenter, picture: Tensor, size: int) -> float:
        if size not in seconds:
            raise RuntimeError("out of memory")
        return seconds[size]

    monkeypatch.setattr("unimask.serve.engine._seconds", timed)
    assert fastest_batch_size(color_segmenter(Tiles(size=32, overlap=8))) == best


def test_the_batch_size_is_measured_at_the_start() -> None:
    with served(color_segmenter(Tiles(size=32, overlap=8)), batch_size=0) as client:
        assert client.post("/v1/segment", files={"image": ("a.png", as_file(scene(0)))}).status_code == 200
        assert client.get("/v1/models").json()["models"][0]["batch_size"] in (1, 2, 4, 8)


def test_the_store_is_bounded_and_forgets_the_longest_unused() -> None:
    with served() as client:
        seen = client.app.state.engine.submit("first", "a", image(0), itself).result(20)  # type: ignore[attr-defined]
    store = Store(int(3.5 * seen.bytes))
    kept = Kept(model="first", seen=seen)
    names = [store.put(kept) for _ in range(3)]
    assert store.get(names[0]) is kept
    fourth = store.put(kept)
    assert len(store) == 3
    assert store.bytes == 3 * seen.bytes
    with pytest.raises(Refusal, match="no longer here"):
        store.get(names[1])
    assert store.get(names[0]) is store.get(fourth)
    small = Store(1)
    assert small.get(small.put(kept)) is kept


def test_what_is_kept_holds_no_batch() -> None:
    network = Turnstile()
    engine = engine_with(network, 8)
    futures = [submit(engine, image(seed)) for seed in range(4)]
    network.go.set()
    for future in futures:
        (view,) = future.result(20).tiles
        assert isinstance(view.prediction, MaskPrediction)
        features = view.prediction.mask_features
        assert features.untyped_storage().nbytes() == features.numel() * features.element_size()
    engine.close()


def test_a_server_says_503_and_recovers() -> None:
    network = Turnstile()
    with served(Segmenter(network, model_file()), limits=Limits(waiting=2), batch_size=1) as client:
        answers: list[int] = []

        def ask() -> None:
            answer = client.post("/v1/segment", files={"image": ("a.png", as_file(scene(0)))})
            answers.append(answer.status_code)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: client.app.state.engine.waiting == 2)  # type: ignore[attr-defined]
        refused = client.post("/v1/segment", files={"image": ("a.png", as_file(scene(0)))})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        network.go.set()
        for thread in threads:
            thread.join(20)
        assert answers == [200, 200]
        broken = np.full((61, 83, 3), 255, dtype=np.uint8)
        answer = client.post("/v1/segment", files={"image": ("a.png", as_file(broken))})
        assert answer.status_code == 500
        assert "Something went wrong inside" in answer.json()["error"]
        assert "stumbled" not in answer.text
        ask()
        assert answers[-1] == 200
