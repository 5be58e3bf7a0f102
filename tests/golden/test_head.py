"""The pixel decoder and the query decoder against the original's tensors, parameter by parameter."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unimask.config.models import PixelDecoderConfig, QueryDecoderConfig
from unimask.models.build import build_pixel_decoder, build_query_decoder
from unimask.models.mask_classifier import MaskClassifier
from unimask.models.query_decoder import masked_visibility
from unimask.structures import MaskPrediction

STRIDES = {"0": "32", "1": "16", "2": "8"}
RENAMES = [
    (r"^sem_seg_head\.pixel_decoder\.", "pixel_decoder."),
    (r"^sem_seg_head\.predictor\.", "query_decoder."),
    (r"input_proj\.(\d)\.0\.", lambda m: f"projections.{STRIDES[m[1]]}.convolution."),
    (r"input_proj\.(\d)\.1\.", lambda m: f"projections.{STRIDES[m[1]]}.norm."),
    (r"adapter_1\.norm\.", "laterals.4.norm."),
    (r"adapter_1\.weight", "laterals.4.convolution.weight"),
    (r"layer_1\.norm\.", "fusions.4.norm."),
    (r"layer_1\.weight", "fusions.4.convolution.weight"),
    (r"transformer\.level_embed$", "encoder.level_embedding"),
    (r"transformer\.encoder\.", "encoder."),
    (r"self_attn\.sampling_offsets", "attention.offsets"),
    (r"self_attn\.attention_weights", "attention.weights"),
    (r"self_attn\.value_proj", "attention.values"),
    (r"self_attn\.output_proj", "attention.output"),
    (r"(encoder\.layers\.\d+)\.norm1", r"\1.attention_residual.norm"),
    (r"(encoder\.layers\.\d+)\.norm2", r"\1.feedforward_residual.norm"),
    (r"(encoder\.layers\.\d+)\.linear1", r"\1.feedforward.expand"),
    (r"(encoder\.layers\.\d+)\.linear2", r"\1.feedforward.contract"),
    (r"transformer_self_attention_layers\.(\d+)", r"layers.\1.self"),
    (r"transformer_cross_attention_layers\.(\d+)", r"layers.\1.cross"),
    (r"transformer_ffn_layers\.(\d+)", r"layers.\1.feedforward"),
    (r"(layers\.\d+\.(?:self|cross|feedforward))\.norm", r"\1.residual.norm"),
    (r"\.(?:self_attn|multihead_attn)\.in_proj_", ".attention.input_"),
    (r"\.(?:self_attn|multihead_attn)\.out_proj\.", ".attention.output."),
    (r"(layers\.\d+\.feedforward)\.linear1", r"\1.update.expand"),
    (r"(layers\.\d+\.feedforward)\.linear2", r"\1.update.contract"),
    (r"decoder_norm", "norm"),
    (r"query_feat\.", "query_features."),
    (r"query_embed\.", "query_positions."),
    (r"level_embed\.", "level_embedding."),
    (r"class_embed", "heads.classes"),
    (r"mask_embed\.", "heads.mask_embedding."),
]


class Pyramid(nn.Module):
    """Stands in for a backbone: gives stored maps."""

    def __init__(self, maps: dict[int, Tensor]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, pixels: Tensor) -> dict[int, Tensor]:
        return self.maps


def rename(key: str) -> str:
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


@pytest.fixture(scope="module")
def tensors(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "mask2former_head_small.safetensors")


@pytest.fixture(scope="module")
def seen() -> list[tuple[int, Tensor, Tensor]]:
    """What each layer was allowed to see, filled by `prediction`: stride, mask logits, visible."""
    return []


@pytest.fixture(scope="module")
def model(tensors: dict[str, Tensor], seen: list[tuple[int, Tensor, Tensor]]) -> MaskClassifier:
    maps = {stride: tensors[f"input.res{i}"] for i, stride in zip((2, 3, 4, 5), (4, 8, 16, 32), strict=True)}
    pixel = PixelDecoderConfig(channels=64, mask_channels=64, layers=3, feedforward_channels=128)
    query = QueryDecoderConfig(queries=20, channels=64, layers=4, feedforward_channels=128)

    def recording(mask_features, sizes):
        look = masked_visibility(mask_features, sizes)

        def recorded(stride, mask_embeddings):
            visible = look(stride, mask_embeddings)
            full = torch.einsum("bqc,bchw->bqhw", mask_embeddings, mask_features)
            resized = nn.functional.interpolate(full, sizes[stride], mode="bilinear", align_corners=False)
            seen.append((stride, resized.flatten(2), visible))
            return visible

        return recorded

    model = MaskClassifier(
        Pyramid(maps),
        build_pixel_decoder(pixel, {stride: level.shape[1] for stride, level in maps.items()}),
        build_query_decoder(query, {32: 64, 16: 64, 8: 64}, 64, num_classes=11),
        recording,
    ).eval()
    prefix = "state_dict."
    state = {
        rename(key.removeprefix(prefix)): value for key, value in tensors.items() if key.startswith(prefix)
    }
    model.load_state_dict(state, strict=True)
    return model


@pytest.fixture(scope="module")
@torch.no_grad()
def prediction(model: MaskClassifier) -> MaskPrediction:
    return model(torch.zeros(2, 3, 149, 203))


def test_every_parameter_of_the_full_size_original_has_its_place(golden: Path) -> None:
    shapes = json.loads((golden / "key_manifests/mask2former_R50_coco_panoptic.json").read_text())["shapes"]
    expected = {rename(key): shape for key, shape in shapes.items() if key.startswith("sem_seg_head.")}
    pixel, query = PixelDecoderConfig(), QueryDecoderConfig()
    with torch.device("meta"):
        parts = {
            "pixel_decoder": build_pixel_decoder(pixel, {4: 256, 8: 512, 16: 1024, 32: 2048}),
            "query_decoder": build_query_decoder(query, {32: 256, 16: 256, 8: 256}, 256, num_classes=133),
        }
    ours = {f"{n}.{k}": list(v.shape) for n, part in parts.items() for k, v in part.state_dict().items()}
    assert ours == expected


@torch.no_grad()
def test_pixel_decoder(model: MaskClassifier, tensors: dict[str, Tensor]) -> None:
    memory, mask_features = model.pixel_decoder(dict(model.backbone(torch.zeros(2, 3, 149, 203))))
    assert list(memory) == [32, 16, 8]
    for index, maps in enumerate(memory.values()):
        torch.testing.assert_close(maps, tensors[f"pixel_decoder.multi_scale.{index}"], atol=1e-4, rtol=0)
    torch.testing.assert_close(mask_features, tensors["pixel_decoder.mask_features"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("index", range(5))
def test_predictions(prediction: MaskPrediction, tensors: dict[str, Tensor], index: int) -> None:
    assert prediction.class_logits.shape[0] == 5
    expected = tensors[f"pred.{index}.class_logits"]
    torch.testing.assert_close(prediction.class_logits[index], expected, atol=1e-4, rtol=0)
    expected = tensors[f"pred.{index}.mask_logits"]
    torch.testing.assert_close(prediction.mask_logits(index), expected, atol=1e-4, rtol=0)


def test_visibility_is_equal_before_and_after_the_rule_for_empty_masks(
    prediction: MaskPrediction, tensors: dict[str, Tensor], seen: list[tuple[int, Tensor, Tensor]]
) -> None:
    assert [stride for stride, _, _ in seen] == [32, 16, 8, 32]
    rescued = []
    for layer, (_, mask_logits, visible) in enumerate(seen):
        assert torch.equal(mask_logits >= 0, ~tensors[f"attn_mask.{layer}.before_rule"])
        assert torch.equal(visible, ~tensors[f"attn_mask.{layer}.used"])
        rescued.append(int((~(mask_logits >= 0).any(-1) & visible.all(-1)).sum()))
    assert rescued == [6, 4, 1, 7]
