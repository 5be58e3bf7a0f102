"""The documents are held to the code: names, links, commands, settings, examples."""

import ast
import importlib.util
import json
import re
import shlex
import sys
import tomllib
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import cast

import pytest
import torch
import typer.main
from PIL import Image
from torch import nn

import unimask
from unimask.checkpoints.images import ModelFile, save_model, shipped_models
from unimask.cli import app
from unimask.cli.options.parsing import parse_settings
from unimask.config.images import PostprocessConfig, experiment_to_dict
from unimask.config.models import DetrConfig
from unimask.config.text import translation_to_dict
from unimask.data.formats.folders_scheme import read_scheme
from unimask.data.formats.shapes import CATEGORIES, shapes_dataset
from unimask.inference.segmenter import Segmenter
from unimask.inference.translator import Translator
from unimask.models.build import build_model
from unimask.presets import PRESETS, TRANSLATION_PRESETS
from unimask.results.result import Result
from unimask.structures import Segments

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "unimask"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "examples" / "README.md"])
OF_THE_SHIPPED_MODEL = ROOT / "docs" / "pictures" / "nuclei.png"

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def prose(text: str) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def inline_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(text))


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


# names


def names_in(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """What a module or a class defines: functions, classes, constants, fields."""
    found: dict[str, ast.stmt] = {}
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            found[statement.name] = statement
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found[statement.target.id] = statement
        elif isinstance(statement, ast.Assign):
            found |= {target.id: statement for target in statement.targets if isinstance(target, ast.Name)}
    return found


def is_defined(path: Path, dotted: str) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for name in dotted.split("."):
        found = names_in(body).get(name)
        if found is None:
            return False
        body = found.body if isinstance(found, ast.ClassDef) else []
    return True


def references(document: Path) -> list[tuple[str, str]]:
    """The `file.py:name` in a document, and the files alone with an empty name."""
    text = document.read_text(encoding="utf-8")
    return [
        (match["file"], match["name"] or "")
        for code in inline_code(text)
        if (match := re.fullmatch(r"(?P<file>[\w/]+\.py)(:(?P<name>[\w.]+))?", code))
    ]


@each_document
def test_files_and_names_exist(document: Path) -> None:
    wrong = []
    for file, name in references(document):
        path = next(
            (root / file for root in (SOURCE, ROOT, document.parent) if (root / file).is_file()), None
        )
        if path is None or (name and not is_defined(path, name)):
            wrong.append(f"{file}:{name}")
    assert wrong == []


def test_the_papers_are_mapped() -> None:
    found = {name for _, name in references(ROOT / "docs" / "papers.md")}
    assert len(found) > 60
    assert {"foreground", "DeformableAttention", "RandomPoints", "PanopticQuality", "assign"} <= found


def test_every_module_stands_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    stems = {path.stem for path in SOURCE.rglob("*.py")} - {"__init__"}
    assert sorted(stem for stem in stems if not re.search(rf"\b{stem}\b", text)) == []


def test_no_two_public_classes_share_a_name() -> None:
    bodies = [ast.parse(path.read_text(encoding="utf-8")).body for path in SOURCE.rglob("*.py")]
    names = Counter(one.name for body in bodies for one in body if isinstance(one, ast.ClassDef))
    assert {name for name, count in names.items() if count > 1 and not name.startswith("_")} == set()


# links


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document.read_text(encoding="utf-8"))):
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        if path == OF_THE_SHIPPED_MODEL and "nuclei" not in shipped_models():
            continue  # the picture is made by the model, which has to be trained first
        headings = re.findall(r"^#+ (.+)$", prose(path.read_text("utf-8")), re.MULTILINE) if anchor else []
        if not path.exists() or (anchor and anchor not in map(slug, headings)):
            wrong.append(target)
    assert wrong == []


# commands

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def commands_in(text: str) -> list[list[str]]:
    """The `unimask ...` lines of all shell blocks, as words."""
    lines = [line for block in blocks(text, "sh") for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line and line[0].rpartition("/")[2] == "unimask"]


@each_document
def test_commands_are_understood(document: Path) -> None:
    for name, *arguments in commands_in(document.read_text(encoding="utf-8")):
        context = COMMANDS[name].make_context(name, list(arguments))  # parses, and runs nothing
        if name == "train":
            settings = parse_settings(context.params["settings"] or [])
            preset = context.params["preset"] or "small"  # which is chosen for most
            unimask.override(unimask.presets.named(preset), settings)


@each_document
def test_commands_in_sentences_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for code in inline_code(text):
        words = code.split()
        if words[0] == "unimask" and len(words) > 1:
            options = {option for parameter in COMMANDS[words[1]].params for option in parameter.opts}
            assert {word for word in words[2:] if word.startswith("--")} <= options | {"--help"}, code
        elif words[0].startswith("--"):
            every = {o for command in COMMANDS.values() for p in command.params for o in p.opts}
            assert words[0] in every, code
        elif words[0] == "make":
            targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
            assert set(words[1:]) <= set(targets), code


def test_the_readme_shows_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = {name for name, *_ in commands_in(text)} | set(re.findall(r"`unimask (\w+)", text))
    assert shown == set(COMMANDS)


# settings


def every_path(values: object, path: str = "") -> set[str]:
    if not isinstance(values, dict):
        return set()
    paths = {f"{path}{key}" for key in values}
    return paths.union(*(every_path(value, f"{path}{key}.") for key, value in values.items()))


@each_document
def test_settings_exist(document: Path) -> None:
    known = every_path(experiment_to_dict(PRESETS["small"]()))
    known |= every_path(experiment_to_dict(PRESETS["detr_small"]()))
    known |= every_path(translation_to_dict(TRANSLATION_PRESETS["glyphs"]()))
    parts = "|".join(path for path in known if "." not in path)
    wrong = []
    for code in inline_code(document.read_text(encoding="utf-8")):
        path = code.removeprefix("--set ").partition("=")[0]
        if re.fullmatch(rf"({parts})(\.[a-z_]+)+", path) and path not in known | {
            "model.safetensors",
            "data.yaml",
        }:
            wrong.append(path)
    assert wrong == []


def test_default_thresholds_are_stated() -> None:
    text = (ROOT / "docs" / "image-to-segments.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `postprocess\.(\w+)` \| ([\d.]+) \|", text, re.MULTILINE))
    defaults = experiment_to_dict(PRESETS["small"]())["postprocess"]
    assert isinstance(defaults, dict)
    assert {name: float(value) for name, value in stated.items()} == {
        name: value for name, value in defaults.items() if name not in ("fill", "resize_classes")
    }
    assert f"| `postprocess.fill` | {defaults['fill']} |" in text
    assert f"| `postprocess.resize_classes` | {json.dumps(defaults['resize_classes'])} |" in text
    assert PRESETS["small"]().postprocess == PostprocessConfig()


def test_the_readme_lists_every_preset() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+) \|(.+)\|$", text, re.MULTILINE)
    listed = set()
    for names, what in rows:
        for name in re.findall(r"`([\w*-]+)`", names):
            ends = re.findall(r"`(\w+)`", what) if name.endswith("*") else [""]
            listed |= {name.removesuffix("*") + end for end in ends}
    assert listed == {*PRESETS, *TRANSLATION_PRESETS}


# examples


@each_document
def test_python_examples_use_what_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    code = "\n".join([*blocks(text, "python"), *inline_code(text)])
    for block in blocks(text, "python"):
        ast.parse(block)
    fields = {*dir(Result), *Result.__dataclass_fields__}
    assert set(re.findall(r"(?<!/)\b(?:result|Result)\.(\w+)", code)) <= fields
    assert set(re.findall(r"\bsegmenter\.(\w+)\(", code)) <= set(dir(Segmenter))
    assert set(re.findall(r"\btranslator\.(\w+)\(", code)) <= set(dir(Translator))
    assert set(re.findall(r"\bunimask\.(\w+)\(", code)) <= set(unimask.__all__)


def json_examples() -> list[dict[str, object]]:
    pages = (ROOT / "docs" / "guide" / name for name in ("own-data.md", "predict.md"))
    return [json.loads(block) for page in pages for block in blocks(page.read_text("utf-8"), "json")]


def test_the_example_of_classes_is_read(tmp_path: Path) -> None:
    example = next(example for example in json_examples() if "classes" in example)
    (tmp_path / "classes.json").write_text(json.dumps(example), encoding="utf-8")
    scheme = read_scheme(tmp_path, [])
    assert scheme.kind == "semantic"
    assert scheme.categories.names == ("road", "car")
    assert scheme.categories.colors[0] == (128, 64, 128)
    assert scheme.ignored == (255,)


def test_the_example_of_a_result_has_the_keys_of_one() -> None:
    example = next(example for example in json_examples() if "segments" in example)
    layers = torch.zeros((1, 5, 7), dtype=torch.int16)
    layers[0, 1:3, 2:5] = 1
    result = Result(
        task="instance",
        name="picture",
        image=torch.zeros((3, 5, 7), dtype=torch.uint8),
        prediction=Segments(
            layers=layers,
            labels=torch.tensor([0]),
            scores=torch.tensor([0.75]),
            is_crowd=torch.tensor([False]),
        ),
        categories=CATEGORIES,
    )
    made = result.to_json()
    assert list(example) == list(made)
    for key in ("categories", "segments"):
        theirs, ours = example[key], made[key]
        assert isinstance(theirs, list)
        assert isinstance(ours, list)
        assert list(theirs[0]) == list(ours[0])


# the version


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "src/unimask/__init__.py"
    assert f"\nversion: {unimask.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"## {unimask.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


# three models, one decoder


def test_the_table_of_the_models_says_what_their_presets_say() -> None:
    text = (ROOT / "docs" / "three-models.md").read_text(encoding="utf-8")
    rows = {
        row[0]: row[1:] for row in re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", text, re.M)
    }
    for column, name in enumerate(name.strip("`") for name in rows["preset"]):
        said = {key: values[column] for key, values in rows.items()}
        config = PRESETS[name]().model
        decoder = build_model(config, 3).query_decoder
        layers = cast(nn.ModuleList, decoder.layers)
        assert said["layers"] == str(len(layers))
        assert said["order of sublayers"] == ", ".join(child for child, _ in layers[0].named_children())
        assert re.findall(r"\d+", said["memory of the layers (strides)"]) == [
            str(stride) for stride in dict.fromkeys(decoder.strides)
        ]
        learned = isinstance(decoder.query_features, nn.Embedding)
        assert said["query features"] == ("learned" if learned else "zeros")
        assert said["predictions"] == str(len(layers) + 1 - decoder.first_prediction)
        settings = config if isinstance(config, DetrConfig) else config.query_decoder
        assert said["dropout"] == f"{settings.dropout:g}"
        visibility = "full" if isinstance(config, DetrConfig) else config.query_decoder.visibility
        assert said["visibility"] == visibility


def test_the_figures_of_a_model_are_drawn_from_it(tmp_path: Path) -> None:
    figures = load_script("make_figures")
    torch.manual_seed(7)
    model = build_model(PRESETS["tiny"]().model, 3)
    found = figures.walk(model, torch.rand((1, 3, 256, 256)), 0.0)
    assert [layer.stride for layer in found.layers] == list(model.query_decoder.strides)
    assert found.outputs[0][0] == len(found.layers) + 1
    figures.draw_model("tiny", found, tmp_path / "tiny.svg")
    drawn = (tmp_path / "tiny.svg").read_text(encoding="utf-8")
    assert drawn.count(">layer ") == len(found.layers)
    assert "MaskHeads" in drawn
    assert drawn.count("data:image/png") == len(found.layers)


# pictures


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules[name] = script  # dataclasses look their module up
    spec.loader.exec_module(script)
    return script


def test_pictures_are_made_by_a_model(tmp_path: Path) -> None:
    experiment = PRESETS["tiny"]()
    torch.manual_seed(7)
    model = build_model(experiment.model, len(CATEGORIES)).eval()
    about = ModelFile(
        experiment=experiment, task="panoptic", categories=CATEGORIES, licence="none", provenance="random"
    )
    save_model(tmp_path / "model", model, about)
    for index, sample in enumerate(shapes_dataset(size=(37, 53), count=2, seed=3)[i] for i in range(2)):
        Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(tmp_path / f"{index}.png")
    given = ["--weights", str(tmp_path / "model"), "--task", "semantic", "--height", "74"]
    target = tmp_path / "new" / "sheet.png"
    made = load_script("make_pictures").main([*given, "--images", str(tmp_path), "--output", str(target)])
    assert made == target
    with Image.open(target) as sheet:
        assert sheet.size == (106 + 8 + 106, 74 + 8 + 74)


def test_without_a_model_there_is_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (5, 3)).save(tmp_path / "a.png")
    given = ["--weights", "no such model", "--images", str(tmp_path), "--output", str(tmp_path / "b.png")]
    with pytest.raises(SystemExit) as stopped:
        load_script("make_pictures").main(given)
    assert stopped.value.code == 2
    assert "no such model" in capsys.readouterr().err
    assert not (tmp_path / "b.png").exists()


def test_every_kind_of_trouble_names_a_test() -> None:
    page = (ROOT / "docs" / "robustness.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| kind")]
    assert len(rows) > 50
    for line in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", line.rpartition(" | ")[2])
        assert named, line
        for file, test in named:
            assert (ROOT / file).is_file(), line
            assert not test or f"def {test}(" in (ROOT / file).read_text("utf-8"), line
