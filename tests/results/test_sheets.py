import numpy as np
import torch
from PIL import Image

from unimask.ops.id_maps import pack_masks
from unimask.results.sheets import comparison_sheet, draw_sheet, sample_sheet
from unimask.structures import Categories, Detections, Sample, Segments

CATEGORIES = Categories(names=("cell",), is_thing=(True,), file_ids=(1,), colors=((200, 40, 40),))


def segments(left: int) -> Segments:
    mask = torch.zeros(1, 60, 80, dtype=torch.bool)
    mask[0, 10:40, left : left + 30] = True
    return Segments(
        layers=pack_masks(mask),
        labels=torch.zeros(1, dtype=torch.int64),
        scores=torch.ones(1),
        is_crowd=torch.zeros(1, dtype=torch.bool),
    )


def sample(name: str) -> Sample:
    return Sample(image=torch.full((3, 60, 80), 90, dtype=torch.uint8), truth=segments(5), image_id=name)


def boxes() -> Detections:
    return Detections(
        boxes=torch.tensor([[5.0, 10, 35, 40]]),
        labels=torch.zeros(1, dtype=torch.int64),
        scores=torch.ones(1),
        areas=torch.tensor([900.0]),
        is_crowd=torch.zeros(1, dtype=torch.bool),
    )


def test_images_of_any_shape_fit_into_their_cells() -> None:
    colors = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    shapes = ((40, 20), (300, 900), (1, 1))
    cells = [(f"a long name {n}" * 9, Image.new("RGB", shapes[n], colors[n])) for n in range(3)]
    sheet = np.array(draw_sheet(cells, columns=2, width=100))
    assert sheet.shape[1] == 2 * 112 + 12
    for color in colors:
        rows, columns = np.nonzero((sheet == color).all(axis=-1))
        assert 4 <= np.ptp(columns) + 1 <= 100 or color == colors[2]
        assert np.ptp(rows) + 1 <= 100
    wide = (sheet == colors[1]).all(axis=-1).nonzero()
    assert np.ptp(wide[0]) + 1 == 100
    assert np.ptp(wide[1]) + 1 == 33


def test_truth_stands_left_and_prediction_right() -> None:
    for found in (segments(45), boxes()):
        sheet = np.array(comparison_sheet([sample("one")], [found], CATEGORIES, pairs=1))
        left, right = sheet[:, : sheet.shape[1] // 2], sheet[:, sheet.shape[1] // 2 :]
        red = [(half[..., 0].astype(int) - half[..., 1] > 40) for half in (left, right)]
        assert red[0].any()
        assert red[1].any()
        if isinstance(found, Segments):
            middle = [half.nonzero()[1].mean() for half in red]
            assert middle[1] - middle[0] > 80  # the prediction lies further right


def test_a_sheet_of_samples_has_as_many_columns_as_it_needs() -> None:
    assert sample_sheet([sample("a")], CATEGORIES).width < sample_sheet([sample("a")] * 3, CATEGORIES).width
