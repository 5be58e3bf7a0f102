"""`unimask translate`, and `unimask evaluate` of a translator."""

import sys
from collections.abc import Sequence
from pathlib import Path

import unimask
from unimask.cli import output as show
from unimask.cli import tables
from unimask.cli.failures import check_folder
from unimask.cli.options import shared, translation
from unimask.data.text.pairs import decode_lines, read_lines
from unimask.errors import DataError
from unimask.files import complete_file


def translate(
    text: translation.Text = None,
    weights: translation.TranslationWeights = "en-de",
    file: translation.TextFile = None,
    output: translation.TranslationFile = None,
    attention: translation.AttentionFolder = None,
    method: translation.Decoding = None,
    beams: translation.Beams = None,
    device: shared.Device = "auto",
    seed: translation.Seed = 0,
    as_json: shared.Json = False,
) -> None:
    """Translate text, line by line: line N of the result is the translation of line N.

    Without TEXT and --file it reads standard input. Warnings about single lines (unknown letters, lines
    translated in pieces) go to standard error.

    Examples:
      unimask translate "A man is riding a bike."
      echo "Two dogs play in the snow." | unimask translate
      unimask translate "A man is riding a bike." --attention attention
      unimask translate --file captions.en --output captions.de --weights en-de
    """
    if output is not None:
        check_folder(output.absolute().parent)
    lines = gather_lines(text or [], file)
    translator = unimask.load_translator(weights, device)
    about = translator.model_file
    asked = {"decoding.method": None if method is None else method.value, "decoding.beams": beams}
    changes = {path: value for path, value in asked.items() if value is not None}
    decoding = unimask.override(about.experiment, changes).decoding
    if about.licence != "not stated":
        show.errors.print(f"licence of the weights {weights}: {about.licence}")
    found = translator.translate_all(lines, decoding, seed)
    for number, line in enumerate(lines, start=1):
        if attention is not None and line.strip():
            translator.attention(line, decoding).save(attention, str(number))
            show.errors.print(f"line {number}: attention drawn in {attention}")
    for note in found.notes:
        show.errors.print(f"line {note.line}: {note.text}")
    if as_json:
        show.show_json([{"source": a, "translation": b} for a, b in zip(lines, found.lines, strict=True)])
    else:
        write_lines(found.lines, output)


def gather_lines(texts: list[str], file: Path | None) -> list[str]:
    """Return the lines to translate: of the arguments, else of the file, else of standard input.

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
    """Return the lines of an argument, in which bytes that are not UTF-8 are lone surrogates."""
    content = text.encode("utf-8", errors="surrogateescape")
    return decode_lines(content, "the text") if content else [""]


def write_lines(lines: Sequence[str], output: Path | None) -> None:
    """Write the lines in UTF-8 to a file, atomically, or to standard output if `output` is None.

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


def evaluate_translator(
    weights: str, data: str, split: str, output: Path | None, device: str, as_json: bool
) -> None:
    """Evaluate a translator and show BLEU; write BLEU and all lines to `output`, if given.

    Raises:
        DataError, WeightsError, ConfigError: the data, the weights or their settings cannot be used.
    """
    from unimask.data.text.pairs import read_pairs
    from unimask.inference.text_evaluation import evaluate_lines

    translator = unimask.load_translator(weights, device)
    config = translator.model_file.experiment
    pairs = read_pairs(data, split, config.data.source_language, config.data.target_language)
    found = evaluate_lines(translator, pairs, config.decoding)
    if output is not None:
        found.save(output)
    if as_json:
        show.show_json(found.to_json())
        return
    tables.show_values(found.values(), f"translation, {len(pairs)} lines of {split} in {data}")
    show.show_line(f"BLEU of lowercased words: {found.words}")
    show.show_line(f"BLEU of cased text: {found.text}, {found.text.signature}")
