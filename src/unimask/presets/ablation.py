"""The rows of the ablations: from MaskFormer to Mask2Former, and the attention of an EoMT's queries.

There are two kinds (`Story`). In `add`, each row adds one component to the row above it, and the last row is
the experiment itself: a row is the experiment with the `without` settings of all later rows. In `remove`, as
in the paper's tables, the first row is the experiment itself, and every other row removes one component.

Source: Mask2Former (2112.01527), Tables 4 and 5; EoMT (2503.19108), Table 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from unimask.config.images import Experiment
from unimask.config.models import AnyModelConfig, EomtConfig, ModelConfig
from unimask.config.overrides import override
from unimask.config.tasks import Task
from unimask.errors import ConfigError, choices

Story = Literal["add", "remove"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One component of the experiment; none in the row of the starting point and that of the whole model."""

    name: str
    title: str  # in `add`
    without: Mapping[str, object]  # the settings that remove the component
    removed: str = ""  # title in `remove`; empty if the paper does not remove the component alone
    # change of the paper's model without it, in percentage points: AP on COCO, PQ on COCO, mIoU on ADE20K
    in_paper: Mapping[Task, float] = field(default_factory=dict)


ROWS: tuple[Row, ...] = (
    Row(name="maskformer", title="MaskFormer", without={}),
    # Sec. 3.2.1, Table 4a and c
    Row(
        name="masked_attention",
        title="+ masked attention",
        without={"model.query_decoder.visibility": "full"},
        removed="without masked attention",
        in_paper={"instance": -5.9, "panoptic": -4.8, "semantic": -1.7},
    ),
    # Sec. 3.2.2, Table 4a and d
    Row(
        name="multi_scale",
        title="+ high-resolution features in turn",
        without={"model.query_decoder.memory_strides": (32,), "model.query_decoder.level_embedding": False},
        removed="without high-resolution features in turn",
        in_paper={"instance": -2.2, "panoptic": -1.7, "semantic": -1.1},
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
        removed="self-attention first",
        in_paper={"instance": -0.5, "panoptic": -0.3, "semantic": -0.9},
    ),
    Row(
        name="learned_queries",
        title="+ learned, supervised query features",
        without={
            "model.query_decoder.query_features": "zeros",
            "model.query_decoder.predict_before_layers": False,
        },
        removed="query features zero, not supervised",
        in_paper={"instance": -0.8, "panoptic": -0.7, "semantic": -1.8},
    ),
    Row(
        name="no_dropout",
        title="+ no dropout",
        without={"model.query_decoder.dropout": 0.1, "model.pixel_decoder.dropout": 0.1},
        removed="with dropout",
        in_paper={"instance": -0.7, "panoptic": -0.5, "semantic": -0.2},
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
        removed="full masks instead of points",
        in_paper={"instance": -2.7, "panoptic": -1.6, "semantic": -1.3},
    ),
)
"""From MaskFormer to Mask2Former, in the order in which components are added."""

WHOLE = Row(name="whole", title="the whole model", without={})

REMOVED_ROWS: tuple[Row, ...] = (
    WHOLE,
    *(replace(row, title=row.removed) for row in ROWS if row.removed),
)
"""The whole model, then without each component that the paper removes alone (Table 4a to c, Table 5)."""


EOMT_ROWS: tuple[Row, ...] = (
    Row(name="open", title="EoMT, attention never masked", without={}),
    Row(
        name="masked",
        title="+ masked attention, a prediction before each block with queries",
        without={"model.attention": "open"},
    ),
    Row(name="annealed", title="+ masks annealed, open when trained", without={"model.attention": "masked"}),
)
"""The rows of an EoMT: how the attention of its queries is masked."""


def rows_of(model: AnyModelConfig, story: Story = "add") -> tuple[Row, ...]:
    """Return the rows of a model's ablation, of which it is the last (`add`) or the first (`remove`).

    Raises:
        ConfigError: it is neither a Mask2Former nor an annealed EoMT, or `story` is "remove" for an EoMT.
    """
    if isinstance(model, EomtConfig):
        if story != "add":
            raise ConfigError("story", "of an EoMT is add: each row has one thing more than the one above")
        if model.attention != "annealed":
            raise ConfigError("model.attention", "the last row is an annealed EoMT; take 'annealed'")
        return EOMT_ROWS
    if not isinstance(model, ModelConfig):
        raise ConfigError("model.kind", "the whole model is a Mask2Former or an EoMT; take 'masks' or 'eomt'")
    if model.pixel_decoder.kind != "deformable":
        raise ConfigError("model.pixel_decoder.kind", "the whole model is a Mask2Former; take 'deformable'")
    return ROWS if story == "add" else REMOVED_ROWS


def row_experiment(base: Experiment, name: str, story: Story = "add") -> Experiment:
    """Return the experiment of a row: `base` without what later rows add, or without one component.

    Raises:
        ConfigError: there is no such row, or the model of `base` has no ablation (see `rows_of`).
    """
    rows = rows_of(base.model, story)
    names = [row.name for row in rows]
    if name not in names:
        raise ConfigError(name, f"no such row; {choices(name, names)}")
    place = names.index(name)
    if story == "remove":
        return override(base, dict(rows[place].without))
    later = reversed(rows[place + 1 :])  # if two rows change one setting, the earlier row decides
    return override(base, {path: value for row in later for path, value in row.without.items()})
