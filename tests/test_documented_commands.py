"""Every command of the documents is run, here or by the test that its row names, or its row says why not.

`test_documentation.py` parses all of them, and looks their settings up.
"""

import re
import shlex
from pathlib import Path

import pytest
from cli.command_line import picture, save_tiny_model, unimask
from data.dataset_files import coco_instances, save_coco_instances, save_json, save_picture
from inference.test_video import write_video
from test_documentation import DOCUMENTS, ROOT, blocks

HOURS = "trains or measures for minutes to hours"
THEIRS = "needs weights, data or an account of somebody else"
GPU = "needs a GPU"
CLUSTER = "needs a cluster; `campaigns/` has stand-ins"
SETUP = "sets up an environment, as whoever runs the tests has done"
CHECKS = "`.ci/run` does it"

ELSEWHERE = {
    "PROCESSES=2 RESTARTS=5 deploy/torchrun/train.sh": (
        "tests/deploy/test_deploy.py::test_a_training_under_a_launcher"
    ),
    "curl -F ": "tests/serve/test_interface.py::test_json_is_what_predict_says",
    "echo 'Two dogs play in the snow.' |": (
        "tests/inference/test_translator.py::test_lines_come_from_everywhere"
    ),
    "deploy/torchrun/train.sh": "tests/deploy/test_deploy.py::test_a_training_under_a_launcher",
    "export LABEL_STUDIO_TOKEN": (
        "tests/cli/test_serve_command.py::test_the_command_serves_until_it_is_stopped"
    ),
    "python -m campaigns.hostile": "tests/campaigns/test_hostile.py::test_hostile_files_end_in_a_sentence",
    "python -m campaigns.kills": (
        "tests/campaigns/test_kills.py::test_a_training_that_is_killed_anywhere_resumes_to_the_same_bits"
    ),
    "torchrun --nproc-per-node 4 --no-python unimask predict": (
        "tests/cli/test_sharing.py::test_two_processes_give_what_one_gives"
    ),
    "unimask ablate": "tests/cli/test_ablate_command.py::test_the_table_is_shown",
    "unimask bench": "tests/cli/test_bench_command.py::test_the_shipped_model",
    "unimask check --data /shared/coco_shards": "tests/data/test_shards.py::test_the_commands",
    "unimask compare": "tests/training/test_compare.py::test_the_command",
    "unimask convert models/coco_tiny": "tests/parity/test_transformers.py::",
    "unimask evaluate --weights nuclei_int8.onnx": "tests/export/test_export.py::",
    "unimask export": "tests/export/test_export.py::",
    "unimask predict photo.jpg --weights me/shelves": (
        "tests/conversion/test_publish.py::test_a_pushed_model_comes_back_bit_by_bit"
    ),
    "unimask predict photo.jpg --weights nuclei.onnx": "tests/export/test_export.py::",
    "unimask predict photo.jpg --weights runs/boxes/best": "tests/cli/test_detection_commands.py::",
    "unimask predict slide.tif --tile 1024": (
        "tests/cli/test_predict_command.py::test_the_tiles_of_the_readme_keep_those_of_the_model"
    ),
    "unimask predict hf://": "tests/inference/test_object_stores.py::test_the_hub",
    "unimask predict photos/ --weights nuclei --output found --engine ray": (
        "tests/inference/test_engine_ray.py::test_the_command"
    ),
    "unimask predict s3://bucket/photos": "tests/inference/test_object_stores.py::test_s3",
    "unimask push": "tests/conversion/test_publish.py::test_a_pushed_model_comes_back_bit_by_bit",
    "unimask reproduce": "tests/reproduction/test_reproduce.py::test_the_published_zoos_are_listed",
    "sbatch": "tests/deploy/test_deploy.py::test_a_training_under_a_launcher",
    "unimask serve": "tests/cli/test_serve_command.py::test_the_command_serves_until_it_is_stopped",
    "unimask shards": "tests/data/test_shards.py::test_the_commands",
    "unimask train --preset coco_panoptic_resnet50 --data '/shared/coco_shards/train-": (
        "tests/inference/test_object_stores.py::test_shards_in_a_store_are_data"
    ),
    "unimask train --preset coco_panoptic_resnet50 --data 's3://": (
        "tests/inference/test_object_stores.py::test_shards_in_a_store_are_data"
    ),
    "unimask train --preset eomt_large_640 --data coco --output runs/large --devices 8 --strategy fsdp": (
        "tests/deploy/test_deploy.py::test_a_training_under_a_launcher"
    ),
    "unimask train --preset small --data my_data --output runs/first --devices 2": (
        "tests/training/test_processes.py::test_two_processes_equal_one"
    ),
    "unimask train": (
        "tests/cli/test_train_command.py::test_a_labelled_folder_becomes_a_model_that_predicts"
    ),
    "unimask translate": (
        "tests/inference/test_translator.py::test_the_command_writes_lines_and_tells_the_licence"
    ),
}
"""How commands begin -> the test that runs one of their kind, smaller or with other names."""

NOT_RUN = {
    ".venv/bin/pre-commit install": SETUP,
    "NODES=2 HEAD=first-machine:29400 deploy/torchrun/train.sh": CLUSTER,
    ".venv/bin/python -m benchmarks": HOURS,
    ".venv/bin/python -m benchmarks --device cuda": GPU,
    "docker build": "needs Docker",
    "export RAY_AUTH_MODE=token": CLUSTER,
    "make bench": HOURS,
    "make demo": SETUP,
    "make docs": CHECKS,
    "make format": "changes the files of the project",
    "make lint": CHECKS,
    "make test": CHECKS,
    "pip install": SETUP,
    "python -m benchmarks": HOURS,
    "python -m benchmarks.gpu": GPU,
    "ray start": CLUSTER,
    "unimask bench --weights models/coco": THEIRS,
    "unimask convert facebook/": THEIRS,
    "unimask convert model_final.pkl": THEIRS,
    "unimask evaluate --weights nuclei --data nuclei_dsb2018": HOURS,
    "unimask evaluate --weights runs/boxes/best": HOURS,
    "unimask evaluate --weights runs/en-de/best": HOURS,
    "unimask evaluate --weights street --data camvid11": HOURS,
    "unimask predict photo.jpg --weights models/coco_tiny": THEIRS,
    "unimask predict s3://bucket/photos --output s3://bucket/found --engine ray --address": CLUSTER,
    "unimask reproduce detr-coco-detection-r50": THEIRS,
    "unimask reproduce mask2former-coco-panoptic-swin-t --data": THEIRS,
    "unimask train --data my_data --initial facebook/": THEIRS,
}
"""How commands begin -> why nobody runs them."""


def documented() -> dict[str, set[str]]:
    """Command -> the documents that have it: of all blocks of a shell, and of the Makefile."""
    found: dict[str, set[str]] = {}
    for document in DOCUMENTS:
        for block in blocks(document.read_text(encoding="utf-8"), "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                for command in shlex.join(shlex.split(line, comments=True)).split(" '&&' "):
                    plain = command.replace("'|'", "|")
                    if plain and not plain.startswith("cd "):
                        found.setdefault(plain, set()).add(document.name)
    for command in re.findall(r"^\t\$\(RUN\)(unimask predict .*)$", (ROOT / "Makefile").read_text(), re.M):
        found.setdefault(command, set()).add("Makefile")  # what `make demo` runs
    return found


COMMANDS = documented()


def row_of(command: str) -> str:
    """The longest beginning of a row that a command has, or nothing."""
    rows = [row for row in (*ELSEWHERE, *NOT_RUN) if command.startswith(row)]
    return max(rows, key=len, default="")


HERE = sorted(command for command in COMMANDS if not row_of(command))


def test_shells_are_marked_as_shells() -> None:
    """So that none is passed over: not in a block of another kind, nor one that is indented."""
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        found = re.findall(r"^```(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE)
        assert {kind for kind, _ in found} <= {"", "json", "python", "sh", "text", "xml"}, document
        assert len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)) == 2 * len(found), document
        shown = "".join(block for kind, block in found if kind in ("", "text"))
        assert not re.search(r"^(?:\$ *)?(?:unimask|python3?|pip|make|torchrun|ray|docker) ", shown, re.M), (
            document
        )


def test_rows_are_of_commands_and_tests_that_exist() -> None:
    assert not ELSEWHERE.keys() & NOT_RUN.keys()
    used = {row_of(command) for command in COMMANDS}
    assert {*ELSEWHERE, *NOT_RUN} <= used
    for place in ELSEWHERE.values():
        file, _, name = place.partition("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {name or 'test_'}", text, re.MULTILINE), place


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands name: images, a video, labelled data, and a small model in the place of a run's."""
    root = tmp_path_factory.mktemp("documented")
    for place in ("my_pictures", "my_images", "photos", "images"):
        (root / place).mkdir()
        for number in range(2):
            picture(seed=number).save(root / place / f"{number}.png")
    (root / "examples").symlink_to(ROOT / "examples")
    picture().save(root / "photo.jpg")
    write_video(root / "clip.mp4", count=6)
    save_tiny_model(root / "runs" / "first" / "best", task="instance")
    save_coco_instances(root / "my_data" / "instances_train.json", root / "my_data" / "images")
    save_json(root / "my_data" / "instances_val.json", coco_instances(1))
    save_picture(root / "corrected" / "images" / "one.png", 40, 50)
    polygon = {"points": [[10, 10], [60, 10], [60, 70]], "closed": True, "polygonlabels": ["cat"]}
    region = {"type": "polygonlabels", "original_width": 50, "original_height": 40, "value": polygon}
    tasks = [
        {
            "id": 1,
            "data": {"image": "/data/upload/1/0a1b2c3d-one.png"},
            "annotations": [{"result": [region]}],
        },
        {"id": 2, "data": {"image": "/data/upload/1/0a1b2c3d-two.png"}, "annotations": []},
    ]
    save_json(root / "corrected" / "project-1.json", tasks)
    return root


@pytest.mark.parametrize("command", HERE)
def test_a_command_does_what_it_says(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (program, *words) = shlex.split(command)
    assert program == "unimask"
    outcome = unimask(*words)
    print(command, outcome.out, outcome.err, sep="\n")
    assert (outcome.code, "Traceback" in outcome.err) == (0, False)
    if "--output" in words:
        assert any((folder / words[words.index("--output") + 1]).iterdir())
