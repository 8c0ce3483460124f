"""Families of encoders that only this file and the registry know: trained, evaluated, exported, loaded, imported."""

import dataclasses
import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import load_file
from tiny import demo_flags, recipe

import mvlm_jax
from mvlm_jax.cli import train, weights
from mvlm_jax.errors import UserError
from mvlm_jax.interop.bert import BERT
from mvlm_jax.interop.families import IMAGE_FAMILIES, TEXT_FAMILIES
from mvlm_jax.interop.family import PATCHES, SAME, STACK, Entry, Naming, dense, norm
from mvlm_jax.interop.image_family import ImageFamily
from mvlm_jax.interop.parameters import flat
from mvlm_jax.interop.transformers_folder import write_model
from mvlm_jax.models.compute import Compute
from mvlm_jax.models.dropout import Rates
from mvlm_jax.models.layers import LayerStack, Mlp, token_init
from mvlm_jax.models.norm import LayerNorm
from mvlm_jax.tasks.model import maskvlm_fields

pytestmark = pytest.mark.slow


class Layer(nn.Module):
    """An MLP over each token; the class token gets the mean of all."""

    mlp_ratio: int
    compute: Compute

    @nn.compact
    def __call__(self, x, mask):
        x = x.at[:, 0].add(x.mean(axis=1))
        normed = LayerNorm(1e-6, self.compute.dtype, name="mlp_norm")(x).reshape(-1, x.shape[-1])
        return x + Mlp(self.mlp_ratio, self.compute, name="mlp")(normed).reshape(x.shape)


class Mixer(nn.Module):
    patches: int
    width: int
    heads: int
    layers: int
    mlp_ratio: int
    compute: Compute
    epsilon: float
    frozen_layers: int
    rates: Rates

    @nn.compact
    def __call__(self, patches, patch_masks, dropout_keys=None):
        batch, views, count = patch_masks.shape
        shape = (batch, views, count + 1, self.width)
        embedded = nn.Dense(self.width, name="patch_embedding")(patches)[:, None]
        tokens = [self.param(name, token_init, (1, 1, self.width)) for name in ("cls_token", "mask_token")]
        positions = self.param("position_embedding", token_init, (1, self.patches + 1, self.width))
        shown = jnp.where(patch_masks[..., None], tokens[1], embedded)
        first = jnp.broadcast_to(tokens[0], (batch, views, 1, self.width))
        x = (jnp.concatenate([first, shown], axis=2) + positions).reshape(-1, *shape[2:])
        layer = functools.partial(Layer, self.mlp_ratio, self.compute)
        x = LayerStack(layer, self.layers, self.frozen_layers, self.compute, name="layers")(x, None)
        return x.reshape(shape)


MIXER = ImageFamily(
    kind="mixer",
    namings=(
        Naming(
            title="Mixer of a test",
            entries=(
                Entry("patch_embedding/kernel", "stem.weight", PATCHES),
                Entry("patch_embedding/bias", "stem.bias", SAME),
                Entry("cls_token", "first", SAME),
                Entry("mask_token", "hidden", SAME),
                Entry("position_embedding", "places", SAME),
                *norm(f"{STACK}mlp_norm", "stage.{n}.norm"),
                *dense(f"{STACK}mlp/up", "stage.{n}.wide"),
                *dense(f"{STACK}mlp/down", "stage.{n}.narrow"),
            ),
            replacements=(),
            ignored=(),
        ),
    ),
    model_types=("test_mixer",),
    architecture="MixerModel",
    prefixes=("mixer",),
    anchor="first",
    module=Mixer,
)
# Its tokenizer is BERT's, though its kind is not.
WORDS = dataclasses.replace(BERT, kind="words", model_types=("test_words",))
KINDS = {
    "image_encoder__kind": "mixer", "image_encoder__width": 24, "image_encoder__heads": 3, "image_encoder__layers": 2,
    "text_encoder__kind": "words", "text_encoder__width": 8, "text_encoder__heads": 4, "text_encoder__vocab_size": 160,
}  # fmt: skip
# Without reconstruction and re-ranking there is less to compile.
QUICK = {"task": "retrieval", "loss__mim": 0.0, "loss__mlm": 0.0, "eval__rerank": 0}


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(IMAGE_FAMILIES, "mixer", MIXER)
        patch.setitem(TEXT_FAMILIES, "words", WORDS)
        yield


@pytest.fixture(scope="module")
def trained(demo_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("families") / "run"
    assert train.run(demo_flags(data_dir=demo_dir, workdir=workdir, steps=3, **QUICK, **KINDS)) == 0
    return workdir


@pytest.fixture(scope="module")
def exported(trained):
    folder = trained.parent / "exported"
    assert weights.run(["export", f"--workdir={trained}", f"--output={folder}"]) == 0
    return folder


def test_a_run_trains_and_evaluates(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    evaluation = json.loads((trained / "eval" / "retrieval-shapes-val.json").read_text())
    assert evaluation["images"] == 12


def test_an_export_loads_and_says_what_it_is(exported):
    model = mvlm_jax.load(exported, batch_size=2)
    params = flat(model.params)
    assert params["image_encoder/layers/block/mlp/up/kernel"].shape == (2, 24, 96)
    assert params["image_to_cross/kernel"].shape == (24, 16) and params["text_to_cross/kernel"].shape == (8, 16)
    embedded = model.encode_text(["a red circle", "a blue square"])
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, rtol=1e-5)
    assert json.loads((exported / "image_encoder" / "config.json").read_text())["architectures"] == ["MixerModel"]
    card = (exported / "README.md").read_text()
    assert "`MixerModel` and `BertModel`" in card
    assert "| image encoder (mixer) | 2 | 24 | 3 |" in card and "| text encoder (words) | 1 | 8 | 4 |" in card


def test_exported_folders_are_imported_again(exported, demo_dir, tmp_path, capsys):
    start = {f"init_from__{name}": exported / f"{name}_encoder" for name in ("image", "text")}
    flags = demo_flags(data_dir=demo_dir, workdir="unused", **QUICK, **KINDS, **start)
    flags = [flag for flag in flags if not flag.startswith("--workdir")]
    assert weights.run(["import", *flags, f"--output={tmp_path / 'again'}"]) == 0
    assert "(Mixer of a test)" in capsys.readouterr().out
    for part in ("image_encoder", "text_encoder"):
        before, after = (load_file(folder / part / "model.safetensors") for folder in (exported, tmp_path / "again"))
        assert before.keys() == after.keys()
        for name, value in before.items():
            np.testing.assert_array_equal(after[name], value, err_msg=name)


def test_a_parameter_without_a_name_is_not_left_out_of_an_export(tmp_path):
    params = {"stir/kernel": np.ones((2, 2), np.float32), "layers/block/mlp/up/bias": np.ones((1, 2), np.float32)}
    with pytest.raises(ValueError, match="the entries of mixer do not cover the parameters stir/kernel"):
        write_model(tmp_path / "folder", params, family=MIXER, encoder=recipe("demo").image_encoder, fields={})
    assert not (tmp_path / "folder").exists()


def test_a_folder_of_another_family_is_refused_by_name(exported, demo_dir, capsys):
    flags = demo_flags(data_dir=demo_dir, workdir="unused", init_from__image=exported / "image_encoder")
    flags = [flag for flag in flags if not flag.startswith("--workdir")]
    assert weights.run(["import", *flags]) == 2
    assert "is a 'test_mixer' by its config.json; a ViT needs one of vit, vit_mae, deit" in capsys.readouterr().err


@pytest.mark.parametrize(("part", "known"), [("image_encoder", "vit, .*mixer"), ("text_encoder", "roberta, .*words")])
def test_a_kind_that_does_not_exist_is_refused_with_those_that_do(part, known):
    config = recipe("demo")
    config[part].kind = "perceiver"
    with pytest.raises(UserError, match=f"config.{part}.kind='perceiver' is not one of {known}"):
        maskvlm_fields(config, pad_id=0)
