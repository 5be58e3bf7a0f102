import pytest
import torch
from torch import Tensor, nn

from unimask.models.optimize import prepare_for_inference
from unimask.models.pixel_decoders import DeformablePixelDecoder, MapPositions
from unimask.ops import parts
from unimask.ops.deformable import cpu as deformable_bags

CHANNELS = {4: 3, 8: 5, 16: 7, 32: 11}
SIZES = {4: (19, 27), 8: (10, 14), 16: (5, 7), 32: (3, 4)}


def decoder(
    strides: tuple[int, ...] = (32, 16, 8),
    channels: int = 32,
    mask_channels: int = 13,
    mask_positions: nn.Module | None = None,
) -> DeformablePixelDecoder:
    torch.manual_seed(2)
    return DeformablePixelDecoder(
        in_channels=CHANNELS,
        strides=strides,
        channels=channels,
        mask_channels=mask_channels,
        layers=2,
        heads=4,
        points=3,
        feedforward_channels=17,
        mask_positions=mask_positions or nn.Identity(),
    )


def features(batch: int = 2) -> dict[int, Tensor]:
    return {stride: torch.randn(batch, CHANNELS[stride], *SIZES[stride]) for stride in CHANNELS}


@pytest.mark.parametrize("strides", [(32, 16, 8), (32, 16), (32,), (8, 32, 16)])
def test_maps_of_odd_sizes(strides: tuple[int, ...]) -> None:
    memory, mask_features = decoder(strides)(features())
    assert mask_features.shape == (2, 13, 19, 27)
    assert set(memory) == {32, 16, 8} - {s for s in (16, 8) if s > min(strides) and s not in strides}
    for stride, maps in memory.items():
        assert maps.shape == (2, 32, *SIZES[stride])


@pytest.mark.parametrize("channels", [96, 128])
def test_narrow_decoders_have_32_groups(channels: int) -> None:
    pixel_decoder = decoder(channels=channels)
    memory, _ = pixel_decoder(features(1))
    assert memory[8].shape[1] == channels
    assert pixel_decoder.get_submodule("fusions.4.norm").num_groups == 32


def test_every_parameter_takes_part() -> None:
    pixel_decoder = decoder()
    memory, mask_features = pixel_decoder(features())
    (sum(maps.square().sum() for maps in memory.values()) + mask_features.square().sum()).backward()
    for name, parameter in pixel_decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_pictures_of_a_batch_do_not_touch() -> None:
    pixel_decoder, maps = decoder().eval(), features()
    together, masks = pixel_decoder(dict(maps))
    alone, mask = pixel_decoder({stride: level[1:] for stride, level in maps.items()})
    torch.testing.assert_close(masks[1:], mask, atol=1e-5, rtol=1e-5)
    for stride in together:
        torch.testing.assert_close(together[stride][1:], alone[stride], atol=1e-5, rtol=1e-5)


def test_initial_biases_are_zero() -> None:
    for name, parameter in decoder().named_parameters():
        if name.endswith("convolution.bias") or name == "mask_features.bias":
            assert not parameter.any(), name


def test_mask_features_can_tell_their_place() -> None:
    positions = MapPositions(octaves=3, channels=13)
    seen = features()
    memory, without = decoder()(dict(seen))
    same_memory, at_first = decoder(mask_positions=positions)(dict(seen))
    assert torch.equal(at_first, without)  # nothing is added before it is learned
    torch.nn.init.normal_(positions.projection.weight)
    added = decoder(mask_positions=positions)(dict(seen))[1] - without
    assert all(torch.equal(memory[stride], same_memory[stride]) for stride in memory)
    torch.testing.assert_close(added[0], added[1])  # the place alone
    cells = added[0].flatten(1).T
    assert torch.cdist(cells, cells).fill_diagonal_(1).min() > 1e-3  # and every place another


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_few_tokens_at_a_time_are_as_all(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    model, maps = decoder().eval(), features()
    holder = nn.Module()
    holder.pixel_decoder = model
    ready = prepare_for_inference(holder).get_submodule("pixel_decoder")
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        expected, expected_features = model(maps)
        monkeypatch.setattr(parts, "TOKENS_AT_ONCE", 14)
        monkeypatch.setattr(deformable_bags, "QUERIES_AT_ONCE", 5)
        given = {stride: level.clone() for stride, level in maps.items()}
        memory, mask_features = ready(given)
    assert given == {}  # what was used is not kept
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    for stride, found in memory.items():
        torch.testing.assert_close(found.float(), expected[stride].float(), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(
        mask_features.float(), expected_features.float(), atol=tolerance, rtol=tolerance
    )
