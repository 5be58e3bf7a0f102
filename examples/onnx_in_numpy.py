"""Segment an image with an exported model: `python examples/onnx_in_numpy.py MODEL.onnx IMAGE`.

Gives the segments of `unimask predict` for every model of masks, also of those that see an image in tiles.
Copy the file: it needs numpy, onnxruntime and Pillow, not unimask and not PyTorch. What each step means:
docs/export.md.
"""

import argparse
import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

TILES_AT_ONCE = 16


class Model:
    """An ONNX file with what its metadata says."""

    def __init__(self, path):
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        metadata = self.session.get_modelmeta().custom_metadata_map
        about = json.loads(metadata["unimask"])
        self.joining = json.loads(metadata["unimask.joining"])
        self.task = about["task"]
        self.names = [category["name"] for category in about["categories"]]
        self.is_thing = np.array([category["is_thing"] for category in about["categories"]])
        self.data = about["experiment"]["data"]
        self.limits = about["experiment"]["postprocess"]
        self.per_pixel = about["experiment"]["model"].get("classification") == "pixels"
        backbone = about["experiment"]["model"]["backbone"]
        self.mean, self.std = (np.array(backbone[f"image_{name}"], np.float32) for name in ("mean", "std"))

    def run(self, canvases):
        """Class logits, mask embeddings and mask features of canvases (batch, 3, height, width)."""
        return self.session.run(["class_logits", "mask_embeddings", "mask_features"], {"pixels": canvases})


def segment(model, image, task=""):
    """The segments of an image (height, width, 3; 8 bits), as (label, score, mask), by falling score."""
    task = task or model.task
    tiles = tiles_of(image.shape[:2], model.data["view"])
    parts = [
        (tile, one) for group in grouped(model, image, tiles) for tile, one in predicted(model, group, task)
    ]
    if len(parts) == 1:
        return parts[0][1]
    parts.sort(key=lambda part: tiles.index(part[0]))
    unites = ~model.is_thing if task == "panoptic" else np.full(len(model.names), task == "semantic")
    return join(parts, image.shape[:2], unites, task == "instance", model.joining)


# an image becomes tiles, and tiles become canvases


def tiles_of(size, view):
    """Where each tile lies: ((top, bottom, left, right), the same of its core)."""
    if view["kind"] == "whole":
        return [((0, size[0], 0, size[1]),) * 2]
    if view["kind"] != "tiles":
        sys.exit(f"data.view is {view['kind']!r}, which this example does not show")
    rows, columns = (spread(length, view["size"], view["overlap"]) for length in size)
    return [((*down[0], *right[0]), (*down[1], *right[1])) for down in rows for right in columns]


def spread(length, side, overlap):
    """Tiles along one side, evenly spread: (start, stop) of each, and of its core.

    A core ends in the middle of the overlap with the next tile.
    """
    if length <= side:
        return [((0, length), (0, length))]
    count = -(-(length - overlap) // (side - overlap))
    starts = [round(index * (length - side) / (count - 1)) for index in range(count)]
    middles = [(start + side + following) // 2 for start, following in pairwise(starts)]
    return list(zip([(start, start + side) for start in starts], zip([0, *middles], [*middles, length])))


def placed(size, resize, divisor):
    """The size at which the model sees a tile, and the canvas around it."""

    def rounded_up(sides):
        return tuple(-(-side // divisor) * divisor for side in sides)

    def scaled(factor):
        return tuple(max(1, int(side * factor + 0.5)) for side in size)

    if resize["kind"] == "square":
        return scaled(resize["size"] / max(size)), (resize["size"],) * 2
    if resize["kind"] == "exact":
        resized = resize["height"], resize["width"]
    elif resize["kind"] == "scale":
        resized = scaled(resize["factor"])
    elif resize["fit"] == "stretch":
        resized = rounded_up(rounded_down(size, resize["size"], resize["longest"]))
    else:
        resized = scaled(min(resize["size"] / min(size), resize["longest"] / max(size)))
    return resized, rounded_up(resized)


def rounded_down(size, shortest, longest):
    """The size with the short side as wanted and the long side rounded down, as transformers has it."""
    short, long = min(size), max(size)
    wanted = longest * short / long if long / short * shortest > longest else shortest
    longer = long if round(wanted) == short else int(wanted * long / short)
    sides = max(1, round(wanted)), max(1, longer)
    return sides if size[0] <= size[1] else sides[::-1]


def grouped(model, image, tiles):
    """Tiles of one canvas, a few at a time: (canvas, their pixels, tiles and resized sizes)."""
    groups = {}
    for tile in tiles:
        top, bottom, left, right = tile[0]
        pixels = image[top:bottom, left:right]
        resized, canvas = placed(pixels.shape[:2], model.data["resize"], model.data["divisor"])
        groups.setdefault(canvas, []).append((tile, pixels, resized))
    for canvas, members in groups.items():
        for start in range(0, len(members), TILES_AT_ONCE):
            yield canvas, members[start : start + TILES_AT_ONCE]


def predicted(model, group, task):
    """Run the model on tiles of one canvas; yield the segments of each, in its own pixels."""
    canvas, members = group
    black = model.data["padding"] == "black"
    batch = np.zeros((len(members), 3, *canvas), np.float32)
    batch += (-model.mean / model.std)[:, None, None] * black
    for index, (_, pixels, (height, width)) in enumerate(members):
        if pixels.shape[:2] != (height, width):
            pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.BILINEAR))
        batch[index, :, :height, :width] = ((pixels - model.mean) / model.std).transpose(2, 0, 1)
    for (tile, pixels, resized), *outputs in zip(members, *model.run(batch)):
        yield (
            tile,
            TASKS[task](model, *outputs, Restoring(outputs[2].shape[1:], canvas, resized, pixels.shape[:2])),
        )


class Restoring:
    """Resizes maps over the canvas to the tile: to the canvas, crop of the padding, to the tile."""

    def __init__(self, cells, canvas, resized, size):
        sizes = zip(cells, canvas, resized, size)
        self.to_canvas, self.to_tile = zip(*[(bilinear(a, b), bilinear(c, d)) for a, b, c, d in sizes])

    def canvas(self, maps):
        """From the cells of the maps to the canvas."""
        return self.to_canvas[0] @ maps @ self.to_canvas[1].T

    def tile(self, maps):
        """From the canvas to the tile."""
        rows, columns = self.to_tile
        return rows @ maps[..., : rows.shape[1], : columns.shape[1]] @ columns.T

    def __call__(self, maps):
        """Both, one after the other."""
        return self.tile(self.canvas(maps))


def bilinear(inputs, outputs):
    """The matrix of a bilinear resize along one side (align_corners=False)."""
    place = np.maximum((np.arange(outputs) + 0.5) * (inputs / outputs) - 0.5, 0)
    low = np.minimum(place.astype(int), inputs - 1)
    matrix = np.zeros((outputs, inputs), np.float32)
    np.add.at(matrix, (np.arange(outputs), low), 1 - (place - low))
    np.add.at(matrix, (np.arange(outputs), np.minimum(low + 1, inputs - 1)), place - low)
    return matrix


# a prediction becomes segments


def sigmoid(values):
    """Probabilities of logits."""
    return np.exp(-np.logaddexp(0, -values))


def softmax(values):
    """Probabilities over the last axis."""
    values = np.exp(values - values.max(axis=-1, keepdims=True))
    return values / values.sum(axis=-1, keepdims=True)


def distinct(class_logits, embeddings, features, largest_iou):
    """The queries without those that repeat a better one of their class."""
    probabilities = softmax(class_logits)[:, :-1]
    labels, scores = probabilities.argmax(axis=1), probabilities.max(axis=1)
    logits = embeddings @ features.reshape(len(features), -1)
    masks = (logits > 0).astype(np.float32)
    areas = masks.sum(axis=1)
    scores = scores * (sigmoid(logits) * masks).sum(axis=1) / np.maximum(areas, 1)
    both = masks @ masks.T
    iou = both / np.maximum(areas[:, None] + areas[None] - both, 1)
    repeats = (iou > largest_iou) & (labels[:, None] == labels[None])
    kept = np.zeros(len(scores), bool)
    for query in np.argsort(-scores, kind="stable"):
        kept[query] = not (repeats[query] & kept).any()
    return kept


def instances(model, class_logits, embeddings, features, restore):
    """Things that may overlap: the best pairs of a query and a category."""
    limits = model.limits
    if limits["duplicate_iou"] < 1:
        kept = distinct(class_logits, embeddings, features, limits["duplicate_iou"])
        class_logits, embeddings = class_logits[kept], embeddings[kept]
    probabilities = softmax(class_logits)[:, :-1].ravel()
    found = []
    for pair in np.argsort(-probabilities, kind="stable")[: limits["max_instances"]]:
        query, label = divmod(int(pair), len(model.names))
        if not model.is_thing[label] or probabilities[pair] < limits["instance_threshold"]:
            continue
        logits = restore(np.tensordot(embeddings[query], features, 1))
        mask = logits > 0
        score = probabilities[pair] * sigmoid(logits[mask]).sum() / (mask.sum() + 1e-6)
        if score >= limits["instance_threshold"]:
            found.append((label, float(score), mask))
    return sorted(found, key=lambda one: -one[1])


def panoptic(model, class_logits, embeddings, features, restore):
    """Segments that do not overlap: each pixel goes to the query with the largest score times probability."""
    limits = model.limits
    if limits["duplicate_iou"] < 1:
        kept = distinct(class_logits, embeddings, features, limits["duplicate_iou"])
        class_logits, embeddings = class_logits[kept], embeddings[kept]
    probabilities = softmax(class_logits)
    labels, scores = probabilities.argmax(axis=1), probabilities.max(axis=1)
    sure = (labels != len(model.names)) & (scores > limits["object_threshold"])
    labels, scores, embeddings = labels[sure], scores[sure], embeddings[sure]
    if not len(labels):
        return []
    masks = sigmoid(restore(np.tensordot(embeddings, features, 1)))
    winner = (scores[:, None, None] * masks).argmax(axis=0)
    found, of_stuff = [], {}
    for query, (label, score) in enumerate(zip(labels.tolist(), scores.tolist())):
        won, own = winner == query, masks[query] >= 0.5
        visible = won if limits["fill"] == "winner" else won & own
        if not own.any() or not visible.any() or won.sum() / own.sum() < limits["overlap_threshold"]:
            continue
        if label in of_stuff:
            index = of_stuff[label]
            found[index] = (label, max(found[index][1], score), found[index][2] | visible)
            continue
        if not model.is_thing[label]:
            of_stuff[label] = len(found)
        found.append((label, score, visible))
    return found


def semantic(model, class_logits, embeddings, features, restore):
    """A segment for each category that is the best somewhere."""
    probabilities = softmax(class_logits)[:, :-1]
    masks = np.tensordot(embeddings, features, 1)
    likely = (lambda logits: softmax(logits.T).T) if model.per_pixel else sigmoid
    if model.limits["resize_classes"]:
        values = restore.tile(np.tensordot(probabilities.T, likely(restore.canvas(masks)), 1))
    else:
        values = np.tensordot(probabilities.T, likely(restore(masks)), 1)
    best, share = values.argmax(axis=0), values.max(axis=0) / values.sum(axis=0)
    return [(int(label), float(share[best == label].mean()), best == label) for label in np.unique(best)]


TASKS = {"panoptic": panoptic, "instance": instances, "semantic": semantic}


# segments of tiles become those of the image


class View:
    """A thing as one tile sees it: its mask in its box, in pixels of the image."""

    def __init__(self, tile, index, label, score, mask, size):
        top, _, left, _ = tile[1][0]
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        self.tile, self.index, self.label, self.score = tile[0], index, label, score
        self.box = (top + rows[0], top + rows[-1] + 1, left + columns[0], left + columns[-1] + 1)
        self.mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        self.area = int(mask.sum())
        self.whole = sees_whole(tile[1], self.box, size)


def sees_whole(tile, box, size):
    """Whether a box touches no side of the tile but those of the image."""
    top, bottom, left, right = tile[0]
    return (
        (top < box[0] or top == 0)
        and (bottom > box[1] or bottom == size[0])
        and (left < box[2] or left == 0)
        and (right > box[3] or right == size[1])
    )


def shared(one, mask, other, others):
    """How many pixels two masks in boxes share."""
    top, bottom, left, right = (
        max(one[0], other[0]),
        min(one[1], other[1]),
        max(one[2], other[2]),
        min(one[3], other[3]),
    )
    if top >= bottom or left >= right:
        return 0
    here = mask[top - one[0] : bottom - one[0], left - one[2] : right - one[2]]
    there = others[top - other[0] : bottom - other[0], left - other[2] : right - other[2]]
    return int((here & there).sum())


def around(views):
    """The box around several views."""
    boxes = np.array([view.box for view in views])
    return boxes[:, 0].min(), boxes[:, 1].max(), boxes[:, 2].min(), boxes[:, 3].max()


def box_iou(one, other):
    """The IoU of two boxes."""
    high, wide = (max(0, min(one[k + 1], other[k + 1]) - max(one[k], other[k])) for k in (0, 2))
    areas = [(box[1] - box[0]) * (box[3] - box[2]) for box in (one, other)]
    return high * wide / (sum(areas) - high * wide)


def join(parts, size, unites, overlapping, rules):
    """Segments of the image: stuff is taken from the cores of tiles, things are decided by majority."""
    tiles = [tile for tile, _ in parts]
    stuff, views = {}, []
    for number, (tile, found) in enumerate(parts):
        core = tuple(slice(*tile[1][k : k + 2]) for k in (0, 2))
        inner = tuple(slice(tile[1][k] - tile[0][k], tile[1][k + 1] - tile[0][k]) for k in (0, 2))
        for index, (label, score, mask) in enumerate(found):
            if unites[label]:
                best, whole = stuff.setdefault(label, (score, np.zeros(size, bool)))
                whole[core] |= mask[inner]
                stuff[label] = (max(best, score), whole)
            elif mask.any():
                views.append(View((number, tile), index, label, score, mask, size))
    views.sort(key=lambda view: -view.score)
    things = seen_whole(views, tiles, size, rules)
    things += larger_than_tiles(views, parts, things, size, rules)
    return visible(stuff, things, size, overlapping, rules)


def seen_whole(views, tiles, size, rules):
    """Things that tiles see whole: (label, score, weight, votes, box, mask).

    From an IoU of `same` on two views are of the same thing.
    """
    free, things = [view for view in views if view.whole], []
    while free:
        best, members, rest = free[0], [free[0]], []
        for other in free[1:]:
            near = other.label == best.label and box_iou(best.box, other.box) >= rules["same"] / 2
            both = shared(best.box, best.mask, other.box, other.mask) if near else 0
            same = near and both >= rules["same"] * (best.area + other.area - both)
            taken = same and all(other.tile != member.tile for member in members)
            (members if taken else rest).append(other)
        free = rest
        seers = max(sum(sees_whole(tile, best.box, size) for tile in tiles), len(members))
        top, bottom, left, right = box = around(members)
        agreed = np.zeros((bottom - top, right - left))
        for view in members:
            rows, columns = (
                slice(view.box[0] - top, view.box[1] - top),
                slice(view.box[2] - left, view.box[3] - left),
            )
            agreed[rows, columns] += view.score * view.mask
        total = sum(view.score for view in members)
        votes = len(members) / seers
        things.append((best.label, total / len(members), total / seers, votes, box, 2 * agreed > total))
    return things


def larger_than_tiles(views, parts, things, size, rules):
    """Things that no tile sees whole, put together from pieces on which neighbouring tiles agree."""
    pieces = [
        view
        for view in views
        if not view.whole
        and not any(
            thing[0] == view.label
            and shared(view.box, view.mask, thing[4], thing[5]) >= rules["same"] * view.area
            for thing in things
        )
    ]
    found = []
    for group in groups_of(pieces, parts, rules):
        top, bottom, left, right = box = around(group)
        mask = np.zeros((bottom - top, right - left), bool)
        for view in group:
            core = parts[view.tile][0][1]
            up, down = max(view.box[0], core[0]), min(view.box[1], core[1])
            near, far = max(view.box[2], core[2]), min(view.box[3], core[3])
            if up < down and near < far:
                piece = view.mask[
                    up - view.box[0] : down - view.box[0], near - view.box[2] : far - view.box[2]
                ]
                mask[up - top : down - top, near - left : far - left] |= piece
        if not mask.any() or mask.sum() < rules["seen"] * max(view.area for view in group):
            continue  # cut off by the side of its tile
        if any(sees_whole(tile, box, size) for tile, _ in parts):
            continue  # a tile that sees it whole has not found it
        score = max(view.score for view in group)
        found.append((group[0].label, score, score, 1.0, box, mask))
    return found


def groups_of(pieces, parts, rules):
    """Pieces, those together that are each other's best partners where both tiles see."""
    numbers = {(piece.tile, piece.index): number for number, piece in enumerate(pieces)}
    group = list(range(len(pieces)))
    for one, other in [(a, b) for a in range(len(parts)) for b in range(a + 1, len(parts))]:
        for mine, theirs in partners(parts[one], parts[other], rules["same"]):
            a, b = numbers.get((one, mine)), numbers.get((other, theirs))
            if a is not None and b is not None and pieces[a].label == pieces[b].label:
                group = [group[a] if member == group[b] else member for member in group]
    return [[piece for piece, at in zip(pieces, group) if at == root] for root in dict.fromkeys(group)]


def partners(part, other, same):
    """Pairs of segments of two tiles that agree where both see, each the best partner of the other."""
    (here, _), (there, _) = part[0], other[0]
    top, bottom, left, right = (
        max(here[0], there[0]),
        min(here[1], there[1]),
        max(here[2], there[2]),
        min(here[3], there[3]),
    )
    if top >= bottom or left >= right or not part[1] or not other[1]:
        return []
    mine, theirs = (
        np.array(
            [
                mask[top - tile[0] : bottom - tile[0], left - tile[2] : right - tile[2]].ravel()
                for *_, mask in found
            ],
            np.float64,
        )
        for (tile, _), found in (part, other)
    )
    both = mine @ theirs.T
    iou = both / np.maximum(mine.sum(1)[:, None] + theirs.sum(1)[None] - both, 1)
    scores = [np.array([score for _, score, _ in found]) for _, found in (part, other)]
    worth = np.where(iou >= same, iou * scores[0][:, None] * scores[1][None], 0)
    best = (worth == worth.max(0, keepdims=True)) & (worth == worth.max(1, keepdims=True)) & (worth > 0)
    return np.argwhere(best).tolist()


def visible(stuff, things, size, overlapping, rules):
    """Pixels go to things before stuff, first to those of the largest weight; what is mostly hidden goes."""
    taken, kept = {}, []
    for label, score, _, votes, (top, bottom, left, right), mask in sorted(
        things, key=lambda thing: -thing[2]
    ):
        if votes < rules["seen"]:
            continue
        window = taken.setdefault(label if overlapping else 0, np.zeros(size, bool))[top:bottom, left:right]
        free = mask & ~window
        if free.any() and free.sum() >= rules["seen"] * mask.sum():
            whole = np.zeros(size, bool)
            whole[top:bottom, left:right] = mask if overlapping else free
            kept.append((label, score, whole))
            window |= mask
    hidden = np.any([mask for *_, mask in kept], axis=0) if kept else np.zeros(size, bool)
    below = [(label, score, mask & ~hidden) for label, (score, mask) in stuff.items()]
    segments = sorted([*below, *kept], key=lambda one: -one[1])
    return [one for one in segments if one[2].any()]


def main():
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--task", choices=TASKS, help="by default what the model was trained for")
    given = parser.parse_args()
    model = Model(given.model)
    image = np.asarray(Image.open(given.image).convert("RGB"))
    for label, score, mask in segment(model, image, given.task or ""):
        rows, columns = np.nonzero(mask)
        box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
        print(f"{model.names[label]:20} {score:.3f} {int(mask.sum()):8} pixels in {box}")


if __name__ == "__main__":
    main()
