"""The report of the run that a model comes from."""

from pathlib import Path

import pytest
from cli.command_line import save_tiny_model
from fastapi.testclient import TestClient
from serve.served import color_segmenter

from unimask.serve.app import create_app
from unimask.serve.limits import Limits
from unimask.serve.middleware import Access
from unimask.serve.run import reports_of


def test_a_report_is_found_through_its_model_only(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    models = {"first": color_segmenter(), "second": color_segmenter()}
    access = Access(token="secret", names=frozenset())
    app = create_app(models, Limits(), access, batch_size=1, reports={"second": path})
    with TestClient(app) as client:

        def told() -> list[str]:
            answer = client.get("/v1/models", headers={"Authorization": "Bearer secret"}).json()
            return [one["report"] for one in answer["models"]]

        assert told() == ["", ""]  # the run has not written one yet
        path.write_text("<h1>Run</h1>", encoding="utf-8")
        none, address = told()
        assert (none, address[:7]) == ("", "report/")
        answer = client.get(address)
        assert (answer.status_code, answer.text) == (200, "<h1>Run</h1>")
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "sandbox allow-scripts" in policy
        assert client.get("/report/second").status_code == 404
        path.unlink()
        assert client.get(address).json()["error"].startswith("There is no report here")


@pytest.mark.parametrize("named", ["run", "run/best"])
def test_a_report_lies_beside_the_models_of_a_run(named: str, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "run" / "best")
    found = reports_of({"one": str(tmp_path / named), "nuclei": "nuclei"})
    assert found == {"one": tmp_path / "run" / "report.html"}
