"""Marian models of Hugging Face transformers: their names, their settings, in both directions."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from unimask.checkpoints.images import resolve_weights
from unimask.checkpoints.tensors import check_fit, check_numbers
from unimask.checkpoints.text import (
    VOCABULARY_NAME,
    SequenceModelFile,
    load_sequence_model,
    save_sequence_model,
)
from unimask.config.text import DecodingConfig, SequenceModelConfig, TextConfig, TranslationExperiment
from unimask.conversion.hugging_face_config import Json, check_fixed, read_object
from unimask.conversion.hugging_face_files import as_text, config_mentions, read_tensors, write_folder
from unimask.conversion.layers import transformers_decoder_layer, transformers_encoder_layer
from unimask.conversion.rules import Rule, to_ours, to_theirs
from unimask.data.text.casing import AS_WRITTEN
from unimask.data.text.vocabulary import Vocabulary
from unimask.errors import DataError, WeightsError
from unimask.models.build_text import build_sequence_model
from unimask.models.seq2seq import Seq2Seq
from unimask.structures import Special

RULES: tuple[Rule, ...] = (
    Rule("embedding.weight", "model.shared.weight"),
    Rule("embedding.bias", "final_logits_bias"),
    *transformers_encoder_layer("encoder_layers.{layer}", "model.encoder.layers.{layer}"),
    *transformers_decoder_layer("decoder_layers.{layer}", "model.decoder.layers.{layer}"),
)
"""The table of names, in both directions."""

_COPIES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
_CONSTANTS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
_ACTIVATIONS = {"relu": "relu", "swish": "silu", "silu": "silu", "gelu": "gelu"}
_FIXED: Mapping[str, object] = {
    "model_type": "marian",
    "scale_embedding": True,
    "share_encoder_decoder_embeddings": True,
    "normalize_embedding": False,
    "normalize_before": False,
    "add_final_layer_norm": False,
    "static_position_embeddings": True,
}
"""What their configuration may say where our model has no choice."""


def is_marian(folder: Path) -> bool:
    """Return whether a folder holds the configuration of a Marian model."""
    return config_mentions(folder, "marian")


def import_tensors(theirs: Mapping[str, Tensor], config: SequenceModelConfig, path: Path) -> Seq2Seq:
    """Return the model with weights of Marian, in eval mode.

    Raises:
        WeightsError: they do not fit the settings; keys are named as in the file.
    """
    shared = theirs.get("model.shared.weight")
    if shared is None:
        shared = theirs.get("model.encoder.embed_tokens.weight")
    if shared is None:
        raise WeightsError(path, "no name in it is one of a Marian model", unexpected=tuple(theirs))
    check_numbers(dict.fromkeys(_COPIES, shared), theirs, path)  # NaN is not equal to itself
    apart = tuple(key for key in _COPIES if key in theirs and not torch.equal(theirs[key], shared))
    if apart:
        raise WeightsError(path, "embeddings are not shared, as they are in our model", unexpected=apart)
    tensors = {key: value for key, value in theirs.items() if key not in (*_COPIES, *_CONSTANTS)}
    tensors["model.shared.weight"] = shared
    with torch.random.fork_rng(devices=[]):
        model = build_sequence_model(config, len(shared))
    wanted = to_theirs(model.state_dict(), RULES).tensors
    tensors["final_logits_bias"] = tensors.get("final_logits_bias", shared.new_zeros(len(shared))).flatten()
    check_fit(path, "does not fit the model that its config.json describes", wanted=wanted, found=tensors)
    model.load_state_dict(to_ours(tensors, RULES).tensors)
    return model.eval()


def export_tensors(model: Seq2Seq) -> dict[str, Tensor]:
    """Return the weights under the names of Marian."""
    tensors = to_theirs(model.state_dict(), RULES).tensors
    weight = tensors["model.shared.weight"]
    bias = tensors.get("final_logits_bias", weight.new_zeros(len(weight)))
    return {**tensors, "final_logits_bias": bias[None]}


def read_settings(values: Json, path: Path) -> tuple[TranslationExperiment, Special]:
    """Return our settings for a `config.json` of Marian, and its special tokens.

    Raises:
        WeightsError: it asks for what our model does not have.
    """
    check_fixed(path, values, _FIXED)
    for key in ("attention_heads", "ffn_dim"):
        both = (values.get(f"encoder_{key}"), values.get(f"decoder_{key}"))
        if both[0] != both[1]:
            raise WeightsError(path, f"encoder and decoder differ in {key} ({both[0]}, {both[1]})")
    activation = values.get("activation_function")
    if activation not in _ACTIVATIONS:
        raise WeightsError(
            path, f"activation_function is {activation!r}, not one of {', '.join(_ACTIVATIONS)}"
        )
    model = SequenceModelConfig(
        channels=_number(values, "d_model", path),
        heads=_number(values, "encoder_attention_heads", path),
        feedforward_channels=_number(values, "encoder_ffn_dim", path),
        encoder_layers=_number(values, "encoder_layers", path),
        decoder_layers=_number(values, "decoder_layers", path),
        activation=_ACTIVATIONS[str(activation)],  # type: ignore[arg-type]
        position_layout="halves",
        output_bias=True,
    )
    beams, penalty = values.get("num_beams", 4), values.get("length_penalty", 1.0)
    decoding = DecodingConfig(
        beams=beams if isinstance(beams, int) else 4,
        length_penalty=float(penalty) if isinstance(penalty, int | float) else 1.0,
    )
    special = Special(
        padding=_number(values, "pad_token_id", path),
        begin=_number(values, "decoder_start_token_id", path),
        end=_number(values, "eos_token_id", path),
    )
    text = TextConfig(split_words=False, longest=_number(values, "max_position_embeddings", path))
    return TranslationExperiment(model=model, decoding=decoding, data=text), special


def _number(values: Json, key: str, path: Path) -> int:
    value = values.get(key)
    if not isinstance(value, int):
        raise WeightsError(path, f"{key} is {value!r}, not a number")
    return value


def import_folder(folder: Path, licence: str) -> tuple[Seq2Seq, SequenceModelFile]:
    """Return the model of a folder that transformers wrote, with its `tokenizer.json`.

    Raises:
        WeightsError: a file is missing or broken, or asks for what our model does not have.
    """
    path, vocabulary = folder / "config.json", folder / VOCABULARY_NAME
    values = read_object(path)
    experiment, special = read_settings(values, path)
    if not vocabulary.is_file():
        raise WeightsError(
            vocabulary,
            "is missing: the vocabulary as the tokenizers library keeps it (a sentencepiece model is not "
            "read here); AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER) writes it",
        )
    model = import_tensors(read_tensors(folder), experiment.model, folder)
    try:
        known = Vocabulary(vocabulary.read_text(encoding="utf-8"), lowercase=False, split=False)
    except DataError as error:
        raise WeightsError(vocabulary, error.reason) from None
    return model, SequenceModelFile(
        experiment=experiment,
        vocabulary=known,
        casing=AS_WRITTEN,
        special=special,
        licence=licence,
        provenance=f"converted from {folder.name} (Marian of transformers)",
    )


def export_folder(folder: Path, model: Seq2Seq, model_file: SequenceModelFile) -> None:
    """Write a folder that `MarianMTModel.from_pretrained` reads.

    Raises:
        WeightsError: Marian has no such model.
    """
    config = model_file.experiment.model
    usual = replace(config, norm="post", source="tokens", source_features=0, position_layout="halves")
    if config != usual:
        raise WeightsError(
            folder,
            "Marian knows post-norm layers over tokens with positions in halves (model.position_layout) only",
        )
    written = _their_settings(model_file, len(model.embedding.weight))
    texts = {VOCABULARY_NAME: model_file.vocabulary.to_json(), "config.json": as_text(written)}
    write_folder(folder, export_tensors(model), texts)


def _their_settings(model_file: SequenceModelFile, vocabulary: int) -> Json:
    config, special = model_file.experiment.model, model_file.special
    return {
        **_FIXED,
        "architectures": ["MarianMTModel"],
        "vocab_size": vocabulary,
        "decoder_vocab_size": vocabulary,
        "d_model": config.channels,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.heads,
        "decoder_attention_heads": config.heads,
        "encoder_ffn_dim": config.feedforward_channels,
        "decoder_ffn_dim": config.feedforward_channels,
        "activation_function": {"silu": "swish"}.get(config.activation, config.activation),
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.hidden_dropout,
        "max_position_embeddings": model_file.experiment.data.longest,
        "pad_token_id": special.padding,
        "decoder_start_token_id": special.begin,
        "eos_token_id": special.end,
        "forced_eos_token_id": None,
        "tie_word_embeddings": True,
    }


def convert_translator(source: str | Path, target: Path, to: str, licence: str) -> SequenceModelFile:
    """Write a Marian model of transformers, or a model folder, as `to` says.

    Raises:
        WeightsError: the source cannot be read, or the target must be a folder.
        ConfigError: the source has settings without a counterpart.
    """
    if to == "original" or target.is_file():
        raise WeightsError(target, "must be a folder, of unimask or of transformers (--to)")
    if is_marian(Path(source)):
        model, model_file = import_folder(Path(source), licence)
    else:
        model, model_file = load_sequence_model(resolve_weights(source))
    {"unimask": save_sequence_model, "transformers": export_folder}[to](target, model, model_file)
    return model_file
