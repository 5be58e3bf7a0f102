"""A tiny random Marian of transformers through our importer: equal logits, equal beams; and back again."""

import json
from pathlib import Path

import pytest
import torch
from models import copying
from models.copying import copying_model
from transformers import MarianConfig, MarianMTModel

from unimask.checkpoints.text import load_sequence_model, save_sequence_model
from unimask.conversion.marian import (
    export_folder,
    export_tensors,
    import_folder,
    import_tensors,
    read_settings,
)
from unimask.data.text.vocabulary import learn_vocabulary
from unimask.errors import WeightsError
from unimask.models.decoding import beam_search, decode
from unimask.models.seq2seq import Seq2Seq
from unimask.structures import Special

WORDS = 41


def marian(activation: str = "swish", **changes: object) -> MarianMTModel:
    torch.manual_seed(3)
    settings: dict[str, object] = {
        "vocab_size": WORDS,
        "decoder_vocab_size": WORDS,
        "d_model": 20,
        "encoder_layers": 3,
        "decoder_layers": 2,
        "encoder_attention_heads": 5,
        "decoder_attention_heads": 5,
        "encoder_ffn_dim": 27,
        "decoder_ffn_dim": 27,
        "max_position_embeddings": 61,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
        "eos_token_id": 2,
        "forced_eos_token_id": None,
        "scale_embedding": True,
        "activation_function": activation,
        "init_std": 0.2,
    }
    model = MarianMTModel(MarianConfig(**{**settings, **changes})).eval()
    torch.nn.init.normal_(model.final_logits_bias)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=0.5, std=0.5)
    return model


def ours(theirs: MarianMTModel) -> tuple[Seq2Seq, Special]:
    experiment, special = read_settings(theirs.config.to_dict(), Path("config.json"))
    return import_tensors(theirs.state_dict(), experiment.model, Path("marian")), special


def inputs(count: int = 3, places: int = 13) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    source = torch.randint(3, WORDS, (count, places), generator=generator)
    valid = torch.arange(places) < torch.tensor([places, 7, 2, 11, 5])[:count, None]
    return source.masked_fill(~valid, 0), valid


@pytest.mark.parametrize("activation", ["swish", "relu", "gelu"])
def test_logits_are_theirs(activation: str) -> None:
    theirs = marian(activation)
    model, _ = ours(theirs)
    source, valid = inputs()
    tokens = torch.randint(3, WORDS, (3, 11), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected = theirs(input_ids=source, attention_mask=valid.long(), decoder_input_ids=tokens).logits
        found = model.logits(model(source, valid, tokens))
    assert expected.abs().max() > 1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("beams", "penalty"), [(1, 1.0), (2, 1.0), (5, 0.6), (5, 1.7), (4, 0.0)])
def test_beams_are_theirs(beams: int, penalty: float) -> None:
    model, special = copying_model("halves"), Special(padding=0, begin=1, end=2)
    theirs = marian(
        vocab_size=copying.WORDS,
        decoder_vocab_size=copying.WORDS,
        d_model=copying.CHANNELS,
        encoder_layers=2,
        encoder_attention_heads=copying.HEADS,
        decoder_attention_heads=copying.HEADS,
        encoder_ffn_dim=19,
        decoder_ffn_dim=19,
        decoder_start_token_id=1,
    )
    state = export_tensors(model)
    absent = theirs.load_state_dict(state, strict=False)
    assert not absent.unexpected_keys
    assert all("embed" in key or "lm_head" in key for key in absent.missing_keys)
    source, valid = copying.sources(10)
    limit = 14
    expected = theirs.generate(
        input_ids=source,
        attention_mask=valid.long(),
        num_beams=beams,
        do_sample=False,
        length_penalty=penalty,
        max_new_tokens=limit,
        bad_words_ids=[[0], [1]],
    )
    limits = torch.full((10,), limit)
    if beams == 1:
        found = decode(model, source, valid, limits, special)
    else:
        found = beam_search(model, source, valid, limits, special, beams=beams, length_penalty=penalty)
    texts = [[token for token in row if token > 2] for row in expected.tolist()]
    assert [list(one.tokens) for one in found] == texts
    assert len({len(text) for text in texts}) > 2


def test_names_go_both_ways(tmp_path: Path) -> None:
    theirs = marian()
    theirs.save_pretrained(tmp_path / "theirs")
    known = learn_vocabulary(["ein hund läuft", "zwei hunde"], WORDS, lowercase=False).to_json()
    (tmp_path / "theirs" / "tokenizer.json").write_text(known, encoding="utf-8")
    model, about = import_folder(tmp_path / "theirs", "CC-BY")
    save_sequence_model(tmp_path / "ours", model, about)
    again, same = load_or_skip(tmp_path / "ours", len(about.vocabulary))
    assert same == about.experiment
    export_folder(tmp_path / "back", again, about)
    returned = MarianMTModel.from_pretrained(tmp_path / "back")
    state, before = returned.state_dict(), theirs.state_dict()
    assert state.keys() == before.keys()
    assert all(torch.equal(state[key], before[key]) for key in before)
    assert returned.config.activation_function == "swish"


def load_or_skip(folder: Path, rows: int) -> tuple[Seq2Seq, object]:
    """The model of a folder; its vocabulary is smaller than the model here, which is an error to users."""
    assert rows != WORDS
    with pytest.raises(WeightsError, match=f"holds {rows} tokens, the weights are for {WORDS}"):
        load_sequence_model(folder)
    state = import_tensors(
        export_tensors_of(folder), read_settings(marian().config.to_dict(), folder)[0].model, folder
    )
    return state, read_settings(json.loads((folder.parent / "theirs" / "config.json").read_text()), folder)[0]


def export_tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    model, _ = ours(marian())
    return export_tensors(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_embedding": False}, "scale_embedding is False"),
        ({"model_type": "bart"}, "model_type is 'bart'"),
        ({"encoder_ffn_dim": 3}, "differ in ffn_dim"),
        ({"activation_function": "tanh"}, "activation_function is 'tanh'"),
        ({"d_model": None}, "d_model is None"),
    ],
)
def test_other_models_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        read_settings({**marian().config.to_dict(), **changes}, Path("config.json"))


def test_weights_that_do_not_fit_are_named() -> None:
    theirs = marian()
    experiment, _ = read_settings(theirs.config.to_dict(), Path("config.json"))
    tensors = dict(theirs.state_dict())
    del tensors["model.decoder.layers.1.fc2.bias"]
    tensors["extra"] = torch.zeros(2)
    with pytest.raises(WeightsError, match="does not fit") as caught:
        import_tensors(tensors, experiment.model, Path("marian"))
    assert caught.value.missing == ("model.decoder.layers.1.fc2.bias",)
    assert caught.value.unexpected == ("extra",)
    apart = {**theirs.state_dict(), "lm_head.weight": torch.zeros(WORDS, 20)}
    with pytest.raises(WeightsError, match="not shared"):
        import_tensors(apart, experiment.model, Path("marian"))
    for key in ("model.shared.weight", "model.decoder.layers.1.fc2.bias"):
        for value in (float("nan"), float("inf")):
            whole = {name: tensor.clone() for name, tensor in marian().state_dict().items()}
            whole[key].view(-1)[0] = value  # also of the copies, which share memory in their file
            if key == "model.shared.weight":
                whole |= {
                    name: whole[key]
                    for name in whole
                    if name.endswith(("embed_tokens.weight", "lm_head.weight"))
                }
            with pytest.raises(WeightsError, match="not finite"):
                import_tensors(whole, experiment.model, Path("marian"))
    with pytest.raises(WeightsError, match="no name in it"):
        import_tensors({"a": torch.zeros(1)}, experiment.model, Path("marian"))
