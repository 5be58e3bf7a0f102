"""What presets of several models have in common."""

from unimask.config import DataConfig, ScaleJitter, ShortSide, TrainingConfig


def semantic_data(crop: tuple[int, int], short_side: int, longest: int) -> DataConfig:
    """The data of ADE20K, Cityscapes and Mapillary Vistas, for every task.

    In training the short side is resized to 0.5 to 2 times `short_side`, colors are jittered and a crop is
    taken. The original draws one of 16 sizes in that range and bounds the long side as well.
    """
    factor = short_side / min(crop)
    return DataConfig(
        crop=crop,
        jitter=ScaleJitter(low=0.5 * factor, high=2.0 * factor, relative_to="short_side"),
        color=1.0,
        resize=ShortSide(size=short_side, longest=longest),
    )


def poly_training(steps: int) -> TrainingConfig:
    """The polynomial schedule of ADE20K, Cityscapes and Mapillary Vistas: no warm-up."""
    return TrainingConfig(steps=steps, schedule="poly", warmup_steps=0)
