"""MaskFormer's heads and its ResNet with a deep stem against stored outputs, through the importer's rules."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unimask.config.models import PixelDecoderConfig, QueryDecoderConfig
from unimask.conversion import original
from unimask.conversion.rules import Rule, to_ours
from unimask.models.backbones import STRIDES, NetworkBackbone, freeze_norms
from unimask.models.build import VISIBILITY, build_pixel_decoder, build_query_decoder, memory_channels
from unimask.models.mask_classifier import MaskClassifier
from unimask.models.pixel_decoders import EncodedMap
from unimask.models.timm_backbone import set_multi_grid
from unimask.models.transformer_encoder import TransformerEncoder, encoder_layer

PREFIX = "state_dict."
ENCODER = "sem_seg_head.predictor.transformer.encoder.layers.{layer}"
OUR_ENCODER = "query_decoder.projections.32.encoder.layers.{layer}"
ENCODER_OF_THE_PREDICTOR = (  # no release has one
    Rule(
        "query_decoder.projections.32.projection.{parameter}", "sem_seg_head.predictor.input_proj.{parameter}"
    ),
    Rule(f"{OUR_ENCODER}.attention.attention.input_weight", f"{ENCODER}.self_attn.in_proj_weight"),
    Rule(f"{OUR_ENCODER}.attention.attention.input_bias", f"{ENCODER}.self_attn.in_proj_bias"),
    Rule(
        f"{OUR_ENCODER}.attention.attention.output.{{parameter}}",
        f"{ENCODER}.self_attn.out_proj.{{parameter}}",
    ),
    Rule(f"{OUR_ENCODER}.attention_residual.norm.{{parameter}}", f"{ENCODER}.norm1.{{parameter}}"),
    Rule(f"{OUR_ENCODER}.feedforward.expand.{{parameter}}", f"{ENCODER}.linear1.{{parameter}}"),
    Rule(f"{OUR_ENCODER}.feedforward.contract.{{parameter}}", f"{ENCODER}.linear2.{{parameter}}"),
    Rule(f"{OUR_ENCODER}.feedforward_residual.norm.{{parameter}}", f"{ENCODER}.norm2.{{parameter}}"),
)


class Stored(nn.Module):
    """A backbone that gives stored maps."""

    def __init__(self, maps: dict[int, Tensor]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, pixels: Tensor) -> dict[int, Tensor]:
        return self.maps


def head(golden: Path, name: str) -> tuple[MaskClassifier, dict[str, Tensor]]:
    stored = load_file(golden / f"{name}.safetensors")
    sizes = json.loads((golden / f"{name}.json").read_text())["hyper_parameters"]
    maps = {2**stage: stored[f"input.res{stage}"] for stage in range(2, 6)}
    channels = {stride: values.shape[1] for stride, values in maps.items()}
    pixel = PixelDecoderConfig(
        kind="pyramid",
        strides=(32,),
        channels=sizes["conv_dim"],
        mask_channels=sizes["mask_dim"],
        layers=sizes["pixel_decoder_enc_layers"],
        heads=sizes["nheads"],
        feedforward_channels=sizes["dim_feedforward"],
        dropout=0.1,
    )
    query = QueryDecoderConfig(
        queries=sizes["num_queries"],
        channels=sizes["hidden_dim"],
        heads=sizes["nheads"],
        feedforward_channels=sizes["dim_feedforward"],
        layers=sizes["dec_layers"],
        dropout=0.1,
        memory_strides=(32,),
        level_embedding=False,
        visibility="full",
        order=("self", "cross", "feedforward"),
        query_features="zeros",
        predict_before_layers=False,
    )
    decoder = build_query_decoder(
        query, memory_channels(pixel, channels), pixel.mask_channels, sizes["num_classes"]
    )
    if sizes["enc_layers"]:
        layers = [encoder_layer(query.channels, query.heads, query.feedforward_channels, 0.1)] * sizes[
            "enc_layers"
        ]
        decoder.projections["32"] = EncodedMap(decoder.projections["32"], TransformerEncoder(layers))
    model = MaskClassifier(
        Stored(maps), build_pixel_decoder(pixel, channels), decoder, VISIBILITY[query.visibility]
    ).eval()
    theirs = {key.removeprefix(PREFIX): value for key, value in stored.items() if key.startswith(PREFIX)}
    rules = ENCODER_OF_THE_PREDICTOR if sizes["enc_layers"] else ()
    renamed = to_ours(theirs, (*rules, *original.MASKFORMER.rules))
    assert not renamed.unknown
    model.load_state_dict(renamed.tensors)
    return model, stored


@pytest.mark.parametrize(
    ("name", "predictions"),
    [("maskformer_head_base_small", 2), ("maskformer_head_transformer_encoder_small", 3)],
)
@torch.no_grad()
def test_heads(golden: Path, name: str, predictions: int) -> None:
    model, stored = head(golden, name)
    memory, mask_features = model.pixel_decoder(dict(model.backbone(torch.zeros(1, 3, 124, 180))))
    assert list(memory) == [32, 16, 8]
    torch.testing.assert_close(mask_features, stored["pixel_decoder.mask_features"], atol=1e-4, rtol=0)
    encoded = stored.get("pixel_decoder.transformer_encoder_features", stored["input.res5"])
    torch.testing.assert_close(memory[32], encoded, atol=1e-4, rtol=0)
    prediction = model(torch.zeros(1, 3, 124, 180))
    assert len(prediction.class_logits) == predictions
    for index in range(predictions):
        expected = stored[f"pred.{index}.class_logits"]
        torch.testing.assert_close(prediction.class_logits[index], expected, atol=1e-4, rtol=0)
        expected = stored[f"pred.{index}.mask_logits"]
        torch.testing.assert_close(prediction.mask_logits(index), expected, atol=1e-4, rtol=0)


def narrow_resnet() -> NetworkBackbone:
    """timm's ResNet-50 with a deep stem, a sixteenth as wide, and the multi-grid."""
    network = timm.create_model("resnet50s", features_only=True, channels=(4, 8, 16, 32), stem_width=4)
    set_multi_grid(network.layer4)
    freeze_norms(network)
    outputs = {stride: index for index, stride in enumerate(STRIDES, start=1)}
    return NetworkBackbone(
        network, channels={s: 4 * s for s in STRIDES}, outputs=outputs, channels_last=False
    )


@torch.no_grad()
def test_resnet_with_a_deep_stem_and_a_multi_grid(golden: Path) -> None:
    stored = load_file(golden / "resnet50_deeplab_small.safetensors")
    theirs = {key.removeprefix(PREFIX): value for key, value in stored.items() if key.startswith(PREFIX)}
    renamed = to_ours(theirs, original.MASKFORMER_DEEP_STEM.rules)
    assert not renamed.unknown
    backbone = narrow_resnet().eval()
    backbone.load_state_dict({key.removeprefix("backbone."): v for key, v in renamed.tensors.items()})
    maps = backbone(stored["input.image"])
    for stage, stride in enumerate(STRIDES, start=2):
        expected = stored[f"output.res{stage}"]
        torch.testing.assert_close(maps[stride], expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
