"""A published folder that is imported and written again holds the same tensors, bit for bit."""

import numpy as np
import pytest
from safetensors.numpy import load_file
from sources import GOLDEN, encoder_of, golden

from mvlm_jax.data.text import train_tokenizer
from mvlm_jax.files import read_json
from mvlm_jax.interop.families import text_family

CAPTIONS = ["a red square", "a blue disc above a red square"]


def same_tensors(folder, name):
    written = load_file(folder / "model.safetensors")
    expected = {key: value for key, value in golden(name).items() if not key.startswith("pooler.")}
    assert set(written) == set(expected)
    for key, value in expected.items():
        assert written[key].dtype == np.float32
        np.testing.assert_array_equal(written[key], value, err_msg=key)


def same_config(folder, name, *fields):
    written, expected = read_json(folder / "config.json"), read_json(GOLDEN / name / "config.json")
    sizes = ("model_type", "architectures", "hidden_size", "num_hidden_layers", "num_attention_heads",
             "intermediate_size", "hidden_act", "layer_norm_eps")  # fmt: skip
    assert {field: written.get(field) for field in (*sizes, *fields)} == {
        field: expected.get(field) for field in (*sizes, *fields)
    }


def test_a_vit(tmp_path):
    encoder_of(GOLDEN / "vit", "vit").write(tmp_path / "vit")
    same_tensors(tmp_path / "vit", "vit")
    same_config(tmp_path / "vit", "vit", "image_size", "patch_size", "num_channels", "qkv_bias")


FIELDS = {
    "roberta": ["type_vocab_size"],
    "bert": ["type_vocab_size"],
    "distilbert": ["dim", "n_layers", "n_heads", "hidden_dim", "activation"],
    "mpnet": ["relative_attention_num_buckets"],
}


@pytest.mark.parametrize("kind", FIELDS)
def test_a_text_encoder(kind, tmp_path):
    tokenizer = train_tokenizer(CAPTIONS, kind=text_family(kind).tokenizer, vocab_size=300)
    encoder_of(GOLDEN / kind, kind).write(tmp_path / kind, tokenizer)
    written = load_file(tmp_path / kind / "model.safetensors")
    assert len(written["embeddings.position_embeddings.weight"]) == len(
        golden(kind)["embeddings.position_embeddings.weight"]
    )
    same_tensors(tmp_path / kind, kind)
    same_config(tmp_path / kind, kind, "vocab_size", "max_position_embeddings", "pad_token_id", *FIELDS[kind])


def test_timm_and_transformers_naming_give_the_same_parameters(tmp_path):
    """One encoder, written under the other naming, comes back as it was."""
    encoder = encoder_of(GOLDEN / "timm", "timm")
    params = encoder.params
    encoder.write(tmp_path / "vit")
    again = encoder_of(tmp_path / "vit", "timm").params
    assert set(again) == set(params)
    for path, value in params.items():
        np.testing.assert_array_equal(again[path], value, err_msg=path)
