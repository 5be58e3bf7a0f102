import torch

from unimask.structures import Batch, BoxMaskTargets, ImageBatch, Placement, Segments, map_tensors


def segments(count: int) -> Segments:
    return Segments(
        layers=torch.ones((1, 3, 5), dtype=torch.int16),
        labels=torch.arange(count),
        scores=torch.ones(count),
        is_crowd=torch.zeros(count, dtype=torch.bool),
    )


def test_every_tensor_of_a_batch_is_changed_and_nothing_else() -> None:
    target = BoxMaskTargets(segments=segments(2), boxes=torch.rand(2, 4))
    placement = Placement(original=(3, 5), resized=(3, 5), canvas=(4, 8))
    batch = Batch(
        images=ImageBatch(
            pixels=torch.rand(1, 3, 4, 8),
            valid=torch.ones((1, 4, 8), dtype=torch.bool),
            placements=(placement,),
        ),
        targets=(target,),
        image_ids=("a",),
    )
    seen: list[torch.Tensor] = []

    def zeros(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return torch.zeros_like(tensor)

    changed = map_tensors(batch, zeros)
    assert len(seen) == 8
    assert type(changed) is Batch
    assert changed.images.placements == (placement,)
    assert changed.image_ids == ("a",)
    found = changed.targets[0]
    assert isinstance(found, BoxMaskTargets)
    assert not any(
        bool(tensor.any()) for tensor in (changed.images.pixels, found.boxes, found.segments.layers)
    )
    assert bool(batch.images.valid.all())  # what was given stays
