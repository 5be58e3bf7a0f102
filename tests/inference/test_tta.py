import dataclasses

import pytest
import torch
from cli.command_line import save_tiny_model

from unimask.config.data import Whole
from unimask.errors import ConfigError
from unimask.inference.loading import load
from unimask.inference.segmenter import Segmenter
from unimask.inference.tta import PLAIN, Augmentation, augmentations_of, augmented_placement, combine
from unimask.structures import MaskPrediction, Placement

SIZE = (61, 83)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return load(save_tiny_model(tmp_path_factory.mktemp("augmentations") / "model"), device="cpu")


def picture(seed: int = 0) -> torch.Tensor:
    coarse = torch.rand((1, 3, 5, 7), generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, SIZE, mode="bicubic").clamp(0, 1) * 255)[0].to(
        torch.uint8
    )


def test_names() -> None:
    assert augmentations_of([]) == (PLAIN,)
    assert augmentations_of(["flip"]) == (PLAIN, Augmentation(flip=True, scale=1.0))
    assert len(augmentations_of(["flip", "scales"])) == 6
    with pytest.raises(ConfigError, match="tta: turn does not exist; there are: flip, scales"):
        augmentations_of(["turn"])


def test_features_of_a_version_come_to_the_same_spot() -> None:
    """A map that holds its own place in the picture holds it after combining too."""
    placement = Placement.fit(SIZE, (61, 83), 32)
    for augmentation in augmentations_of(["flip", "scales"]):
        own = augmented_placement(placement, augmentation, 32)
        predictions, placements = [], [[placement], [own]]
        for one, flip in ((placement, False), (own, augmentation.flip)):
            height, width = one.canvas[0] // 4, one.canvas[1] // 4
            y = (torch.arange(height) + 0.5) / height * one.canvas[0] / one.resized[0]
            x = (torch.arange(width) + 0.5) / width * one.canvas[1] / one.resized[1]
            places = torch.stack(torch.meshgrid(y, 1 - x if flip else x, indexing="ij"))[None]
            predictions.append(
                MaskPrediction(
                    class_logits=torch.zeros(1, 1, 5, 4),
                    mask_embeddings=torch.ones(1, 1, 5, 2),
                    mask_features=places[None],
                )
            )
        combined = combine(predictions, placements, (PLAIN, augmentation))
        assert combined.class_logits.shape == (1, 1, 10, 4)
        plain, other = combined.features()[0, :, 2:13, 2:18].split(2)
        assert torch.allclose(plain, other, atol=1e-4)
        logits = combined.mask_logits()[0]
        assert torch.allclose(logits[:5, 2:13, 2:18], logits[5:, 2:13, 2:18], atol=1e-3)


def test_a_version_counted_twice_changes_nothing_semantic(segmenter: Segmenter) -> None:
    twice = Segmenter(segmenter.model, segmenter.model_file, tta=(PLAIN, PLAIN))
    (one,), (two,) = (each.find([picture()], "semantic") for each in (segmenter, twice))
    assert torch.equal(one.layers, two.layers)
    assert torch.allclose(one.scores, two.scores, atol=1e-5)


def test_the_mean_over_flips_does_not_know_left_from_right(segmenter: Segmenter) -> None:
    both = segmenter.with_tta(["flip"])
    (one,), (mirrored,) = both.find([picture()], "semantic"), both.find([picture().flip(2)], "semantic")
    labels = [s.labels[s.layers[0].long() - 1] for s in (one, mirrored)]
    assert (labels[0] == labels[1].flip(1)).float().mean() > 0.97


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_all_tasks_and_tiles(segmenter: Segmenter, task: str) -> None:
    seeing = segmenter.with_tiles(48, 16).with_tta(["flip", "scales"])
    small = picture(1)[:, :37, :41]
    found = list(seeing.find([picture(), small, picture(2)], task))
    assert [one.size for one in found] == [SIZE, (37, 41), SIZE]
    alone = next(seeing.find([picture(2)], task))
    assert torch.equal(found[2].layers, alone.layers)
    if task == "panoptic":
        assert found[0].layers.shape[0] == 1


def test_another_view(segmenter: Segmenter) -> None:
    tiled = segmenter.with_tiles(48, 16)
    assert tiled.model is segmenter.model
    assert isinstance(segmenter.model_file.experiment.data.view, Whole)
    assert (
        dataclasses.replace(tiled.model_file.experiment.data, view=Whole())
        == segmenter.model_file.experiment.data
    )
    with pytest.raises(ConfigError, match="tile: 48 with an overlap of 48; it must be below the size"):
        segmenter.with_tiles(48, 48)
