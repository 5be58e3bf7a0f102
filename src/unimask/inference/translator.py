"""Translation: load a model, then translate lines."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch

from unimask.checkpoints.images import resolve_weights
from unimask.checkpoints.text import SequenceModelFile, load_sequence_model
from unimask.config.text import DecodingConfig
from unimask.data.seeds import seeded_generator
from unimask.data.text.loader import pad
from unimask.errors import DataError
from unimask.files import complete_files
from unimask.machine import find_device
from unimask.models.decoding import Written, beam_search, decode, likeliest, sampler
from unimask.models.optimize import prepare_for_inference
from unimask.models.seq2seq import Seq2Seq
from unimask.results.attention_drawing import draw_attention_layers
from unimask.structures import AttentionMaps, Special

TOKENS_AT_ONCE = 4096
"""Source tokens, with padding and hypotheses, that are processed together."""


def load_translator(name_or_folder: str | Path, device: str = "auto") -> "Translator":
    """Return a translator from a model that ships with the package (`en-de`) or from a model folder.

    `device` is `auto` (a CUDA device if there is one, else Apple's `mps`, else the CPU) or one that torch
    knows.

    Raises:
        WeightsError: there is no such model, or its files are broken or do not fit each other.
        ConfigError: its `config.json` holds an impossible setting, or the device does not exist.
    """
    model, model_file = load_sequence_model(resolve_weights(name_or_folder), find_device(device))
    return Translator(model, model_file)


@dataclass(frozen=True, kw_only=True)
class Note:
    """A warning about a line."""

    line: int  # counted from 1
    text: str


@dataclass(frozen=True, kw_only=True)
class Translation:
    """One line for each line that was given, and warnings about some of them."""

    lines: tuple[str, ...]
    # as the model wrote them: words with blanks between them, in small letters if it knows no others
    words: tuple[str, ...]
    notes: tuple[Note, ...]


@dataclass(frozen=True, kw_only=True)
class TranslationAttention:
    """What attends to what while one line is translated; `pieces` name the rows and columns of `maps`."""

    source_pieces: tuple[str, ...]  # S tokens that the encoder reads, the end token last
    target_pieces: tuple[str, ...]  # T tokens that the decoder reads, the begin token first
    maps: AttentionMaps  # of a batch of one

    def save(self, folder: str | Path, name: str) -> tuple[Path, ...]:
        """Draw the attention as `NAME.encoder.png`, `NAME.decoder.png` and `NAME.cross.png`.

        Raises:
            DataError: the folder cannot be written to.
        """
        source, target = self.source_pieces, self.target_pieces
        sheets = {
            "encoder": draw_attention_layers([layer[0] for layer in self.maps.encoder], source, source),
            "decoder": draw_attention_layers([layer[0] for layer in self.maps.decoder], target, target),
            "cross": draw_attention_layers([layer[0] for layer in self.maps.cross], target, source),
        }
        paths = tuple(Path(folder) / f"{name}.{part}.png" for part in sheets)
        try:
            with complete_files(paths) as temporary:
                for path, sheet in zip(temporary, sheets.values(), strict=True):
                    sheet.save(path, format="PNG")
        except OSError as error:
            raise DataError(folder, f"cannot be written to ({error.strerror or error})") from None
        return paths


class Translator:
    """A model that is ready to translate."""

    def __init__(self, model: Seq2Seq, model_file: SequenceModelFile) -> None:
        self.device = model.embedding.weight.device
        self.model = cast(Seq2Seq, prepare_for_inference(model, device=self.device))
        self.model_file = model_file

    def translate(self, line: str) -> str:
        """Return the translation of one line; an empty line stays empty."""
        return self.translate_all([line]).lines[0]

    def translate_all(
        self, lines: Sequence[str], decoding: DecodingConfig | None = None, seed: int = 0
    ) -> Translation:
        """Return the translations of lines: line N is that of line N, whatever the lines hold.

        A line is translated in pieces where it is longer than the model's `data.longest`; letters that
        are not in its vocabulary cannot be translated. Notes warn of both. `decoding` replaces the
        model's own.
        """
        experiment = self.model_file.experiment
        vocabulary, config = self.model_file.vocabulary, experiment.data
        pieces: list[tuple[int, list[int]]] = []
        notes: list[Note] = []
        for index, line in enumerate(lines):
            tokens = vocabulary.encode(" ".join(line.split()), config.source_language)
            parts = _pieces(tokens, config.longest - 1, self._stops())
            pieces += [(index, part) for part in parts]
            if len(parts) > 1:
                text = f"has {len(tokens)} tokens, more than {config.longest - 1}: in {len(parts)} pieces"
                notes.append(Note(line=index + 1, text=text))
            unknown = vocabulary.unknown(line, config.source_language) if tokens else ()
            if unknown:
                shown = " ".join(unknown[:8]) + (" ..." if len(unknown) > 8 else "")
                notes.append(Note(line=index + 1, text=f"the model does not know {shown}"))
        written = self.write([part for _, part in pieces], decoding or experiment.decoding, seed)
        found: list[list[int]] = [[] for _ in lines]
        for (index, _), one in zip(pieces, written, strict=True):
            found[index] += one.tokens
        words = tuple(vocabulary.words(tokens) for tokens in found)
        return Translation(
            lines=tuple(vocabulary.join(self.model_file.casing.restore(line)) for line in words),
            words=words,
            notes=tuple(notes),
        )

    def write(
        self, sources: Sequence[Sequence[int]], decoding: DecodingConfig, seed: int = 0
    ) -> list[Written]:
        """Return what the model writes for sources that are tokens, without their end token."""
        special = self.model_file.special
        ended = [torch.tensor([*source, special.end]) for source in sources]
        return write_all(self.model, ended, special, decoding, seed)

    def attention(self, line: str, decoding: DecodingConfig | None = None) -> TranslationAttention:
        """Return the attention of every layer and head while a line is translated.

        The line is translated first; then the decoder reads its own translation at once, which gives the same
        attention as writing it token by token, because no token attends to a later one. A line longer than
        the model's `data.longest` is cut there.

        Raises:
            DataError: the line is empty.
        """
        vocabulary, special = self.model_file.vocabulary, self.model_file.special
        experiment = self.model_file.experiment
        tokens = vocabulary.encode(" ".join(line.split()), experiment.data.source_language)
        if not tokens:
            raise DataError("the line", "is empty, so there is no attention to show; give it some text")
        source = tokens[: experiment.data.longest - 1]
        (written,) = self.write([source], decoding or experiment.decoding)
        read = [*source, special.end]
        begun = [special.begin, *written.tokens]
        places = torch.tensor([read], device=self.device)
        maps = self.model.attention_maps(
            places, torch.ones_like(places, dtype=torch.bool), torch.tensor([begun], device=self.device)
        )
        return TranslationAttention(
            source_pieces=vocabulary.pieces(read), target_pieces=vocabulary.pieces(begun), maps=maps
        )

    def _stops(self) -> frozenset[int]:
        """Return the tokens that end a sentence."""
        language = self.model_file.experiment.data.source_language
        marks = (self.model_file.vocabulary.encode(mark, language) for mark in ".!?;")
        return frozenset(mark[0] for mark in marks if len(mark) == 1)


def write_all(
    model: Seq2Seq,
    sources: Sequence[torch.Tensor],
    special: Special,
    decoding: DecodingConfig,
    seed: int = 0,
) -> list[Written]:
    """Return what a model writes for each source (tokens with their end token, or vectors), in their order.

    Sources of about the same length are processed together; the result does not depend on that, except for
    sampling, which depends on `seed` too.
    """
    width = decoding.beams if decoding.method == "beam" else 1
    order = sorted(range(len(sources)), key=lambda index: -len(sources[index]))
    found: dict[int, Written] = {}
    while order:
        count = max(1, TOKENS_AT_ONCE // (len(sources[order[0]]) * width))
        members, order = order[:count], order[count:]
        written = _write([sources[index] for index in members], model, special, decoding, seed + len(order))
        found.update(zip(members, written, strict=True))
    return [found[index] for index in range(len(sources))]


def _write(
    sources: Sequence[torch.Tensor], model: Seq2Seq, special: Special, decoding: DecodingConfig, seed: int
) -> list[Written]:
    device = model.embedding.weight.device
    source, valid = (tensor.to(device) for tensor in pad(sources))
    limits = (valid.sum(dim=1) * decoding.limit_factor).long() + decoding.limit_extra
    if decoding.method == "beam":
        return beam_search(
            model,
            source,
            valid,
            limits,
            special,
            beams=decoding.beams,
            length_penalty=decoding.length_penalty,
        )
    generator = seeded_generator(seed)
    drawn = sampler(
        lambda shape: torch.rand(shape, generator=generator).to(device),
        temperature=decoding.temperature,
        top=decoding.top,
    )
    choose = {"greedy": likeliest, "sample": drawn}[decoding.method]
    return decode(model, source, valid, limits, special, choose)


def greedy(decoding: DecodingConfig) -> DecodingConfig:
    """Return the same limits, without a beam: fast, for measuring on the way."""
    return replace(decoding, method="greedy")


def _pieces(tokens: list[int], longest: int, stops: frozenset[int]) -> list[list[int]]:
    """Cut the tokens into pieces of at most `longest`, after the last end of a sentence if there is one."""
    pieces = []
    while len(tokens) > longest:
        ends = [place + 1 for place, token in enumerate(tokens[:longest]) if token in stops]
        cut = ends[-1] if ends else longest
        pieces.append(tokens[:cut])
        tokens = tokens[cut:]
    return [*pieces, tokens] if tokens else pieces
