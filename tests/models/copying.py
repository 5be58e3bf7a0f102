"""A small model that has begun to learn to copy: unlike a random one, it writes texts of many lengths."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from unimask.config.text import SequenceModelConfig
from unimask.models.build_text import build_sequence_model
from unimask.models.seq2seq import Seq2Seq
from unimask.structures import Special

WORDS, CHANNELS, HEADS = 23, 24, 3
SPECIAL = Special(padding=0, begin=1, end=2)


def sources(count: int = 5, longest: int = 11, seed: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([longest, 3, 7, 1, 5] * (count // 5 + 1))[:count]
    valid = torch.arange(longest) < lengths[:, None]
    tokens = torch.randint(3, WORDS, (count, longest), generator=generator)
    return tokens.masked_fill(~valid, 0), valid


def small_model(**changes: object) -> Seq2Seq:
    """With random weights that all have an effect."""
    torch.manual_seed(11)
    settings: dict[str, object] = {
        "channels": CHANNELS,
        "heads": HEADS,
        "feedforward_channels": 19,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "dropout": 0.0,
        "output_bias": True,
    }
    config = SequenceModelConfig(**{**settings, **changes})  # type: ignore[arg-type]
    model = build_sequence_model(config, WORDS).eval()
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "norm.weight" in name else 0.0, std=0.2)
    return model


@cache
def copying_model(position_layout: str = "interleaved", steps: int = 120) -> Seq2Seq:
    model = small_model(position_layout=position_layout, activation="silu")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for step in range(steps):
        source, valid = sources(60, seed=step)
        target = torch.cat((source, source[:, :1] * 0), dim=1)
        target[torch.arange(60), valid.sum(1)] = SPECIAL.end
        read = functional.pad(target[:, :-1], (1, 0), value=SPECIAL.begin)
        logits = model.logits(model(source, valid, read))
        loss = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
