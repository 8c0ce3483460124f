"""Text encoders under the kind of another one, and those that cannot be read at all."""

import numpy as np
import pytest
from sources import GOLDEN, file_of, folder_of, golden, imported, refusal

from mvlm_jax.errors import UserError
from mvlm_jax.interop.families import TEXT_FAMILIES
from mvlm_jax.interop.importing import inspect
from mvlm_jax.interop.unreadable import UNREADABLE

ONE = np.ones((2, 2), np.float32)
READ = "text encoders of kind roberta, bert, distilbert, mpnet are read"
# The tensors by which each is known, as published files name them, and what the line says is missing.
FOREIGN = {
    "deberta": (["deberta.encoder.layer.0.attention.self.in_proj.weight"], "a DeBERTa", "disentangled"),
    "deberta-v2": (["deberta.encoder.rel_embeddings.weight"], "a DeBERTa", "disentangled"),
    "modernbert": (["model.embeddings.tok_embeddings.weight"], "a ModernBERT", "rotary positions"),
    "albert": (["albert.encoder.embedding_hidden_mapping_in.weight"], "an ALBERT", "share one set of parameters"),
    "electra": (["electra.embeddings_project.weight"], "an ELECTRA", "embeddings narrower than the layers"),
    "t5": (["encoder.block.0.layer.0.SelfAttention.q.weight"], "a T5", "RMS norms"),
    "clip_text_model": (["text_model.embeddings.token_embedding.weight"], "a CLIP text tower", "only those before"),
    "gpt2": (["h.0.attn.c_attn.weight"], "a decoder", "see only those before them"),
    "llama": (["model.layers.0.mlp.gate_proj.weight"], "a decoder", "see only those before them"),
}
OPEN_CLIP = "transformer.resblocks.0.ln_1.weight"


def refused(source, kind="bert", **changes):
    with pytest.raises(UserError) as error:
        imported(source, kind, **changes)
    return refusal(error)


@pytest.mark.parametrize("model_type", FOREIGN)
def test_what_cannot_be_read_is_refused_by_name_with_what_is_missing(model_type, tmp_path):
    names, title, missing = FOREIGN[model_type]
    # Beside the tensors that it shares with BERT.
    tensors = {name: value for name, value in golden("bert").items() if ".self." not in name}
    file = file_of(tmp_path / "weights.safetensors", tensors | dict.fromkeys(names, ONE))
    for line in (refused(file), inspect(file)[-2]):
        assert f"is {title} ({names[0]}), which needs" in line and missing in line and line.endswith(READ)
    folder = folder_of(tmp_path / "folder", "bert", model_type=model_type)
    for line in (refused(folder), inspect(folder)[-2]):
        assert f"is {title} ({model_type!r} in its config.json)" in line and missing in line


def test_the_text_tower_of_open_clip_is_told_from_its_image_tower(tmp_path):
    file = file_of(tmp_path / "open_clip.safetensors", {OPEN_CLIP: ONE, f"visual.{OPEN_CLIP}": ONE})
    assert f"is a CLIP text tower ({OPEN_CLIP})" in refused(file)
    assert "CLIP text tower" not in refused(file_of(tmp_path / "visual.safetensors", {f"visual.{OPEN_CLIP}": ONE}))


@pytest.mark.parametrize("kind", TEXT_FAMILIES)
def test_no_encoder_that_is_read_is_taken_for_one_that_is_not(kind):
    assert not {each for entry in UNREADABLE for each in entry.model_types} & set(TEXT_FAMILIES[kind].model_types)
    assert imported(GOLDEN / kind, kind).tensors > 20


@pytest.mark.parametrize("kind", TEXT_FAMILIES)
@pytest.mark.parametrize("given", TEXT_FAMILIES)
def test_another_kind_is_refused_with_the_flag_that_mends_it(kind, given, tmp_path):
    if kind == given:
        return
    line = refused(folder_of(tmp_path / "folder", kind), given)
    assert f"is a {kind!r} by its config.json" in line and line.endswith(f"give --config.text_encoder.kind={kind}")
    # Without a config.json the names tell, and the token types tell RoBERTa from BERT.
    line = refused(file_of(tmp_path / "weights.safetensors", golden(kind)), given)
    if {kind, given} == {"bert", "roberta"}:
        assert f"token types, as {kind} has" in line and line.endswith(f"give --config.text_encoder.kind={kind}")
    else:
        titles = [TEXT_FAMILIES[name].namings[0].title for name in (kind, given)]
        assert f"is a text encoder ({titles[0]}); {titles[1]} is wanted here" in line


def test_another_number_of_buckets_is_refused(tmp_path):
    table = "encoder.relative_attention_bias.weight"
    tensors = golden("mpnet")
    file = file_of(tmp_path / "weights.safetensors", tensors | {table: np.ones((64, 2), np.float32)})
    assert "has 64 buckets of distances; MPNet has 32" in refused(file, "mpnet")


def test_the_head_of_pretraining_is_left_out_behind_the_published_prefix(tmp_path):
    for kind, head in (("distilbert", "vocab_projector.bias"), ("mpnet", "lm_head.dense.weight")):
        tensors = {f"{kind}.{name}": value for name, value in golden(kind).items()} | {head: ONE}
        report = imported(file_of(tmp_path / f"{kind}.safetensors", tensors), kind)
        assert report.prefix == f"{kind}." and [head] in report.not_used.values()
        assert report.initial == []
