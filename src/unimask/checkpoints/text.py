"""A model that writes tokens is a folder: `model.safetensors`, `config.json` and `tokenizer.json`.

One that knows small letters only has `casing.json` too: how its words are written.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from unimask.checkpoints.images import CONFIG_NAME, SEQUENCES, WEIGHTS_NAME, known_folder
from unimask.checkpoints.tensors import fill, load_tensors, save_folder, weights_of
from unimask.config.text import TranslationExperiment, translation_from_dict, translation_to_dict
from unimask.config.values import settings_from_dict
from unimask.data.text.casing import AS_WRITTEN, Casing, casing_from_dict
from unimask.data.text.vocabulary import Vocabulary
from unimask.errors import ConfigError, DataError, WeightsError
from unimask.files import json_text, read_json, remove
from unimask.models.build_text import build_sequence_model
from unimask.models.seq2seq import Seq2Seq
from unimask.structures import Special

VOCABULARY_NAME = "tokenizer.json"
CASING_NAME = "casing.json"
_FORMAT = 1
_KEYS = ("format", "kind", "experiment", "special", "licence", "provenance")


@dataclass(frozen=True, kw_only=True)
class SequenceModelFile:
    """What a folder says about its weights."""

    experiment: TranslationExperiment
    vocabulary: Vocabulary
    casing: Casing  # of the words that the model writes
    special: Special
    licence: str  # of the weights and the data they come from
    provenance: str  # where the weights come from: data, command, or the file they were converted from


def is_sequence_model(name_or_folder: str | Path) -> bool:
    """Return whether a model of the package or a model folder writes tokens; False where there is none."""
    folder = known_folder(name_or_folder)
    if folder is None or not (folder / CONFIG_NAME).is_file():
        return False
    return f'"kind": "{SEQUENCES}"' in (folder / CONFIG_NAME).read_text(encoding="utf-8", errors="replace")


def save_sequence_model(
    folder: Path, model: Seq2Seq, model_file: SequenceModelFile, half: bool = False
) -> None:
    """Write a folder that `load_sequence_model` reads; the files are complete when they appear, together.

    With `half`, matrices are stored in float16: half the size, and loaded as float32.
    """
    config = {
        "format": _FORMAT,
        "kind": SEQUENCES,
        "experiment": translation_to_dict(model_file.experiment),
        "special": dataclasses.asdict(model_file.special),
        "licence": model_file.licence,
        "provenance": model_file.provenance,
    }
    texts = {VOCABULARY_NAME: model_file.vocabulary.to_json()}
    if model_file.casing:
        texts[CASING_NAME] = json_text(model_file.casing.to_dict(), indent=None) + "\n"
    texts[CONFIG_NAME] = json_text(config) + "\n"
    save_folder(folder, weights_of(model, half=half), texts)
    if not model_file.casing:
        remove(folder / CASING_NAME)  # of the model that was here before


def load_sequence_model(
    folder: Path, device: torch.device | str = "cpu"
) -> tuple[Seq2Seq, SequenceModelFile]:
    """Return the model of a folder, in eval mode on `device`, and what the folder says about it.

    Raises:
        WeightsError: a file is missing or broken, or the tensors or the vocabulary do not fit `config.json`.
        ConfigError: `config.json` holds a setting that does not exist or is impossible.
    """
    model_file = _load_file(folder)
    tensors = load_tensors(folder / WEIGHTS_NAME)
    embedding = tensors.get("embedding.weight")
    rows, tokens = len(model_file.vocabulary), -1 if embedding is None else embedding.shape[0]
    if embedding is not None and tokens != rows:
        raise WeightsError(
            folder / VOCABULARY_NAME,
            f"holds {rows} tokens, the weights are for {tokens}; take the file that was saved with them",
        )
    with torch.random.fork_rng(devices=[]):
        model = build_sequence_model(model_file.experiment.model, rows)
    fill(model, tensors, folder / WEIGHTS_NAME)
    return model.eval().to(device), model_file


def _load_file(folder: Path) -> SequenceModelFile:
    values = _read_config(folder / CONFIG_NAME)
    try:
        return _from_dict(values, folder / VOCABULARY_NAME)
    except ConfigError as error:
        raise ConfigError(f"{folder / CONFIG_NAME}: {error.path}", error.reason) from None
    except DataError as error:
        raise WeightsError(folder / VOCABULARY_NAME, error.reason) from None


def _load_casing(path: Path) -> Casing:
    if not path.is_file():
        return AS_WRITTEN
    try:
        return casing_from_dict(read_json(path))
    except DataError as error:
        raise WeightsError(path, error.reason) from None


def _read_config(path: Path) -> dict[str, object]:
    if not path.is_file():
        raise WeightsError(
            path, f"there is no such file; a model folder holds {WEIGHTS_NAME} and {CONFIG_NAME}"
        )
    values = read_json(path, WeightsError)
    if not isinstance(values, dict):
        raise WeightsError(path, "must be a JSON object")
    if values.get("kind") != SEQUENCES:
        raise WeightsError(path, "is of a model of images, not of text; `unimask predict` takes it")
    return values


def _from_dict(values: dict[str, object], vocabulary: Path) -> SequenceModelFile:
    wrong = sorted(set(values) ^ set(_KEYS))
    if wrong:
        raise ConfigError(", ".join(wrong), f"the file must have exactly the keys {', '.join(_KEYS)}")
    if values["format"] != _FORMAT:
        raise ConfigError("format", f"is {values['format']!r}, this version of unimask reads {_FORMAT}")
    experiment, special = values["experiment"], values["special"]
    if not isinstance(experiment, dict) or not isinstance(special, dict):
        raise ConfigError("experiment, special", "must be JSON objects")
    for key in ("licence", "provenance"):
        if not isinstance(values[key], str):
            raise ConfigError(key, f"must be text; got {values[key]!r}")
    if not vocabulary.is_file():
        raise WeightsError(vocabulary, "there is no such file; it belongs to the model and is saved with it")
    read = translation_from_dict(experiment)
    return SequenceModelFile(
        experiment=read,
        vocabulary=Vocabulary(
            vocabulary.read_text(encoding="utf-8", errors="replace"),
            lowercase=read.data.lowercase,
            split=read.data.split_words,
        ),
        casing=_load_casing(vocabulary.with_name(CASING_NAME)),
        special=settings_from_dict(Special, special),
        licence=str(values["licence"]),
        provenance=str(values["provenance"]),
    )
