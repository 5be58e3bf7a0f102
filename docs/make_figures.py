"""Draw the figures of the site from real models: `python docs/make_figures.py`, or `make figures`.

The figures of "Three models, one decoder" come from the presets DETR, MaskFormer and Mask2Former with random
weights: an image goes through each, and what its modules take and give is drawn. The figures of the lecture's
path come from the models of the package, and from a DETR on generated shapes that is trained first where
`--detr` names no folder with one (some minutes).
"""

import argparse
import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

import unimask
from unimask.checkpoints.images import load_model, resolve_weights
from unimask.data.open import open_dataset
from unimask.data.read import read_image
from unimask.models.build import build_model
from unimask.ops.boxes import box_iou, cxcywh_to_xyxy
from unimask.presets import PRESETS
from unimask.results.attention_drawing import draw_attention
from unimask.structures import Size

HERE = Path(__file__).parent
FIGURES = HERE / "figures"
EXAMPLE = HERE.parent / "examples" / "nuclei_1.png"
MODELS = {
    "detr": ("detr_resnet50", 91),
    "maskformer": ("maskformer_coco_panoptic_resnet50", 133),
    "mask2former": ("coco_panoptic_resnet50", 133),
}
CROWDED = HERE.parent / "examples" / "nuclei_2.png"
SIDE = 256  # of the image that goes through them
COLORS = {"cross": "#cfe0fb", "self": "#cdeccd", "feedforward": "#e4e4e4"}
NAMES = {"cross": "cross-attention", "self": "self-attention", "feedforward": "feed-forward"}
INK, LINE = "#1f2328", "#57606a"
DETR_SETTINGS = {
    "losses.no_object_weight": 0.5,
    "model.queries": 12,
    "model.stride": 16,
    "data.color": 0,
    "data.crop": [96, 128],
    "data.jitter.low": 0.9,
    "data.jitter.high": 1.2,
    "data.resize.size": 96,
    "data.resize.longest": 128,
    "training.steps": 800,
    "training.batch_size": 16,
    "training.learning_rate": 5e-4,
    "training.backbone_multiplier": 0.5,
    "training.milestones": [0.8],
    "training.ema_decay": 0.99,
    "training.evaluate_every": 0,
    "training.workers": 0,
}


# what happens in a model


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One decoder layer as it was called."""

    sublayers: tuple[str, ...]  # in their order
    stride: int  # of the memory
    visible: Tensor | None  # queries x cells, True where a query may attend; None: everywhere


@dataclass(frozen=True, kw_only=True)
class Walk:
    """What the modules of a model gave while one image went through it."""

    maps: dict[int, tuple[int, ...]]  # of the backbone: stride -> shape
    neck: tuple[str, ...]  # the lines of the box between backbone and decoder
    queries: tuple[int, int]
    learned: bool  # query features
    layers: tuple[Layer, ...]
    outputs: tuple[tuple[int, ...], ...]  # shapes of what the heads gave
    heads: str
    dropout: float


def neck_lines(model: nn.Module) -> tuple[str, ...]:
    """Describe what refines the backbone's maps, with the number of its encoder layers."""
    encoders = [one for one in model.modules() if type(one).__name__.endswith("Encoder")]
    count = len(encoders[0].layers) if encoders else 0  # type: ignore[arg-type]
    if hasattr(model, "pixel_decoder"):
        kind = type(encoders[0]).__name__ if encoders else "no encoder"
        return type(model.pixel_decoder).__name__, f"{kind}, {count} layers", "and mask features, stride 4"
    return type(model.encoder).__name__, f"{count} layers on stride {model.stride}"


@torch.no_grad()
def walk(model: nn.Module, pixels: Tensor, dropout: float) -> Walk:
    """Send pixels (1, 3, height, width) through a model, and note what its modules take and give."""
    decoder = model.query_decoder
    seen: dict[str, object] = {}
    layers: list[Layer] = []
    hooks = [
        model.backbone.register_forward_hook(lambda module, inputs, maps: seen.update(maps=dict(maps))),
        decoder.register_forward_hook(lambda module, inputs, outputs: seen.update(outputs=outputs)),
    ]

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        visible, names = inputs[3], tuple(name for name, _ in layer.named_children())
        index = len(layers)
        mask = None if visible is None or bool(visible.all()) else visible[0]
        layers.append(Layer(sublayers=names, stride=decoder.strides[index], visible=mask))

    hooks += [layer.register_forward_pre_hook(note) for layer in decoder.layers]
    model.eval()(pixels)
    for hook in hooks:
        hook.remove()
    return Walk(
        maps={stride: tuple(one.shape[1:]) for stride, one in sorted(seen["maps"].items())},  # type: ignore[attr-defined]
        neck=neck_lines(model),
        queries=tuple(decoder.query_positions.weight.shape),  # type: ignore[arg-type]
        learned=isinstance(decoder.query_features, nn.Embedding),
        layers=tuple(layers),
        outputs=tuple(tuple(one.shape) for one in seen["outputs"]),  # type: ignore[attr-defined]
        heads=type(decoder.heads).__name__,
        dropout=dropout,
    )


def walk_of(name: str) -> Walk:
    """Build a preset's model with random weights, and send the example through it."""
    preset, classes = MODELS[name]
    config = PRESETS[preset]().model
    torch.manual_seed(7)
    image = Image.fromarray(read_image(EXAMPLE).permute(1, 2, 0).numpy()).resize((SIDE, SIDE))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    decoder = getattr(config, "query_decoder", config)
    return walk(build_model(config, classes), pixels, decoder.dropout)


# drawing


class Svg:
    """Shapes on a white sheet."""

    def __init__(self, width: int, height: int, title: str) -> None:
        style = 'font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="13"'
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" {style} '
            f'fill="{INK}" role="img"><title>{title}</title><rect width="100%" height="100%" fill="white"/>'
            f'<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{LINE}"/></marker></defs>'
        ]

    def box(self, x: float, y: float, w: float, h: float, fill: str, lines: Sequence[str] = ()) -> None:
        """Draw a box with centred lines, the first one bold if there are several."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="4" fill="{fill}" stroke="{LINE}"/>'
        )
        for index, line in enumerate(lines):
            weight = "600" if index == 0 and len(lines) > 1 else "400"
            self.text(x + w / 2, y + h / 2 + 17 * (index - (len(lines) - 1) / 2) + 4.5, line, weight=weight)

    def text(
        self, x: float, y: float, line: str, anchor: str = "middle", weight: str = "400", size: int = 13
    ) -> None:
        """Write a line."""
        self.parts.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}" '
            f'font-size="{size}">{line}</text>'
        )

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """Draw an arrow."""
        self.parts.append(
            f'<line x1="{x}" y1="{y}" x2="{to_x}" y2="{to_y}" stroke="{LINE}" stroke-width="1.5" '
            f'marker-end="url(#a)"/>'
        )

    def image(self, x: float, y: float, side: float, image: Image.Image) -> None:
        """Put a square image, its pixels as they are."""
        file = io.BytesIO()
        image.save(file, "PNG", optimize=True)
        data = base64.b64encode(file.getvalue()).decode()
        self.parts.append(
            f'<image x="{x}" y="{y}" width="{side}" height="{side}" style="image-rendering:pixelated" '
            f'preserveAspectRatio="none" href="data:image/png;base64,{data}"/>'
        )
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="none" stroke="{LINE}"/>'
        )

    def save(self, path: Path) -> None:
        """Write the file."""
        path.write_text("\n".join([*self.parts, "</svg>", ""]), encoding="utf-8")


def times(shape: Sequence[int]) -> str:
    """Write a shape: 256 x 8 x 8."""
    return " \u00d7 ".join(map(str, shape))


def mask_image(visible: Tensor | None, cells: int) -> Image.Image:
    """Draw a map of cells: blue where the query may attend, white where not."""
    mask = np.ones((cells, cells), bool) if visible is None else visible.reshape(cells, cells).numpy()
    return Image.fromarray(np.where(mask[..., None], (66, 120, 200), (255, 255, 255)).astype(np.uint8))


def draw_model(title: str, found: Walk, path: Path) -> None:
    """Draw the stations of a model from the image to what its heads give."""
    left, column = 112, 70
    width = 764
    sheet = Svg(width, 462, title)
    shapes = [f"{stride}: {times(shape)}" for stride, shape in found.maps.items()]
    sheet.box(8, 16, 96, 104, "#fff", ("image", f"3 \u00d7 {SIDE}²"))
    sheet.arrow(104, 68, 128, 68)
    sheet.box(130, 16, 196, 104, "#fff3cd", ("backbone (stride: shape)", *shapes))
    sheet.arrow(326, 68, 350, 68)
    sheet.box(352, 16, 216, 104, "#fde2d0", found.neck)
    sheet.arrow(568, 68, 592, 68)
    strides = list(dict.fromkeys(layer.stride for layer in found.layers))
    sheet.text(676, 28, "memory", weight="600")
    side_by_side = 596
    for stride in strides:
        side = {32: 22, 16: 44, 8: 74}[stride]
        sheet.box(side_by_side, 38, side, side, "#cfe0fb")
        sheet.text(side_by_side + side / 2, 38 + side + 14, f"{SIDE // stride}²", size=11)
        side_by_side += side + 10
    features = "learned, supervised" if found.learned else "zeros"
    sheet.text(
        8,
        160,
        f"{times(found.queries)} queries; their features start as {features}; dropout {found.dropout:g}",
        "start",
    )
    for row, text in (
        (196, "memory"),
        (222, "first"),
        (252, "then"),
        (282, "then"),
        (334, "attention"),
        (350, "mask of"),
        (366, "query 1"),
        (384, "cells in it"),
    ):
        sheet.text(left - 10, row, text, "end", size=12)
    for index, layer in enumerate(found.layers):
        x = left + index * column
        sheet.text(x + 31, 180, f"layer {index + 1}", weight="600", size=12)
        sheet.text(x + 31, 197, f"stride {layer.stride}", size=12)
        for place, sublayer in enumerate(layer.sublayers):
            sheet.box(
                x,
                206 + place * 30,
                62,
                26,
                COLORS[sublayer],
                ({"feedforward": "feed-fwd"}.get(sublayer, sublayer),),
            )
        sheet.image(
            x, 306, 62, mask_image(None if layer.visible is None else layer.visible[0], SIDE // layer.stride)
        )
        share = 1.0 if layer.visible is None else float(layer.visible[0].float().mean())
        sheet.text(x + 31, 384, f"{share:.0%}", size=11)
        if index:
            sheet.arrow(x - 8, 249, x - 1, 249)
    deep = found.outputs[0][0]
    when = "before the first layer and after each" if deep > len(found.layers) else "after each layer"
    classes, what = (shape[2:] for shape in found.outputs[:2])
    kind = "mask embeddings" if found.heads == "MaskHeads" else "boxes"
    sheet.box(
        8,
        400,
        width - 16,
        52,
        "#efe3fb",
        (
            f"{found.heads}, {when}: {deep} predictions",
            f"class logits {times(classes)}, {kind} {times(what)}",
        ),
    )
    sheet.save(path)


# the lecture's path


def draw_translation(folder: Path) -> None:
    """Draw the three attentions of the small translator, the last layer's heads side by side."""
    found = unimask.load_translator("en-de").attention("A man rides a red bike.")
    source, target, maps = found.source_pieces, found.target_pieces, found.maps
    for name, layers, rows, columns in (
        ("self_attention", maps.encoder, source, source),
        ("masked_self_attention", maps.decoder, target, target),
        ("cross_attention", maps.cross, target, source),
    ):
        draw_attention(layers[-1][0], rows, columns).save(folder / f"{name}.png", optimize=True)


def labelled(images: Sequence[tuple[str, Image.Image]], size: Size, columns: int) -> Image.Image:
    """Put images side by side, resized to (width, height), each with a line above it."""
    gap, above = 10, 20
    rows = -(-len(images) // columns)
    width, height = size[0] + gap, size[1] + above + gap
    sheet = Image.new("RGB", (columns * width - gap, rows * height - gap), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (line, image) in enumerate(images):
        x, y = index % columns * width, index // columns * height
        pen.text((x, y + 3), line, fill="black", font_size=13)
        sheet.paste(image.convert("RGB").resize(size, Image.Resampling.NEAREST), (x, y + above))
    return sheet


def as_image(pixels: Tensor) -> Image.Image:
    """Make (3, height, width) from 0 to 255 an image."""
    return Image.fromarray(pixels.to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def grey(values: Tensor) -> Image.Image:
    """Draw values from 0 to 1 as grey, dark to bright."""
    return Image.fromarray((values.clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def dimmed(image: Tensor, visible: Tensor) -> Image.Image:
    """Draw the image (3, height, width), dark where a map of cells is False."""
    cells = visible[None, None].float()
    mask = nn.functional.interpolate(cells, tuple(image.shape[1:]), mode="nearest")[0, 0]
    return as_image(image * (0.15 + 0.85 * mask))


@torch.no_grad()
def draw_masks(folder: Path) -> None:
    """Draw how the shipped model makes masks, and what its queries may attend to in each layer."""
    model, model_file = load_model(resolve_weights("nuclei"))
    backbone = model_file.experiment.model.backbone
    tile = read_image(CROWDED)[:, 0:100, 150:250]
    image = nn.functional.interpolate(tile[None].float(), (128, 128), mode="bilinear")[0]
    mean, std = (torch.tensor(one)[:, None, None] for one in (backbone.image_mean, backbone.image_std))
    pixels = ((image - mean) / std)[None]
    visible = model.eval().attention_masks(pixels)
    prediction = model(pixels)
    logits = torch.einsum("qc,chw->qhw", prediction.mask_embeddings[-1, 0], prediction.mask_features[-1, 0])
    nucleus = prediction.class_logits[-1, 0].softmax(-1)[:, 0]
    areas = (logits > 0).flatten(1).sum(1)
    chosen = [int(q) for q in nucleus.argsort(descending=True) if areas[q] > 12][:4]
    image = (image / image.max()).sqrt() * 255  # for the eye; the model saw the image as it is
    photo = as_image(image)
    features = prediction.mask_features[-1, 0]
    spread = features.flatten(1).std(dim=1).argsort(descending=True)[:3]
    shown = [("image", photo)]
    for channel in spread.tolist():
        one = features[channel]
        shown.append((f"mask feature {channel}", grey((one - one.min()) / (one.max() - one.min()))))
    shown += [(f"query {q}, nucleus {nucleus[q]:.2f}", grey(logits[q].sigmoid())) for q in chosen[:4]]
    labelled(shown, (180, 180), 4).save(folder / "maskformer_masks.png", optimize=True)
    strides = model.query_decoder.strides
    shown = []
    for query in chosen[:3]:
        for index, mask in enumerate(visible):
            line = f"query {query}, layer {index + 1} (1/{strides[index]})"
            shown.append((line, dimmed(image, mask[0, query])))
    labelled(shown, (150, 150), len(visible)).save(folder / "mask2former_masked_attention.png", optimize=True)


def apart(scores: Tensor, boxes: Tensor, count: int) -> list[int]:
    """Choose queries of high scores whose boxes (center, size) overlap little."""
    corners = cxcywh_to_xyxy(boxes)
    overlaps, _ = box_iou(corners[:, None], corners)
    chosen: list[int] = []
    for query in scores.argsort(descending=True).tolist():
        if len(chosen) < count and all(overlaps[query, other] < 0.2 for other in chosen):
            chosen.append(query)
    return chosen


@torch.no_grad()
def draw_detr(folder: Path, trained: Path) -> None:
    """Draw an image of generated shapes and, for queries of a small DETR, the box and the cross-attention."""
    model, model_file = load_model(trained)
    config = model_file.experiment.model
    samples = open_dataset("shapes:96x128", "val", "detection")
    mean, std = (
        torch.tensor(one)[:, None, None] for one in (config.backbone.image_mean, config.backbone.image_std)
    )
    shares: list[Tensor] = []
    cross = model.eval().query_decoder.layers[-1].cross.attention
    cross.register_forward_pre_hook(lambda module, inputs: shares.append(module.shares(*inputs[:2])))
    predictions = [model(((samples[i].image.float() - mean) / std)[None]) for i in range(12)]
    scores = [one.class_logits[-1, 0].softmax(-1)[:, :-1].max(-1).values for one in predictions]
    index = max(range(12), key=lambda one: float(scores[one].topk(3).values.sum()))
    image, boxes = samples[index].image, predictions[index].boxes[-1, 0]
    height, width = image.shape[1:]
    size = (256, 192)
    shown = [("image", as_image(image).resize(size))]
    for query in apart(scores[index], boxes, 3):
        share = shares[index][0, :, query].mean(0).reshape(-(-height // config.stride), -1)
        heat = nn.functional.interpolate((share / share.max())[None, None], (height, width), mode="bilinear")[
            0, 0
        ]
        lit = as_image(image * (0.25 + 0.75 * heat)).resize(size)
        left, top, right, bottom = (cxcywh_to_xyxy(boxes[query]) * torch.tensor([*size, *size])).tolist()
        ImageDraw.Draw(lit).rectangle((left, top, right, bottom), outline="yellow", width=2)
        label = int(predictions[index].class_logits[-1, 0, query, :-1].argmax())
        shown.append((f"query {query}: {model_file.categories.names[label]} {scores[index][query]:.2f}", lit))
    labelled(shown, size, 4).save(folder / "detr_queries.png", optimize=True)


def train_detr(output: Path) -> Path:
    """Train a small DETR on generated shapes; the folder of its model comes back."""
    experiment = unimask.override(PRESETS["detr_small"](), DETR_SETTINGS)
    where = {"initial": "imagenet", "device": "cpu", "resume": True}
    unimask.train(experiment, "shapes", output, task="detection", **where)
    return output / "model"


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the figures into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=FIGURES)
    parser.add_argument(
        "--detr", type=Path, default=None, help="a DETR on shapes; without it, one is trained"
    )
    parser.add_argument("--only", choices=("models", "lecture"), default=None)
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    if given.only != "lecture":
        for name in MODELS:
            draw_model(name, walk_of(name), given.output / f"{name}.svg")
    if given.only != "models":
        draw_translation(given.output)
        draw_masks(given.output)
        draw_detr(given.output, given.detr or train_detr(HERE.parent / "runs" / "figures_detr"))


if __name__ == "__main__":
    main()
