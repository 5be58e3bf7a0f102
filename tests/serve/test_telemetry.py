import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serve.served import as_file, scene, served

from unimask.serve.middleware import Access
from unimask.serve.telemetry import Telemetry


def numbers(text: str) -> dict[tuple[str, ...], float]:
    """Sample name and label values -> value."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_and_stages_are_counted() -> None:
    with served() as client:
        for _ in range(3):
            assert client.post("/v1/segment", files={"image": ("a.png", as_file(scene(1)))}).is_success
        assert client.post("/v1/segment", files={"image": ("a.png", b"no image")}).status_code == 415
        for path in ("/nowhere", "/elsewhere", "/page/nothing"):
            client.get(path)
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found = numbers(answer.text)
    assert found["unimask_requests_total", "/v1/segment", "200"] == 3
    assert found["unimask_requests_total", "/v1/segment", "415"] == 1
    assert found["unimask_requests_total", "other", "404"] == 2  # no row for each address that does not exist
    assert found["unimask_requests_total", "/page/", "404"] == 1
    assert found["unimask_waiting",] == 0
    for stage in ("waiting", "model", "answer"):
        assert found["unimask_stage_seconds_count", stage] == 3
        assert 0 < found["unimask_stage_seconds_sum", stage] < 60


def test_numbers_are_behind_the_token() -> None:
    with served(access=Access(token="secret", names=frozenset())) as client:
        assert client.get("/metrics").status_code == 401
        found = client.get("/metrics", headers={"Authorization": "Bearer secret"})
    assert "unimask_waiting 0.0" in found.text


def test_two_servers_count_apart() -> None:
    with served() as one, served() as other:
        one.get("/healthz")
        found = numbers(other.get("/metrics").text)
    assert ("unimask_requests_total", "/healthz", "200") not in found


def some_numbers() -> str:
    telemetry = Telemetry()
    telemetry.watch(lambda: 2)
    telemetry.answered("/v1/segment", 200)
    telemetry.spent("model", 0.25)
    return bytes(telemetry.response().body).decode()


def test_names_and_help_follow_the_conventions() -> None:
    """Of Prometheus' guide to naming: a prefix, base units, `_total` on counters; and a sentence of help."""
    families = list(text_string_to_metric_families(some_numbers()))
    assert {family.type for family in families} == {"counter", "gauge", "histogram"}
    for family in families:
        assert family.name.startswith("unimask_")
        assert re.match(r"[A-Z].*\.$", family.documentation)
        assert not re.search("milli|micro|minutes|percent", family.name)
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")


def test_promtool_has_nothing_to_say() -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed")
    found = subprocess.run(
        [program, "check", "metrics"], input=some_numbers(), capture_output=True, text=True
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
    config = Path(__file__).parents[2] / "deploy" / "prometheus.yml"
    assert subprocess.run([program, "check", "config", config], capture_output=True).returncode == 0
