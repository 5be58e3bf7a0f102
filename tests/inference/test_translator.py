"""Models that write tokens, from training to the command line, at tiny size."""

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from unimask.checkpoints.images import load_model
from unimask.checkpoints.text import (
    SequenceModelFile,
    is_sequence_model,
    load_sequence_model,
    save_sequence_model,
)
from unimask.cli import translation
from unimask.cli.translation import gather_lines
from unimask.config.overrides import override
from unimask.config.text import (
    DecodingConfig,
    TranslationExperiment,
    translation_from_dict,
    translation_to_dict,
)
from unimask.data.text.casing import AS_WRITTEN
from unimask.data.text.pairs import Pairs
from unimask.data.text.vocabulary import SPECIAL, learn_vocabulary
from unimask.data.text.words import join_words, split_words
from unimask.errors import ConfigError, DataError, WeightsError
from unimask.inference.text_evaluation import evaluate_lines
from unimask.inference.translator import Translator, load_translator
from unimask.models.build_text import build_sequence_model
from unimask.models.seq2seq import Seq2Seq
from unimask.presets import TRANSLATION_PRESETS
from unimask.training import run as training
from unimask.training import text_data as sequences
from unimask.training.progress import SilentReporter

pytest.importorskip("sacrebleu")

SMALL: dict[str, object] = {
    "model.channels": 12,
    "model.heads": 2,
    "model.feedforward_channels": 13,
    "model.encoder_layers": 1,
    "model.decoder_layers": 1,
    "data.vocabulary": 60,
    "training.steps": 6,
    "training.batch_size": 60,
    "training.checkpoint_every": 2,
    "training.evaluate_every": 0,
    "training.warmup_steps": 2,
    "training.log_every": 1,
}
SOURCES = ("A dog runs.", "Two dogs run.", "A man sits.", "Two men sit down.", "A man has a dog.")
TARGETS = (
    "Ein Hund läuft.",
    "Zwei Hunde laufen.",
    "Ein Mann sitzt.",
    "Zwei Männer sitzen.",
    "Ein Mann hat ihn.",
)


def small(**changes: object) -> TranslationExperiment:
    preset = TRANSLATION_PRESETS["transformer-tiny-multi30k"]()
    return override(preset, SMALL | {k.replace("__", "."): v for k, v in changes.items()})


def small_translator(**changes: object) -> Translator:
    return Translator(*small_model(**changes))


def small_model(**changes: object) -> tuple[Seq2Seq, SequenceModelFile]:
    experiment = small(**changes)
    words = learn_vocabulary([*SOURCES, *TARGETS], 60, lowercase=True)
    torch.manual_seed(2)
    model = build_sequence_model(experiment.model, len(words))
    about = SequenceModelFile(
        experiment=experiment,
        vocabulary=words,
        casing=AS_WRITTEN,
        special=SPECIAL,
        licence="research only",
        provenance="random",
    )
    return model, about


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "val"):
        (data / f"{split}.en").write_text("\n".join(SOURCES) + "\n", encoding="utf-8")
        (data / f"{split}.de").write_text("\n".join(TARGETS) + "\n", encoding="utf-8")
    return data


def train(folder: Path, output: Path, resume: bool = False, **changes: object) -> Any:
    return training.train(
        small(**changes), folder, output, resume=resume, device="cpu", reporter=SilentReporter()
    )


def test_a_resumed_training_is_the_unbroken_one(folder: Path, tmp_path: Path) -> None:
    train(folder, tmp_path / "a", training__steps=4)
    known = (tmp_path / "a" / "tokenizer.json").read_text()
    train(folder, tmp_path / "a", resume=True)
    (tmp_path / "b").mkdir()
    whole = train(folder, tmp_path / "b")  # another vocabulary, perhaps: pairs of equal frequency
    assert whole.completed
    assert (tmp_path / "a" / "tokenizer.json").read_text() == known
    again = tmp_path / "c"
    result = train(folder, again, training__steps=1, training__checkpoint_every=1)
    (again / "tokenizer.json").write_text(known, encoding="utf-8")
    assert result.steps == 1
    for name in ("checkpoints", "model", "best"):  # as before its first checkpoint
        shutil.rmtree(again / name, ignore_errors=True)
    (again / "results.json").unlink()
    train(folder, again, resume=True)
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("a", "c"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_small_set_is_learned_by_heart_and_measured(folder: Path, tmp_path: Path) -> None:
    changes: dict[str, object] = {
        "model__channels": 32,
        "model__dropout": 0.0,
        "training__steps": 150,
        "training__warmup_steps": 20,
        "training__evaluate_every": 150,
        "training__ema_decay": 0.0,
        "training__log_every": 50,
    }
    result = train(folder, tmp_path / "run", **changes)
    assert result.best["BLEU"] > 90
    translator = load_translator(tmp_path / "run" / "best")
    assert translator.translate("Two dogs run.") == "Zwei Hunde laufen."
    pairs = Pairs(sources=SOURCES, targets=TARGETS, words=tuple(t.lower()[:-1] + " ." for t in TARGETS))
    found = evaluate_lines(translator, pairs, DecodingConfig(beams=3))
    assert found.exact == 1
    assert found.words.score == pytest.approx(100)
    assert found.text.score == pytest.approx(100)  # with the capitals of the training text
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all("tokens_per_second" in line for line in log if line["kind"] == "step")


def test_glyphs_are_learned_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "GLYPH_COUNTS", (40, 3))
    experiment = override(
        TRANSLATION_PRESETS["glyphs"](),
        {
            "training.steps": 30,
            "training.warmup_steps": 5,
            "training.batch_size": 700,
            "training.log_every": 5,
            "training.evaluate_every": 30,
            "model.channels": 16,
            "model.heads": 2,
        },
    )
    run = tmp_path / "run"
    result = training.train(experiment, "glyphs", run, device="cpu", reporter=SilentReporter())
    assert set(result.final) == {"BLEU", "exact"}
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["cross_entropy"] for line in log if line["kind"] == "step"]
    assert losses[-1] < 0.9 * losses[0]
    with pytest.raises(ConfigError, match=r"model\.source"):
        training.train(small(), "glyphs", tmp_path / "x", device="cpu", reporter=SilentReporter())


def test_line_n_gives_line_n() -> None:
    translator = small_translator()
    lines = ["A dog runs.", "", "   \t", "\u6f22\u5b57", "A dog runs.", "x" * 3000, "a\u2028b\x0cc", "\x00"]
    found = translator.translate_all(lines)
    assert len(found.lines) == len(found.words) == len(lines)
    assert found.lines[1] == found.lines[2] == ""
    assert found.lines[0] == found.lines[4] == translator.translate("A dog runs.")
    assert not any("\n" in line or "\r" in line or "\u2028" in line for line in found.lines)
    assert any(note.line == 4 and "does not know \u6f22 \u5b57" in note.text for note in found.notes)


def test_long_lines_are_taken_in_pieces() -> None:
    translator = small_translator(data__longest=12, decoding__limit_extra=3, decoding__limit_factor=0.0)
    line = " ".join(["A dog runs."] * 40)
    found = translator.translate_all([line])
    (note,) = found.notes
    assert "in " in note.text
    assert "pieces" in note.text
    assert len(found.lines) == 1


def test_a_model_of_small_letters_writes_capitals(folder: Path, tmp_path: Path) -> None:
    train(folder, tmp_path / "run", training__steps=1)
    translator = load_translator(tmp_path / "run" / "model")
    assert translator.model_file.experiment.data.lowercase
    found = translator.translate_all(SOURCES)
    assert all(words == words.lower() for words in found.words)
    casing = translator.model_file.casing
    assert casing.restore(split_words(TARGETS[0], "de").lower()) == split_words(TARGETS[0], "de")
    assert found.lines == tuple(join_words(casing.restore(words)) for words in found.words)
    (tmp_path / "run" / "model" / "casing.json").write_text('{"forms": 3}', encoding="utf-8")
    with pytest.raises(WeightsError, match=r"casing\.json: must be an object with the keys"):
        load_translator(tmp_path / "run" / "model")


def test_the_shipped_model_writes_as_one_writes() -> None:
    translator = load_translator("en-de", "cpu")
    assert translator.translate("A MAN is eating a sandwich.") == "Ein Mann isst ein Sandwich."


def test_methods_of_decoding_differ_and_seeds_repeat() -> None:
    translator = small_translator()
    sample = DecodingConfig(method="sample", limit_extra=5)
    one, same, other = (translator.translate_all(SOURCES, sample, seed).lines for seed in (1, 1, 2))
    assert one == same != other
    greedy = translator.translate_all(SOURCES, DecodingConfig(method="greedy", limit_extra=5)).lines
    beam = translator.translate_all(SOURCES, DecodingConfig(beams=1, limit_extra=5)).lines
    assert greedy == beam


def test_a_folder_is_complete_and_checked(tmp_path: Path) -> None:
    model, about = small_model()
    translator = Translator(model, about)
    save_sequence_model(tmp_path / "model", model, about)
    _, about = load_sequence_model(tmp_path / "model")
    assert about.experiment == translator.model_file.experiment
    assert (about.licence, about.special) == ("research only", SPECIAL)
    assert is_sequence_model(tmp_path / "model")
    with pytest.raises(ConfigError, match="unimask translate"):
        load_model(tmp_path / "model")
    other = learn_vocabulary(["only these few words"], 50, lowercase=True)
    (tmp_path / "model" / "tokenizer.json").write_text(other.to_json(), encoding="utf-8")
    with pytest.raises(WeightsError, match=rf"holds {len(other)} tokens, the weights are for"):
        load_sequence_model(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("nothing", encoding="utf-8")
    with pytest.raises(WeightsError, match=r"tokenizer\.json: cannot be read"):
        load_sequence_model(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match="belongs to the model"):
        load_sequence_model(tmp_path / "model")


def test_settings_survive_and_bad_ones_are_named() -> None:
    experiment = small()
    assert translation_from_dict(translation_to_dict(experiment)) == experiment
    for path, value in (
        ("model.heads", 5),
        ("model.dropout", 1.5),
        ("decoding.beams", 0),
        ("model.nothing", 1),
        ("model.source", "vectors"),
    ):
        with pytest.raises(ConfigError, match=r"model\.|decoding\."):
            override(experiment, {path: value})


class Input(io.TextIOWrapper):
    pass


def test_lines_come_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"one\n\ntwo\r\n")
    assert gather_lines([], file) == ["one", "", "two"]
    assert gather_lines(["a\nb", "c", ""], None) == ["a", "b", "c", ""]
    monkeypatch.setattr(sys, "stdin", Input(io.BytesIO(b"x\n\ny")))
    assert gather_lines([], None) == ["x", "", "y"]
    with pytest.raises(DataError, match="the text: line 1 is not UTF-8"):
        gather_lines(["caf\udce9"], None)
    with pytest.raises(DataError, match="no such file"):
        gather_lines([], tmp_path / "none")
    with pytest.raises(DataError, match="one or the other"):
        gather_lines(["a"], file)


def test_the_command_writes_lines_and_tells_the_licence(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    model, about = small_model(decoding__limit_extra=3)
    save_sequence_model(tmp_path / "model", model, about)
    target = tmp_path / "out.de"
    translation.translate(
        ["A dog runs.", "", "Two men sit down."], str(tmp_path / "model"), output=target, device="cpu"
    )
    lines = target.read_text(encoding="utf-8").split("\n")
    assert len(lines) == 4
    assert lines[1] == lines[3] == ""
    translation.translate(["A dog runs."], str(tmp_path / "model"), device="cpu")
    captured = capfdbinary.readouterr()
    assert b"research only" in captured.err
    assert captured.out.decode() == f"{lines[0]}\n"


def test_attention_is_that_of_the_translation() -> None:
    translator = small_translator(decoding__limit_extra=3)
    found = translator.attention("A dog runs.")
    written = translator.translate_all(["A dog runs."]).words[0].split()
    assert found.source_pieces[-1] == "</s>"
    assert found.target_pieces[0] == "<s>"
    assert "".join(found.target_pieces[1:]) == "".join(written)
    source, target = len(found.source_pieces), len(found.target_pieces)
    for maps, shape in (
        (found.maps.encoder, (1, 2, source, source)),
        (found.maps.decoder, (1, 2, target, target)),
        (found.maps.cross, (1, 2, target, source)),
    ):
        assert [layer.shape for layer in maps] == [shape]
        torch.testing.assert_close(maps[0].sum(-1), torch.ones(shape[:-1]))
    assert not found.maps.decoder[0].triu(1).any()  # no token attends to a later one
    with pytest.raises(DataError, match="empty"):
        translator.attention("  ")


def test_the_command_draws_attention(tmp_path: Path) -> None:
    model, about = small_model(decoding__limit_extra=3)
    save_sequence_model(tmp_path / "model", model, about)
    translation.translate(
        ["A dog runs.", "", "Two men."], str(tmp_path / "model"), attention=tmp_path / "drawn", device="cpu"
    )
    names = [f"{line}.{kind}.png" for line in (1, 3) for kind in ("cross", "decoder", "encoder")]
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == names
    for name in names:
        with Image.open(tmp_path / "drawn" / name) as sheet:
            assert min(sheet.convert("L").getextrema()) < 128  # something is drawn
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        translation.translate(
            ["A dog."], str(tmp_path / "model"), attention=tmp_path / "file" / "drawn", device="cpu"
        )
