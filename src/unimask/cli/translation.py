"""The command `unimask translate`: lines come in and go out."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unimask.cli import options
from unimask.cli import output as show
from unimask.cli.failures import check_folder
from unimask.data.text.pairs import decode_lines, read_lines
from unimask.errors import DataError, WeightsError
from unimask.files import complete_file, complete_files

if TYPE_CHECKING:
    from unimask.config.text import DecodingConfig
    from unimask.inference.translator import Translator


def translate(
    text: options.Text = None,
    weights: options.TranslationWeights = "en-de",
    file: options.TextFile = None,
    output: options.TranslationFile = None,
    attention: options.AttentionFolder = None,
    method: options.Decoding = None,
    beams: options.Beams = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Translate text, line by line: line N of the result is the translation of line N.

    Without TEXT and --file it reads standard input. What there is to say about single lines (letters that
    the model does not know, lines that it took in pieces) goes to standard error.

    Examples:
      unimask translate "A man is riding a bike."
      echo "Two dogs play in the snow." | unimask translate
      unimask translate "A man is riding a bike." --attention attention
      unimask translate --file captions.en --output captions.de --weights runs/first/best
    """
    from unimask.config.text import DecodingConfig
    from unimask.config.values import settings_from_dict, settings_to_dict
    from unimask.inference.segmenter import find_device
    from unimask.inference.translator import load_translator

    if output is not None:
        check_folder(output.absolute().parent)
    lines = gather_lines(text or [], file)
    translator = load_translator(weights, find_device(device))
    about = translator.model_file
    changes = {"method": None if method is None else method.value, "beams": beams}
    decoding = settings_from_dict(
        DecodingConfig,
        settings_to_dict(about.experiment.decoding) | {k: v for k, v in changes.items() if v is not None},
    )
    if about.licence != "not stated":
        show.errors.print(f"licence of the weights {weights}: {about.licence}")
    found = translator.translate_all(lines, decoding, seed)
    if attention is not None:
        draw_attention_of(translator, lines, decoding, attention)
    for note in found.notes:
        show.errors.print(f"line {note.line}: {note.text}")
    if as_json:
        show.show_json([{"source": a, "translation": b} for a, b in zip(lines, found.lines, strict=True)])
    else:
        write_lines(found.lines, output)


def draw_attention_of(
    translator: "Translator", lines: Sequence[str], decoding: "DecodingConfig", folder: Path
) -> None:
    """Write `N.encoder.png`, `N.decoder.png` and `N.cross.png` for each line N that is not empty.

    Raises:
        DataError: the folder cannot be written to.
    """
    from unimask.results.attention_drawing import draw_attention_layers

    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found = translator.attention(line, decoding)
        source, target, maps = found.source_pieces, found.target_pieces, found.maps
        sheets = {
            "encoder": draw_attention_layers([layer[0] for layer in maps.encoder], source, source),
            "decoder": draw_attention_layers([layer[0] for layer in maps.decoder], target, target),
            "cross": draw_attention_layers([layer[0] for layer in maps.cross], target, source),
        }
        paths = [folder / f"{number}.{name}.png" for name in sheets]
        try:
            with complete_files(paths) as temporary:
                for part, sheet in zip(temporary, sheets.values(), strict=True):
                    sheet.save(part, format="PNG")
        except OSError as error:
            raise DataError(folder, f"cannot be written to ({error.strerror or error})") from None
        show.errors.print(f"line {number}: attention drawn in {folder}")


def gather_lines(texts: list[str], file: Path | None) -> list[str]:
    """The lines of the arguments, else of the file, else of standard input.

    Raises:
        DataError: both are given, the file cannot be read, or something is not UTF-8.
    """
    if texts and file is not None:
        raise DataError(file, "text is given too; translate one or the other")
    if texts:
        return [line for text in texts for line in _lines_of(text)]
    if file is not None:
        if not file.is_file():
            raise DataError(file, "there is no such file")
        return read_lines(file)
    if sys.stdin.isatty():
        print("type lines to translate, then Ctrl-D", file=sys.stderr)
    return decode_lines(sys.stdin.buffer.read(), "standard input")


def _lines_of(text: str) -> list[str]:
    """The lines of an argument; bytes that are not UTF-8 come in as lone surrogates."""
    content = text.encode("utf-8", errors="surrogateescape")
    return decode_lines(content, "the text") if content else [""]


def write_lines(lines: Sequence[str], output: Path | None) -> None:
    """One line each, in UTF-8; a file is complete when it appears.

    Raises:
        DataError: the file cannot be written.
    """
    content = "".join(f"{line}\n" for line in lines).encode("utf-8")
    if output is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    try:
        with complete_file(output) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise DataError(output, f"cannot be written ({error.strerror or error})") from None


def writes_tokens(weights: str) -> bool:
    """Whether a name or folder is that of a model that writes tokens; what is none is complained of later."""
    from unimask.checkpoints.images import ASSETS, CONFIG_NAME, SEQUENCES

    for folder in (Path(weights), ASSETS / weights):
        path = folder / CONFIG_NAME
        if path.is_file():
            return f'"kind": "{SEQUENCES}"' in path.read_text(encoding="utf-8", errors="replace")
    return False


def is_marian_folder(source: str) -> bool:
    """Whether a folder holds a Marian model of transformers."""
    from unimask.conversion.marian import is_marian

    return is_marian(Path(source))


def evaluate_translator(
    weights: str, data: str, split: str, output: Path | None, device: str, as_json: bool
) -> None:
    """Shows BLEU; with `output`, also writes it and all lines there.

    Raises:
        DataError, WeightsError, ConfigError: something cannot be read.
    """
    from unimask.data.text.pairs import read_pairs
    from unimask.inference.segmenter import find_device
    from unimask.inference.text_evaluation import evaluate_lines
    from unimask.inference.translator import load_translator

    translator = load_translator(weights, find_device(device))
    config = translator.model_file.experiment
    pairs = read_pairs(data, split, config.data.source_language, config.data.target_language)
    found = evaluate_lines(translator, pairs, config.decoding)
    values = {**found.values(), "words": str(found.words), "signature": found.text.signature}
    if output is not None:
        write_lines([json.dumps({**values, "lines": found.lines}, indent=1)], output)
    if as_json:
        show.show_json(values)
        return
    show.show_values(found.values(), f"translation, {len(pairs)} lines of {split} in {data}")
    show.show_line(f"BLEU of lowercased words: {found.words}")
    show.show_line(f"BLEU of cased text: {found.text}, {found.text.signature}")


def convert_translator(source: str, target: Path, to: str, licence: str) -> str:
    """Writes a Marian model as a model folder, or the other way round; gives the provenance.

    Raises:
        WeightsError, ConfigError: something cannot be read or has no counterpart.
    """
    from unimask.checkpoints.images import resolve_weights
    from unimask.checkpoints.text import load_sequence_model, save_sequence_model
    from unimask.conversion.marian import export_folder, import_folder

    if to == "original" or target.is_file():
        raise WeightsError(target, "must be a folder, of unimask or of transformers (--to)")
    if is_marian_folder(source):
        model, about = import_folder(Path(source), licence)
    else:
        model, about = load_sequence_model(resolve_weights(source))
    write = {"unimask": save_sequence_model, "transformers": export_folder}[to]
    write(target, model, about)
    return about.provenance
