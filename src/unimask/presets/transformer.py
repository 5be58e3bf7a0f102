"""Named experiments of the Transformer, which maps a sequence to tokens."""

from collections.abc import Callable

from unimask.config.text import DecodingConfig, SequenceModelConfig, TextConfig, TranslationExperiment
from unimask.config.training import TrainingConfig


def transformer_tiny_multi30k() -> TranslationExperiment:
    """Translation, Multi30k English to German: 4 + 4 layers of width 128, 10,000 byte pairs, 8000 updates.

    The published Tiny configuration (Wu et al., ACL 2021), except for the averaging of weights: there over
    the last ten checkpoints, here a moving average.
    """
    return TranslationExperiment(
        model=SequenceModelConfig(
            channels=128,
            heads=4,
            feedforward_channels=256,
            encoder_layers=4,
            decoder_layers=4,
            dropout=0.3,
        ),
        data=TextConfig(lowercase=True, vocabulary=10_000),
        decoding=DecodingConfig(beams=5, length_penalty=1.0),
        training=TrainingConfig(
            steps=8000,
            batch_size=4096,
            learning_rate=0.005,
            weight_decay=0.0,
            betas=(0.9, 0.98),
            gradient_clip=5.0,
            schedule="noam",
            warmup_steps=2000,
            ema_decay=0.998,
            evaluate_every=500,
            checkpoint_every=100,
            workers=0,
        ),
    )


def glyphs() -> TranslationExperiment:
    """Rendered digits to text: a sequence of pixel columns to characters; trains in minutes on a CPU."""
    return TranslationExperiment(
        model=SequenceModelConfig(
            channels=64,
            heads=4,
            feedforward_channels=128,
            encoder_layers=2,
            decoder_layers=2,
            source="vectors",
            source_features=64,
        ),
        data=TextConfig(split_words=False, vocabulary=24),
        decoding=DecodingConfig(limit_factor=0.0, limit_extra=12),
        training=TrainingConfig(
            steps=1200,
            batch_size=2048,
            learning_rate=0.003,
            weight_decay=0.0,
            betas=(0.9, 0.98),
            gradient_clip=1.0,
            schedule="noam",
            warmup_steps=200,
            evaluate_every=250,
            checkpoint_every=250,
            workers=0,
        ),
    )


TRANSLATION_PRESETS: dict[str, Callable[[], TranslationExperiment]] = {
    "glyphs": glyphs,
    "transformer-tiny-multi30k": transformer_tiny_multi30k,
}
"""Name -> function that returns the experiment, for models of text."""
