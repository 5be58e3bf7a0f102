"""The decoder layer by layer: where a query may attend, where it attends, what it predicts."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from unimask.config.models import tasks_of
from unimask.inference.predictions import TilePrediction
from unimask.inference.segmenter import Segmenter
from unimask.models.eomt import Eomt, Foreground
from unimask.models.mask_classifier import MaskClassifier
from unimask.models.query_decoder import QueryDecoder
from unimask.nn.attention import Attention, watched
from unimask.nn.transformer import CrossSublayer
from unimask.serve.answers import Record, packed
from unimask.serve.limits import Refusal
from unimask.structures import Categories, MaskPrediction, Size

MOST_QUERIES = 12  # that are offered beside the chosen one
MOST_CLASSES = 3  # that are named with their probabilities


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """A decoder layer, and which prediction (index) stands after it. Step 0 may be before all layers."""

    stride: int  # of the memory that the layer attends to; 0 before all layers
    visible: Bool[Tensor, "queries _rows _columns"]
    shares: Float[Tensor, "queries _rows _columns"]  # of its attention to it, mean of the heads
    prediction: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Watched:
    """The steps of the decoder while the model predicted one tile of an image."""

    view: TilePrediction
    steps: tuple[Step, ...]
    prediction: MaskPrediction  # of all layers; a batch of one


def why_not(segmenter: Segmenter) -> str:
    """Return a sentence about why the layers of a model cannot be shown; empty if they can."""
    if isinstance(segmenter.model, Eomt):
        return ""
    if not isinstance(segmenter.model, MaskClassifier):
        if "detection" not in tasks_of(segmenter.model_file.experiment.model):
            return "An exported model tells only its last answer. Serve the model folder to look inside."
        return "This model finds boxes: its queries have no masks that could restrict their attention."
    if segmenter.model.per_pixel:
        return "This model classifies each pixel: it has no masks to follow from layer to layer."
    return ""


def watch(segmenter: Segmenter, image: Tensor, view: TilePrediction) -> Watched:
    """Run the model on a tile of the image again, and record the steps of its decoder.

    Raises:
        Refusal: the layers of the model cannot be shown.
    """
    reason = why_not(segmenter)
    if reason:
        raise Refusal(422, reason)
    model = segmenter.model
    batch = segmenter.predictor.preprocess([view.pixels(image)])
    if isinstance(model, Eomt):
        with torch.inference_mode(), segmenter.predictor.autocast():
            all_blocks, steps = _watch_eomt(model, batch.pixels)
        return Watched(view=view, steps=steps, prediction=all_blocks)
    assert isinstance(model, MaskClassifier)
    assert isinstance(model.query_decoder, QueryDecoder)
    prediction = segmenter.predictor.forward(batch)
    assert isinstance(prediction, MaskPrediction)
    with (
        torch.inference_mode(),
        segmenter.predictor.autocast(),
        watched(_cross_attentions(model.query_decoder)) as shares,
    ):
        visible = model.attention_masks(batch.pixels)
    return Watched(
        view=view,
        steps=_steps(model.query_decoder, [one[0].mean(dim=0) for one in shares], visible),
        prediction=prediction,
    )


def _watch_eomt(
    model: Eomt, pixels: Float[Tensor, "1 3 height width"]
) -> tuple[MaskPrediction, tuple[Step, ...]]:
    """Return a prediction before and after each block with queries, and what those attend to."""
    visible: list[Tensor] = []

    def rule(block: int, foreground: Foreground) -> Tensor:
        mask = foreground()  # makes the model predict here, also where nothing is masked
        allowed = model.rule(block, lambda: mask)
        visible.append(torch.ones_like(mask) if allowed is None else allowed)
        return visible[-1]

    backbone = model.backbone
    grid = (pixels.shape[2] // backbone.patch, pixels.shape[3] // backbone.patch)
    attentions = [block.get_submodule("attention") for block in backbone.blocks[model.first_query_block :]]
    with watched(attentions) as shares:
        prediction = model.predict(pixels, rule)
    nowhere = torch.zeros((model.queries.num_embeddings, 1, 1))
    steps = [Step(stride=0, visible=nowhere > 0, shares=nowhere, prediction=0)]
    for index, (mask, share) in enumerate(zip(visible, shares, strict=True), start=1):
        to_patches = share[0].mean(dim=0)[:, -mask.shape[2] :]
        step = Step(
            stride=backbone.patch,
            visible=mask[0].unflatten(1, grid),
            shares=to_patches.unflatten(1, grid),
            prediction=index,
        )
        steps.append(step)
    return prediction, tuple(steps)


def _cross_attentions(decoder: QueryDecoder) -> list[Attention]:
    """Return the attention to the memory of each layer."""
    return [
        sublayer.attention
        for layer in decoder.layers
        for sublayer in layer.children()
        if isinstance(sublayer, CrossSublayer)
    ]


def _steps(
    decoder: QueryDecoder, shares: list[Tensor], visible: tuple[Bool[Tensor, "1 queries _h _w"], ...]
) -> tuple[Step, ...]:
    unguided = len(decoder.strides) - len(visible)  # layers before the first prediction attend everywhere
    steps = []
    if decoder.first_prediction == 0:
        queries = len(shares[0])
        nowhere = torch.zeros((queries, 1, 1))
        steps.append(Step(stride=0, visible=nowhere > 0, shares=nowhere, prediction=0))
    sizes = {
        stride: (mask.shape[2], mask.shape[3])
        for stride, mask in zip(decoder.strides[unguided:], visible, strict=True)
    }
    for index, (stride, share) in enumerate(zip(decoder.strides, shares, strict=True)):
        size = sizes.get(stride)
        if size is None:  # the only layer of its stride is unguided, so its size is not known
            continue
        maps = share.unflatten(1, size)
        mask = visible[index - unguided][0] if index >= unguided else torch.ones_like(maps, dtype=torch.bool)
        prediction = index + 1 - decoder.first_prediction
        steps.append(Step(stride=stride, visible=mask, shares=maps, prediction=prediction))
    return tuple(steps)


def query_of(watched_view: Watched, mask: Bool[Tensor, "height width"], label: int) -> int:
    """Return the query that a segment came from: the one whose final mask and class fit it best.

    `mask` is the segment in the view's window. A stuff segment may be of several queries: the best one.
    """
    prediction, placement = watched_view.prediction, watched_view.view.placement
    features = prediction.features()[0].float()
    said = (prediction.mask_embeddings[-1, 0].float() @ features.flatten(1)).sigmoid()
    size: Size = (features.shape[1], features.shape[2])
    wanted = on_canvas(mask, placement.resized, placement.canvas, size).flatten().to(said)
    overlap = torch.minimum(said, wanted).sum(1) / torch.maximum(said, wanted).sum(1).clamp(min=1e-6)
    probability = prediction.class_logits[-1, 0].float().softmax(dim=1)[:, label]
    return int((overlap * (0.05 + probability)).argmax())


def on_canvas(
    mask: Bool[Tensor, "height width"], resized: Size, canvas: Size, size: Size
) -> Float[Tensor, "rows columns"]:
    """Return how much of each cell the mask covers, in a map of `size` over the canvas; padding is 0."""
    covered = [max(1, round(cells * part / side)) for cells, part, side in zip(size, resized, canvas)]
    inside = functional.interpolate(mask[None, None].float(), covered, mode="area")[0, 0]
    return functional.pad(inside, (0, size[1] - covered[1], 0, size[0] - covered[0]))


def describe(watched_view: Watched, query: int, categories: Categories) -> Record:
    """Return all steps of one query, as the page draws them, and the queries that can be chosen instead.

    Maps cover the canvas: `extent` says how many times as wide and high it is as the image's part in it.
    """
    prediction = watched_view.prediction
    if not 0 <= query < prediction.class_logits.shape[2]:
        raise Refusal(422, f"There is no query {query}; there are {prediction.class_logits.shape[2]}.")
    left, top, right, bottom = watched_view.view.box
    placement = watched_view.view.placement
    names = (*categories.names, "no object")
    probabilities = prediction.class_logits[:, 0].float().softmax(dim=2)
    steps = []
    for step in watched_view.steps:
        embedding = prediction.mask_embeddings[step.prediction, 0, query].float()
        features = prediction.features(step.prediction)[0].float()
        mask = torch.einsum("c,chw->hw", embedding, features).sigmoid()
        share = step.shares[query]
        best = probabilities[step.prediction, query].topk(min(MOST_CLASSES, len(names)))
        steps.append(
            {
                "stride": step.stride,
                "mask": _map(mask),
                "visible": _map(step.visible[query].float()),
                "attention": _map(share / share.max().clamp(min=1e-9)),
                "seen": round(float(step.visible[query].float().mean()), 4),
                "classes": [
                    [names[label], round(value, 4)]
                    for label, value in zip(best.indices.tolist(), best.values.tolist())
                ],
            }
        )
    return {
        "query": query,
        "window": [left, top, right - left, bottom - top],
        "extent": [
            placement.canvas[1] / placement.resized[1],
            placement.canvas[0] / placement.resized[0],
        ],
        "masked": any(bool((~step.visible).any()) for step in watched_view.steps if step.stride),
        "steps": steps,
        "queries": _choices(probabilities[-1], query, names),
    }


def _choices(
    probabilities: Float[Tensor, "queries classes"], query: int, names: tuple[str, ...]
) -> list[Record]:
    """Return the chosen query and the surest others."""
    best, labels = probabilities[:, :-1].max(dim=1)
    order = best.argsort(descending=True)[:MOST_QUERIES].tolist()
    chosen = sorted({query, *order})
    return [
        {"query": one, "category": names[int(labels[one])], "score": round(float(best[one]), 4)}
        for one in chosen
    ]


def _map(values: Float[Tensor, "rows columns"]) -> Record:
    """Return values from 0 to 1 as bytes."""
    scaled = (values.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return {"rows": scaled.shape[0], "columns": scaled.shape[1], "data": packed(scaled)}
