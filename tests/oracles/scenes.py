"""Random pairs of truth and result for the metrics."""

import numpy as np
import torch

from unimask.structures import Categories, Segments

CATEGORIES = Categories(
    names=("cell", "sky", "fibre", "grass", "drop"),
    is_thing=(True, False, True, False, True),
    file_ids=(3, 5, 7, 11, 13),
    colors=((1, 2, 3),) * 5,
)


def segments(
    layers: np.ndarray,
    labels: list[int],
    scores: list[float] | None = None,
    crowd: list[bool] | None = None,
) -> Segments:
    """Segments from an id map (height, width) or (layers, height, width)."""
    array = np.asarray(layers)
    return Segments(
        layers=torch.from_numpy(array.reshape(-1, *array.shape[-2:]).astype(np.int16)),
        labels=torch.tensor(labels, dtype=torch.int64),
        scores=torch.tensor(scores if scores is not None else [1.0] * len(labels), dtype=torch.float32),
        is_crowd=torch.tensor(crowd if crowd is not None else [False] * len(labels), dtype=torch.bool),
    )


def random_flat(
    random: np.random.Generator,
    size: tuple[int, int],
    count: int,
    crowd: float,
    base: np.ndarray | None = None,
) -> Segments:
    """Up to `count` rectangles over each other in one map; starts from shifted `base` where one is given."""
    ids = np.zeros(size, dtype=np.int64) if base is None else np.roll(base, int(random.integers(-1, 2)), 1)
    first = int(ids.max())
    for number in range(first + 1, first + count + 1):
        top, left = (int(random.integers(0, side)) for side in size)
        bottom, right = (int(random.integers(1, side // 2 + 2)) for side in size)
        ids[top : top + bottom, left : left + right] = number if random.random() < 0.85 else 0
    total = first + count
    return segments(
        ids,
        random.integers(0, len(CATEGORIES), total).tolist(),
        crowd=(random.random(total) < crowd).tolist(),
    )


def random_pair(
    random: np.random.Generator, size: tuple[int, int] = (23, 37), crowd: float = 0.2
) -> tuple[Segments, Segments]:
    """(result, truth) of disjoint segments; the result resembles the truth, with a few other classes."""
    truth = random_flat(random, size, int(random.integers(0, 9)), crowd)
    base = truth.layers[0].numpy().astype(np.int64)
    drawn = random_flat(random, size, int(random.integers(0, 5)), 0.0, base)
    labels = drawn.labels.numpy().copy()
    keep = min(len(labels), len(truth))
    same = random.random(keep) < 0.8
    labels[:keep][same] = truth.labels.numpy()[:keep][same]
    present = np.unique(drawn.layers.numpy())
    present = present[present > 0]  # a result lists only segments that have pixels
    renumber = np.zeros(len(labels) + 1, dtype=np.int64)
    renumber[present] = np.arange(1, len(present) + 1)
    return segments(renumber[drawn.layers[0].numpy()], labels[present - 1].tolist()), truth


def blob(random: np.random.Generator, size: tuple[int, int], largest: int) -> np.ndarray:
    """A random ellipse with ragged edges, perhaps cut by the border."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    centre = random.random(2) * size
    radii = 1 + random.random(2) * largest
    inside = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2
    return inside + 0.2 * random.random(size) < 1


def pack(masks: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Overlapping masks as layers of ids, each in the first layer where it fits."""
    layers = [np.zeros(size, dtype=np.int16)]
    for number, mask in enumerate(masks, start=1):
        for layer in layers:
            if not layer[mask].any():
                break
        else:
            layer = np.zeros(size, dtype=np.int16)
            layers.append(layer)
        layer[mask] = number
    return np.stack(layers)


def random_instances(
    random: np.random.Generator,
    size: tuple[int, int] = (67, 101),
    most: int = 9,
    largest: int = 20,
    crowd: float = 0.15,
    score_steps: int = 7,
) -> tuple[Segments, Segments]:
    """(result, truth) of overlapping instances; scores have few values, so that many are equal."""
    count = int(random.integers(0, most + 1))
    masks = [blob(random, size, largest) for _ in range(count)]
    labels = random.integers(0, len(CATEGORIES), count).tolist()
    truth = segments(pack(masks, size), labels, crowd=(random.random(count) < crowd).tolist())
    found, found_labels = [], []
    for mask, label in zip(masks, labels):
        for _ in range(int(random.integers(0, 3))):
            shift = random.integers(-2, 3, 2)
            found.append(np.roll(mask, tuple(shift), (0, 1)))
            found_labels.append(label if random.random() < 0.85 else int(random.integers(0, len(CATEGORIES))))
    for _ in range(int(random.integers(0, 4))):
        found.append(blob(random, size, largest))
        found_labels.append(int(random.integers(0, len(CATEGORIES))))
    scores = (random.integers(1, score_steps + 1, len(found)) / score_steps).tolist()
    return segments(pack(found, size), found_labels, scores), truth
