"""Speed of the Transformer beside transformers' Marian of the same size, and of decoding by length.

python benchmarks/translation.py [--threads 1] [--repeats 5] [--device cpu]

Weights are random and the same in both; the times are of this machine at this moment, so look at the ratio.
What is compared: a training step (forward, loss with label smoothing, backward; without optimiser) in target
tokens a second, greedy decoding and a beam of 5 in sentences a second, and the time of decoding by length.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional
from transformers import MarianConfig, MarianMTModel

from unimask.conversion.marian import import_tensors, read_settings
from unimask.losses.tokens import TokenCriterion
from unimask.models.build_text import build_sequence_model
from unimask.models.decoding import beam_search, decode
from unimask.models.seq2seq import Seq2Seq
from unimask.presets.transformer import transformer_tiny_multi30k
from unimask.structures import Special

WORDS, SENTENCES, PLACES = 10_000, 64, 16
SPECIAL = Special(padding=0, begin=0, end=2)


def seconds(action: Callable[[], object], repeats: int, device: torch.device) -> float:
    """The least time of several tries: what disturbs can only add."""
    best = float("inf")
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def models(device: torch.device) -> tuple[Seq2Seq, MarianMTModel]:
    """Ours and theirs, of the size of the preset, with the same weights; no text ends by itself."""
    size = transformer_tiny_multi30k().model
    torch.manual_seed(0)
    theirs = MarianMTModel(
        MarianConfig(
            vocab_size=WORDS,
            d_model=size.channels,
            encoder_layers=size.encoder_layers,
            decoder_layers=size.decoder_layers,
            encoder_attention_heads=size.heads,
            decoder_attention_heads=size.heads,
            encoder_ffn_dim=size.feedforward_channels,
            decoder_ffn_dim=size.feedforward_channels,
            pad_token_id=SPECIAL.padding,
            decoder_start_token_id=SPECIAL.begin,
            eos_token_id=SPECIAL.end,
            forced_eos_token_id=None,
            scale_embedding=True,
            activation_function="relu",
            dropout=0.0,
        )
    ).eval()
    theirs.final_logits_bias[0, SPECIAL.end] = -1e4
    experiment, _ = read_settings(theirs.config.to_dict(), Path("config.json"))
    ours = import_tensors(theirs.state_dict(), experiment.model, Path("marian"))
    assert build_sequence_model(experiment.model, WORDS).state_dict().keys() == ours.state_dict().keys()
    return ours.to(device), theirs.to(device)


def compare(repeats: int, device: torch.device) -> dict[str, float]:
    ours, theirs = models(device)
    source = torch.randint(3, WORDS, (SENTENCES, PLACES), device=device)
    valid = torch.ones_like(source, dtype=torch.bool)
    criterion = TokenCriterion(0.1, lambda count: count)
    read = functional.pad(source[:, :-1], (1, 0), value=SPECIAL.begin)

    def train_ours() -> None:
        embedding = ours.embedding
        states = ours(source, valid, read).flatten(0, 1)
        criterion(states, embedding.weight, embedding.bias, source.flatten()).total.backward()
        ours.zero_grad()

    def train_theirs() -> None:
        logits = theirs(input_ids=source, attention_mask=valid.long(), decoder_input_ids=read).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), source.flatten(), label_smoothing=0.1)
        loss.backward()
        theirs.zero_grad()

    def decode_ours(length: int = PLACES) -> None:
        decode(ours, source, valid, torch.full((SENTENCES,), length, device=device), SPECIAL)

    def beam_ours() -> None:
        limits = torch.full((SENTENCES,), PLACES, device=device)
        beam_search(ours, source, valid, limits, SPECIAL, beams=5, length_penalty=1.0)

    def decode_theirs(beams: int) -> None:
        theirs.generate(
            input_ids=source,
            attention_mask=valid.long(),
            num_beams=beams,
            do_sample=False,
            max_new_tokens=PLACES,
            bad_words_ids=[[SPECIAL.padding]],
        )

    tokens = SENTENCES * PLACES
    result = {
        "training_tokens_per_second": tokens / seconds(train_ours, repeats, device),
        "training_tokens_per_second_marian": tokens / seconds(train_theirs, repeats, device),
        "greedy_sentences_per_second": SENTENCES / seconds(decode_ours, repeats, device),
        "greedy_sentences_per_second_marian": SENTENCES / seconds(lambda: decode_theirs(1), repeats, device),
        "beam_sentences_per_second": SENTENCES / seconds(beam_ours, repeats, device),
        "beam_sentences_per_second_marian": SENTENCES / seconds(lambda: decode_theirs(5), repeats, device),
    }
    for length in (32, 64, 128, 256):  # linear: the milliseconds per token stay about the same
        took = seconds(lambda length=length: decode_ours(length), 1, device)  # type: ignore[misc]
        result[f"milliseconds_per_token_at_{length}"] = took / length * 1000
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(json.dumps(compare(given.repeats, torch.device(given.device)), indent=1))


if __name__ == "__main__":
    main()
