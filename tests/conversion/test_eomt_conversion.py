"""EoMT under the names of transformers, of the original and of timm: both ways, every tensor, every size."""

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from parity.eomt_models import CLASSES, SIZE, Kind, our_config, our_names, their_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    EomtConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
)

from unimask.checkpoints.images import ModelFile, load_model
from unimask.config.data import SlidingWindow, Square, Whole
from unimask.config.models import VisionTransformerConfig
from unimask.conversion import convert, eomt, hugging_face_config
from unimask.conversion.data_sets import made_up_categories
from unimask.conversion.imagenet import load_imagenet, vision_transformer_from_timm
from unimask.conversion.rules import to_ours, to_theirs
from unimask.errors import WeightsError
from unimask.models.build_eomt import build_eomt, build_vision_transformer
from unimask.presets.eomt import eomt_tiny, published_model

CLASS_OF = {"dinov2": EomtForUniversalSegmentation, "dinov3": EomtDinov3ForUniversalSegmentation}


@pytest.mark.parametrize(
    ("kind", "probability", "gated"),
    [*itertools.product(("dinov2", "dinov3"), (0.0, 1.0), (False,)), ("dinov2", 0.0, True)],
)
def test_a_folder_of_transformers_predicts_the_same_and_comes_back(
    kind: Kind, probability: float, gated: bool, tmp_path: Path
) -> None:
    theirs = their_model(kind, 7, probability, gated=gated)
    theirs.save_pretrained(tmp_path / "theirs")
    split = probability == 1.0
    EomtImageProcessor(do_split_image=split, do_pad=not split).save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    ours, about = load_model(tmp_path / "ours")
    attention = {0.0: "annealed", 1.0: "masked"}[probability]
    model = about.experiment.model
    assert (model.attention, model.queries, model.query_blocks) == (attention, 11, 3)
    assert (model.backbone.kind, model.backbone.size, model.backbone.gated) == (kind, SIZE, gated)
    data = about.experiment.data
    if split:
        assert (data.resize.size, data.view) == (SIZE, SlidingWindow(size=SIZE))
    else:
        assert (data.resize, data.view) == (Square(size=SIZE), Whole())
    assert ("DINOv3 License" in about.provenance) == (kind == "dinov3")
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected, found = theirs(pixel_values=pixels), ours.eval()(pixels)
    torch.testing.assert_close(found.class_logits[-1], expected.class_queries_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.mask_logits(), expected.masks_queries_logits, atol=1e-4, rtol=0)

    convert(tmp_path / "ours", tmp_path / "back", to="transformers")
    assert EomtImageProcessor.from_pretrained(tmp_path / "back").do_split_image == split
    back, report = CLASS_OF[kind].from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report.values())
    before, after = theirs.state_dict(), back.state_dict()
    assert before.keys() == after.keys()
    for key in before:
        assert torch.equal(before[key], after[key]), key
    for name in ("num_blocks", "num_queries", "hidden_size", "num_attention_heads", "image_size"):
        assert getattr(back.config, name) == getattr(theirs.config, name)


def test_gates_in_one_tensor_with_values_are_read(tmp_path: Path) -> None:
    """Earlier versions of transformers kept them so."""
    theirs = their_model("dinov2", 7, 0.0, gated=True)
    theirs.save_pretrained(tmp_path / "theirs")
    EomtImageProcessor().save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    expected, _ = load_model(tmp_path / "ours")
    packed = {}
    for key, tensor in theirs.state_dict().items():
        if "mlp.gate_proj" in key:
            values = theirs.state_dict()[key.replace("gate_proj", "up_proj")]
            packed[key.replace("gate_proj", "weights_in")] = torch.cat([tensor, values])
        elif "mlp.up_proj" not in key:
            packed[key.replace("mlp.down_proj", "mlp.weights_out")] = tensor
    assert len(packed) == len(theirs.state_dict()) - 2 * 5
    save_file(packed, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
    convert(tmp_path / "theirs", tmp_path / "again")
    found, _ = load_model(tmp_path / "again")
    for one, other in zip(found.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_gates_of_dinov3_are_not_converted(tmp_path: Path) -> None:
    """Where transformers has them, its heads have the activation of the gates, too: it is another model."""
    theirs = their_model("dinov3", 7, 0.0)
    theirs.config.use_gated_mlp = True
    theirs.save_pretrained(tmp_path / "theirs")
    EomtImageProcessor().save_pretrained(tmp_path / "theirs")
    with pytest.raises(WeightsError, match="use_gated_mlp"):
        convert(tmp_path / "theirs", tmp_path / "ours")
    config = our_config("dinov3", gated=True)
    about = ModelFile(
        experiment=replace(eomt_tiny(), model=config),
        task="panoptic",
        categories=made_up_categories(CLASSES),
        licence="none",
        provenance="random",
    )
    with pytest.raises(WeightsError, match=r"has no such model: backbone\.gated is True"):
        hugging_face_config.format_for(config).names.write(build_eomt(config, CLASSES), about)


def published(name: str, kind: Kind) -> nn.Module:
    """Transformers' model of a published size, without numbers."""
    ours = published_model(name, 640, kind)
    width, blocks, heads = ours.backbone.channels, ours.backbone.blocks, ours.backbone.heads
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_blocks": ours.query_blocks,
        "num_labels": 133,
    }
    with torch.device("meta"):
        if kind == "dinov3":
            config = EomtDinov3Config(**sizes, intermediate_size=4 * width)
            return EomtDinov3ForUniversalSegmentation(config)
        return EomtForUniversalSegmentation(EomtConfig(**sizes, use_swiglu_ffn=ours.backbone.gated))


@pytest.mark.parametrize(
    ("name", "kind"),
    [*itertools.product(("small", "base", "large"), ("dinov2", "dinov3")), ("giant", "dinov2")],
)
def test_names_and_shapes_of_published_models(name: str, kind: Kind) -> None:
    """Our tensors are theirs, one to one; and under the original's names they come back to the same."""
    with torch.device("meta"):
        ours = build_eomt(published_model(name, 640, kind), 133).state_dict()
    of_transformers = hugging_face_config.format_for(published_model(name, 640, kind)).names
    of_original = {"dinov2": eomt.ORIGINAL_DINOV2, "dinov3": eomt.ORIGINAL_DINOV3}[kind]
    theirs = {
        key: tensor
        for key, tensor in published(name, kind).state_dict().items()
        if not re.fullmatch(of_transformers.not_weights, key)
    }
    shapes = {key: tensor.shape for key, tensor in ours.items()}
    for rules, expected in ((of_transformers.rules, theirs), (of_original.rules, None)):
        there = to_theirs(ours, rules)
        assert not there.unknown
        if expected is not None:
            assert {k: t.shape for k, t in there.tensors.items()} == {k: t.shape for k, t in expected.items()}
        back = to_ours(there.tensors, rules)
        assert not back.unknown
        assert {key: tensor.shape for key, tensor in back.tensors.items()} == shapes


def original_dinov2(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of transformers under the original's names, written down apart from the importer."""
    backbone = "network.encoder.backbone"
    names = [
        (r"embeddings\.cls_token", f"{backbone}.cls_token"),
        (r"embeddings\.register_tokens", f"{backbone}.reg_token"),
        (r"embeddings\.position_embeddings\.weight", f"{backbone}.pos_embed"),
        (r"embeddings\.patch_embeddings\.projection", f"{backbone}.patch_embed.proj"),
        (r"layers\.(\d+)\.(norm\d|mlp)", rf"{backbone}.blocks.\1.\2"),
        (r"layers\.(\d+)\.attention\.out_proj", rf"{backbone}.blocks.\1.attn.proj"),
        (r"layers\.(\d+)\.layer_scale(\d)\.lambda1", rf"{backbone}.blocks.\1.ls\2.gamma"),
        ("layernorm", f"{backbone}.norm"),
        (r"query\.", "network.q."),
        ("class_predictor", "network.class_head"),
        (r"mask_head\.fc1", "network.mask_head.0"),
        (r"mask_head\.fc2", "network.mask_head.2"),
        (r"mask_head\.fc3", "network.mask_head.4"),
        (r"upscale_block\.block\.(\d)\.layernorm2d", r"network.upscale.\1.norm"),
        (r"upscale_block\.block", "network.upscale"),
        ("attn_mask_probs", "network.attn_mask_probs"),
    ]
    found: dict[str, Tensor] = {}
    for key, tensor in theirs.items():
        if match := re.fullmatch(r"layers\.(\d+)\.attention\.([qkv])_proj\.(\w+)", key):
            number, part, parameter = match.groups()
            if part == "q":
                parts = [theirs[f"layers.{number}.attention.{one}_proj.{parameter}"] for one in "qkv"]
                found[f"{backbone}.blocks.{number}.attn.qkv.{parameter}"] = torch.cat(parts)
            continue
        for pattern, name in names:
            key = re.sub(f"^{pattern}", name, key)
        found[key] = tensor[None] if key.endswith("pos_embed") else tensor
    return found


def test_a_file_of_the_original_becomes_ours_and_comes_back(tmp_path: Path) -> None:
    theirs = their_model("dinov2", 8, 0.0)
    state = original_dinov2(theirs.state_dict())
    state["network.encoder.pixel_mean"] = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    state["network.encoder.pixel_std"] = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    # heads are 64 wide in published models, which no tensor tells: here there is one of 48
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"heads"):
        convert(tmp_path / "pytorch_model.bin", tmp_path / "ours")
    wide = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 1,
        "num_blocks": 2,
        "num_queries": 7,
        "image_size": SIZE,
        "num_labels": CLASSES,
    }
    theirs = EomtForUniversalSegmentation(EomtConfig(**wide)).eval()
    theirs.attn_mask_probs.zero_()
    state |= original_dinov2(theirs.state_dict())
    state = {key: tensor for key, tensor in state.items() if not re.search(r"blocks\.[34]\.", key)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    about = convert(tmp_path, tmp_path / "ours")
    ours, _ = load_model(tmp_path / "ours")
    assert (about.experiment.model.query_blocks, about.experiment.model.backbone.size) == (2, SIZE)
    pixels = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected, found = theirs(pixel_values=pixels), ours.eval()(pixels)
    torch.testing.assert_close(found.mask_logits(), expected.masks_queries_logits, atol=1e-4, rtol=0)

    convert(tmp_path / "ours", tmp_path / "back.pth", to="original")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert back.keys() == state.keys()
    for key in state:
        torch.testing.assert_close(back[key], state[key], atol=1e-6 if "pixel" in key else 0.0, rtol=0)


def test_differences_to_dinov3_need_their_base(tmp_path: Path) -> None:
    wide = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 1,
        "intermediate_size": 96,
        "layer_norm_eps": 1e-5,
        "num_blocks": 2,
        "num_queries": 7,
        "image_size": 640,
        "num_labels": CLASSES,
    }
    theirs = EomtDinov3ForUniversalSegmentation(EomtDinov3Config(**wide)).eval()
    theirs.attn_mask_probs.zero_()
    complete = theirs.state_dict()
    backbone = "network.encoder.backbone"
    names = [
        (r"embeddings\.", f"{backbone}.patch_embed."),
        (r"layers\.", f"{backbone}.blocks."),
        (r"layernorm\.", f"{backbone}.norm."),
        (r"query\.", "network.q."),
        ("class_predictor", "network.class_head"),
        (r"mask_head\.fc1", "network.mask_head.0"),
        (r"mask_head\.fc2", "network.mask_head.2"),
        (r"mask_head\.fc3", "network.mask_head.4"),
        (r"upscale_block\.block\.(\d)\.layernorm2d", r"network.upscale.\1.norm"),
        (r"upscale_block\.block", "network.upscale"),
        ("attn_mask_probs", "network.attn_mask_probs"),
    ]
    base, differences = {}, {}
    generator = torch.Generator().manual_seed(9)
    for key, tensor in complete.items():
        name = key
        for pattern, replacement in names:
            name = re.sub(f"^{pattern}", replacement, name)
        if name.startswith(backbone):
            there = re.sub(r"^layernorm\.", "norm.", re.sub(r"^layers\.", "layer.", key))
            base[there] = torch.randn(tensor.shape, generator=generator)
            differences[name] = tensor - base[there]
        else:
            differences[name] = tensor
    base["embeddings.mask_token"] = torch.zeros(1, 1, 64)
    torch.save(differences, tmp_path / "differences.bin")
    torch.save(base, tmp_path / "base.pth")
    with pytest.raises(WeightsError, match=r"differences to the weights of DINOv3.*--base FILE"):
        convert(tmp_path / "differences.bin", tmp_path / "ours")
    other = {key: tensor[..., :32] if tensor.ndim == 1 else tensor for key, tensor in base.items()}
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="is not the DINOv3 that the differences are to"):
        convert(tmp_path / "differences.bin", tmp_path / "ours", base=tmp_path / "other.pth")

    for value, reason in (
        (math.nan, "not finite"),
        (math.inf, "not finite"),
        (None, "another kind of number"),
    ):
        broken = {key: tensor.clone() for key, tensor in base.items()}
        key = next(name for name in broken if name.startswith("layer."))
        if value is None:
            broken[key] = broken[key].long()
        else:
            broken[key].view(-1)[0] = value
        torch.save(broken, tmp_path / "broken.pth")
        with pytest.raises(WeightsError, match=rf"broken\.pth: .*{reason}"):
            convert(tmp_path / "differences.bin", tmp_path / "ours", base=tmp_path / "broken.pth")
        assert not (tmp_path / "ours").exists()

    about = convert(tmp_path / "differences.bin", tmp_path / "ours", base=tmp_path / "base.pth")
    assert "Meta's DINOv3 License" in about.provenance
    ours, _ = load_model(tmp_path / "ours")
    expected = our_names(complete, "dinov3")
    found = ours.state_dict()
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], atol=1e-6, rtol=0)
    with pytest.raises(WeightsError, match="differences to Meta's DINOv3 only; take --to transformers"):
        convert(tmp_path / "ours", tmp_path / "back.pth", to="original")
    torch.save(original_dinov2(their_model("dinov2", 8, 0.0).state_dict()), tmp_path / "whole.bin")
    with pytest.raises(WeightsError, match="leave --base out"):
        convert(tmp_path / "whole.bin", tmp_path / "again", base=tmp_path / "base.pth")


def test_masks_in_the_middle_of_annealing_are_refused(tmp_path: Path) -> None:
    their_model("dinov2", 7, 0.5).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"middle of mask annealing.*0\.5, 0\.5, 0\.5"):
        convert(tmp_path, tmp_path / "ours")


@pytest.mark.parametrize(("kind", "patch"), [("dinov2", 14), ("dinov3", 16)])
def test_a_backbone_starts_from_a_file_of_timm(kind: Kind, patch: int, tmp_path: Path) -> None:
    """At the size timm has them for, the backbone is timm's; at another, it is resampled as timm does."""
    name = {"dinov2": "vit_small_patch14_reg4_dinov2", "dinov3": "vit_small_patch16_dinov3"}[kind]
    theirs = timm.create_model(name, num_classes=0).eval()
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    config = published_model("small", 512, kind).backbone
    native = VisionTransformerConfig(**{**vars(config), "patch": patch, "size": 518 if patch == 14 else 512})
    ours = build_vision_transformer(native).eval()
    assert "timm.pth" in load_imagenet(name, ours, tmp_path / "timm.pth")
    side = native.size if kind == "dinov2" else 256
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(ours(pixels), theirs.forward_features(pixels), atol=1e-3, rtol=1e-3)
    resampled = build_vision_transformer(config)
    load_imagenet(name, resampled, tmp_path / "timm.pth")
    assert resampled.patches.weight.shape == (384, 3, 16, 16)
    assert torch.equal(resampled.blocks[5].attention.output.weight, ours.blocks[5].attention.output.weight)
    if kind == "dinov2":
        expected = timm.create_model(name, num_classes=0, img_size=512, patch_size=16)
        filtered = timm.models.vision_transformer.checkpoint_filter_fn(theirs.state_dict(), expected)
        torch.testing.assert_close(resampled.positions.embedding, filtered["pos_embed"])
        torch.testing.assert_close(resampled.patches.weight, filtered["patch_embed.proj.weight"])
    strange = theirs.state_dict() | {"head.weight": torch.zeros(3)}
    with pytest.raises(
        WeightsError, match=r"(?s)is not a Vision Transformer of DINOv2 or DINOv3.*head\.weight"
    ):
        vision_transformer_from_timm(resampled, strange, "timm")


def test_our_config_of_the_tests_is_small() -> None:
    assert sum(p.numel() for p in build_eomt(our_config("dinov2"), CLASSES).parameters()) < 1_000_000
