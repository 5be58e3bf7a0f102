"""Text as tokens: a vocabulary of byte pairs that is learned from text."""

from collections.abc import Iterable, Sequence
from typing import Any

from unimask.data.text.words import join_words, split_words
from unimask.errors import DataError, needs_extra
from unimask.structures import Special

PADDING, BEGIN, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
_END_OF_WORD = "</w>"


def _tokenizers() -> Any:
    """Import the library only where there is text: a training on images does without it."""
    with needs_extra("text", "translation"):
        import tokenizers
    return tokenizers


class Vocabulary:
    """Turns text into token ids and back. Made by `learn_vocabulary` or from a `tokenizer.json`.

    `lowercase`: it has small letters only. `split`: lines are split into words and marks first and joined
    afterwards; vocabularies of other releases take lines as they are. Unknown letters become the unknown
    token.
    """

    def __init__(self, text: str, *, lowercase: bool, split: bool) -> None:
        """`text` is what `to_json` returned, or another `tokenizer.json` of the tokenizers library.

        Raises:
            DataError: the text is not a tokenizer.
        """
        library = _tokenizers()
        try:
            self._inner = library.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare exceptions
            raise DataError("tokenizer.json", f"cannot be read ({str(error).splitlines()[0]})") from None
        self._text = text
        self.lowercase = lowercase
        self.split = split

    def __len__(self) -> int:
        return int(self._inner.get_vocab_size())

    def to_json(self) -> str:
        """Return the content of a `tokenizer.json`."""
        return self._text

    def encode(self, line: str, language: str) -> list[int]:
        """Encode a line, without begin and end tokens; an empty line has no tokens."""
        tokens: list[int] = self._inner.encode(self.prepare(line, language), add_special_tokens=False).ids
        return tokens

    def encode_all(self, lines: Sequence[str], language: str) -> list[list[int]]:
        """Encode many lines at once, which is faster."""
        prepared = [self.prepare(line, language) for line in lines]
        return [one.ids for one in self._inner.encode_batch(prepared, add_special_tokens=False)]

    def prepare(self, line: str, language: str) -> str:
        """Split a line into words with blanks between them; in small letters if `lowercase` is on."""
        words = split_words(line, language) if self.split else line
        return words.lower() if self.lowercase else words

    def words(self, tokens: Sequence[int]) -> str:
        """Decode tokens into words with blanks between them."""
        text: str = self._inner.decode(list(tokens), skip_special_tokens=True)
        return " ".join(text.split())

    def line(self, tokens: Sequence[int]) -> str:
        """Decode tokens into a line of ordinary text."""
        return self.join(self.words(tokens))

    def join(self, words: str) -> str:
        """Join words with blanks between them into a line of ordinary text."""
        return join_words(words) if self.split else words

    def pieces(self, tokens: Sequence[int]) -> tuple[str, ...]:
        """Return the text of each token, special tokens by their names, for display."""
        texts = (str(self._inner.id_to_token(token)) for token in tokens)
        return tuple(text.removesuffix(_END_OF_WORD).lstrip("\u2581") for text in texts)

    def unknown(self, line: str, language: str) -> tuple[str, ...]:
        """Return the letters and marks of a line that the vocabulary lacks, each once, in their order."""
        unknown = self._inner.token_to_id(UNKNOWN)
        words = self.prepare(line, language).split()
        if unknown is None or unknown not in self.encode(line, language):
            return ()
        return tuple(
            dict.fromkeys(
                letter
                for word in words
                for letter in word
                if unknown in self._inner.encode(f"{letter}", add_special_tokens=False).ids
                and unknown in self._inner.encode(word, add_special_tokens=False).ids
            )
        )


SPECIAL = Special(padding=0, begin=1, end=2)
"""The special tokens of vocabularies that `learn_vocabulary` makes."""


def learn_vocabulary(lines: Iterable[str], size: int, *, lowercase: bool, split: bool = True) -> Vocabulary:
    """Learn a vocabulary of at most `size` tokens: the most frequent pairs in lines of split words.

    The same lines need not give the same vocabulary twice: pairs of equal frequency come in any order. So a
    vocabulary is kept with what was trained on it.

    Source: Sennrich et al., Neural Machine Translation of Rare Words with Subword Units (1508.07909), 3.2.
    """
    library = _tokenizers()
    inner = library.Tokenizer(library.models.BPE(unk_token=UNKNOWN, end_of_word_suffix=_END_OF_WORD))
    inner.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    inner.decoder = library.decoders.BPEDecoder(suffix=_END_OF_WORD)
    trainer = library.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PADDING, BEGIN, END, UNKNOWN],
        end_of_word_suffix=_END_OF_WORD,
        show_progress=False,
    )
    inner.train_from_iterator((line.lower() if lowercase else line for line in lines), trainer)
    return Vocabulary(inner.to_str(), lowercase=lowercase, split=split)
