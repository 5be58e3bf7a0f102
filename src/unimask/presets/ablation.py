"""What turns MaskFormer into Mask2Former, one thing at a time; and how queries of an EoMT attend.

Each row adds one thing to the row above it; the last row is the experiment itself. So a row is the experiment
with the `without` of all later rows. The paper's tables take one thing away from the whole model instead:
`override(experiment, row.without)`.

Source: Mask2Former (2112.01527), Tables 4 and 5; EoMT (2503.19108), Table 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from unimask.config.images import AnyModelConfig, EomtConfig, Experiment, ModelConfig
from unimask.config.overrides import override
from unimask.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that the last row has and the rows above lack (the first row: nothing)."""

    name: str
    title: str
    without: Mapping[str, object]  # the settings that take it away


ROWS: tuple[Row, ...] = (
    Row(name="maskformer", title="MaskFormer", without={}),
    # Sec. 3.2.1, Table 4a and c
    Row(
        name="masked_attention",
        title="+ masked attention",
        without={"model.query_decoder.visibility": "full"},
    ),
    # Sec. 3.2.2, Table 4a and d
    Row(
        name="multi_scale",
        title="+ high-resolution features in turn",
        without={"model.query_decoder.memory_strides": (32,), "model.query_decoder.level_embedding": False},
    ),
    # Sec. 4.1, Table 4e
    Row(
        name="deformable",
        title="+ deformable pixel decoder",
        without={"model.pixel_decoder.kind": "pyramid", "model.pixel_decoder.strides": (32,)},
    ),
    # Sec. 3.2.3, Table 4b: the next three
    Row(
        name="cross_attention_first",
        title="+ cross-attention first",
        without={"model.query_decoder.order": ("self", "cross", "feedforward")},
    ),
    Row(
        name="learned_queries",
        title="+ learned, supervised query features",
        without={
            "model.query_decoder.query_features": "zeros",
            "model.query_decoder.predict_before_layers": False,
        },
    ),
    Row(
        name="no_dropout",
        title="+ no dropout",
        without={"model.query_decoder.dropout": 0.1, "model.pixel_decoder.dropout": 0.1},
    ),
    # Sec. 4.1
    Row(
        name="cross_entropy",
        title="+ cross-entropy instead of focal loss, other weights",
        without={
            "losses.mask_term": "focal",
            "losses.class_weight": 1.0,
            "losses.mask_weight": 20.0,
            "losses.dice_weight": 1.0,
        },
    ),
    # Sec. 3.3, Table 5
    Row(
        name="points",
        title="+ points instead of full masks",
        without={"losses.sampling": "pixels"},
    ),
)
"""From MaskFormer to Mask2Former, in the order of adding."""


EOMT_ROWS: tuple[Row, ...] = (
    Row(name="open", title="EoMT, attention never masked", without={}),
    Row(
        name="masked",
        title="+ masked attention, a prediction before each block with queries",
        without={"model.attention": "open"},
    ),
    Row(name="annealed", title="+ masks annealed, open when trained", without={"model.attention": "masked"}),
)
"""How the queries of an EoMT attend."""


def rows_of(model: AnyModelConfig) -> tuple[Row, ...]:
    """Return the rows of which a model is the last.

    Raises:
        ConfigError: it is neither a Mask2Former nor an annealed EoMT.
    """
    if isinstance(model, EomtConfig):
        if model.attention != "annealed":
            raise ConfigError("model.attention", "the last row is an annealed EoMT; take 'annealed'")
        return EOMT_ROWS
    if not isinstance(model, ModelConfig):
        raise ConfigError("model.kind", "the last row is a Mask2Former or an EoMT; take 'masks' or 'eomt'")
    if model.pixel_decoder.kind != "deformable":
        raise ConfigError("model.pixel_decoder.kind", "the last row is a Mask2Former; take 'deformable'")
    return ROWS


def row_experiment(base: Experiment, name: str) -> Experiment:
    """Return the experiment of a row: `base` without what the rows after it add.

    Raises:
        ConfigError: there is no such row, or `base` is no last row.
    """
    rows = rows_of(base.model)
    names = [row.name for row in rows]
    if name not in names:
        raise ConfigError(name, f"no such row; there are {', '.join(names)}")
    later = reversed(rows[names.index(name) + 1 :])  # what two rows change, the first of them takes away
    return override(base, {path: value for row in later for path, value in row.without.items()})
