"""Whatever is wrong with a source is said in one line, and half of it is never loaded."""

import json
import os
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from sources import encoder_of, file_of, folder_of, golden, imported, refusal

from mvlm_jax import config as config_lib
from mvlm_jax.errors import UserError
from mvlm_jax.interop.importing import inspect
from mvlm_jax.interop.tensors import open_tensors
from mvlm_jax.tasks.registry import validate


def renamed(tensors, change):
    return {change(name): value for name, value in tensors.items()}


def without(tensors, *names):
    assert set(names) <= set(tensors)
    return {name: value for name, value in tensors.items() if name not in names}


def cast(tensors, dtype):
    return {name: value.astype(dtype) for name, value in tensors.items()}


def swiglu(name, *, first="mlp.fc1", renames=()):
    """A giant DINOv2: the first layer of its MLPs is twice as wide as the second one."""
    tensors = {key: np.concatenate([value, value]) if first in key else value for key, value in golden(name).items()}
    for old, new in renames:
        tensors = renamed(tensors, lambda key, old=old, new=new: key.replace(old, new))
    return tensors


def towers(name, start):
    return {key: value for key, value in golden(name).items() if key.startswith(start)}


QUERY = "encoder.layer.1.attention.self.query.weight"
WRONG = {
    # name: (imported as, the source's tensors, what the config asks for, what the line says)
    "text for an image": (
        "vit", golden("bert"), {},
        "is a text encoder (BERT or RoBERTa of transformers); ViT of transformers, ViT of transformers 5, ViT of timm "
        "(also DeiT, MAE) is wanted here; a text encoder is given as --config.init_from.text",
    ),
    "an image for text": (
        "bert", golden("timm"), {},
        "is an image encoder (ViT of timm (also DeiT, MAE)); BERT or RoBERTa of transformers is wanted here; "
        "an image encoder is given as --config.init_from.image",
    ),
    "bert for roberta": ("roberta", golden("bert"), {}, "has 2 token types, as bert has; config.text_encoder.kind="),
    "a convolutional net": (
        "vit", {"conv1.weight": np.ones((8, 3, 7, 7), np.float32)}, {},
        "is none of these: ViT of transformers, ViT of transformers 5, ViT of timm (also DeiT, MAE); "
        "its 1 tensors begin with conv1.weight",
    ),
    "width": (
        "vit", golden("vit"), {"width": 32},
        "is 16 wide; config.image_encoder.width=32, give --config.image_encoder.width=16",
    ),
    "width of timm": ("timm", golden("timm"), {"width": 32}, "is 16 wide; config.image_encoder.width=32"),
    "width of text": ("bert", golden("bert"), {"width": 8}, "is 16 wide; config.text_encoder.width=8"),
    "too few layers": ("roberta", golden("roberta"), {"layers": 3}, "has 2 layers; config.text_encoder.layers=3"),
    "too many layers": ("timm", golden("timm"), {"layers": 1}, "has 2 layers; config.image_encoder.layers=1"),
    "hidden width": (
        "bert", golden("bert"), {"mlp_ratio": 4},
        "encoder.layer.0.intermediate.dense.weight has the shape (32, 16); the config needs (64, 16)",
    ),
    "patch": (
        "dinov2", golden("dinov2"), {"patch": 8, "image_size": 16},
        "sees patches of 4x4 pixels of 3 channels; config.image_encoder.patch=8, of 3 channels; "
        "give --config.image_encoder.patch=4",
    ),
    "a DINOv2 for a ViT": (
        "vit", golden("dinov2_registers"), {},
        "is an image encoder (DINOv2 of transformers); ViT of transformers, ViT of transformers 5, ViT of timm (also "
        "DeiT, MAE) is wanted here; give --config.image_encoder.kind=dinov2",
    ),
    "a DINOv2 of timm for a ViT": (
        "timm", golden("dinov2_timm"), {}, "is wanted here; give --config.image_encoder.kind=dinov2",
    ),
    "a ViT of timm for a DINOv2": (
        "dinov2", golden("timm"), {}, "is wanted here; give --config.image_encoder.kind=vit",
    ),
    "a SigLIP for a CLIP": ("clip", golden("siglip"), {}, "is wanted here; give --config.image_encoder.kind=siglip"),
    "a CLIP for a SigLIP": ("siglip", golden("open_clip"), {}, "is wanted here; give --config.image_encoder.kind=clip"),
    "a CLIP for text": ("bert", golden("clip"), {}, "is a CLIP text tower ("),
    "a vision tower of CLIP for text": (
        "bert", towers("clip", "vision_model."), {}, "is an image encoder (CLIP's vision tower of transformers)",
    ),
    "the text tower of CLIP": (
        "clip", towers("clip", "text_model."), {},
        "is a text tower of CLIP or SigLIP, which is not read; CLIP's vision tower of transformers, CLIP's",
    ),
    "the text tower of CLIP by itself": (
        "clip", renamed(towers("clip", "text_model."), lambda name: name.removeprefix("text_model.")), {},
        "is a text tower of CLIP or SigLIP (embeddings.token_embedding.weight), which is not read; give the vision",
    ),
    "the text tower of open_clip": (
        "open_clip", towers("open_clip", ("transformer.", "token_embedding.")), {}, "is a text tower of open_clip, whi",
    ),
    "a giant of transformers": (
        "dinov2", swiglu("dinov2", renames=(("mlp.fc1", "mlp.weights_in"), ("mlp.fc2", "mlp.weights_out"))), {},
        "has SwiGLU layers (encoder.layer.0.mlp.weights_in.weight), as the giant DINOv2 has; only its small, base",
    ),
    "a giant of timm": (
        "dinov2_timm", swiglu("dinov2_timm"), {},
        "has SwiGLU layers (blocks.0.mlp.fc1.weight, twice as wide as the other), as the giant DINOv2 has",
    ),
    "a giant as it was released": (
        "dinov2_timm", swiglu("dinov2_timm", renames=(("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3"))), {},
        "has SwiGLU layers (blocks.0.mlp.w12.weight), as the giant DINOv2 has",
    ),
    "registers where there are none": (
        "dinov2_registers", golden("dinov2_registers"), {"registers": 0},
        "has 3 registers; config.image_encoder.registers=0, give --config.image_encoder.registers=3",
    ),
    "no registers where there are some": (
        "dinov2", golden("dinov2"), {"registers": 4},
        "has no registers; config.image_encoder.registers=4, give --config.image_encoder.registers=0",
    ),
    "vocabulary": (
        "roberta", golden("roberta"), {"vocab_size": 50},
        "has a vocabulary of 48 tokens; config.text_encoder.vocab_size=50, give --config.text_encoder.vocab_size=48",
    ),
    "positions": (
        "roberta", golden("roberta"), {"positions": 40},
        "has positions for 12 tokens; config.text_encoder.positions=40, give --config.text_encoder.positions=12 or",
    ),
    "positions that are no square": (
        "timm", golden("timm") | {"pos_embed": np.zeros((1, 16, 16), np.float32)}, {},
        "has 16 positions in pos_embed; one for the class token and a square of patches are needed",
    ),
    "a missing tensor": (
        "bert", without(golden("bert"), QUERY), {},
        f"0 tensors unexpected, 1 missing): missing {QUERY}",
    ),
    "a surplus tensor": (
        "bert", golden("bert") | {"encoder.layer.1.adapter.weight": np.ones(3, np.float32)}, {},
        "1 tensors unexpected, 0 missing): unexpected encoder.layer.1.adapter.weight",
    ),
    "a misspelt tensor": (
        "bert", renamed(golden("bert"), lambda name: name.replace(QUERY, QUERY.replace("query", "qeury"))), {},
        f"unexpected {QUERY.replace('query', 'qeury')} (nearest: {QUERY}); missing {QUERY} (nearest: ",
    ),
    "an unknown prefix": (
        "vit", renamed(golden("vit"), lambda name: f"visual.trunk.{name}"), {},
        "has names behind the prefix 'visual.trunk.embeddings.'; without it",
    ),
    "two encoders in one file": (
        "roberta", renamed(golden("roberta"), lambda name: f"roberta.{name}")
        | renamed(golden("bert"), lambda name: f"bert.{name}"), {},
        "which both mean embeddings.",
    ),
    "a distilled DeiT": (
        "timm", golden("timm") | {"dist_token": np.ones((1, 1, 16), np.float32)}, {},
        "is a distilled DeiT: its layers expect dist_token beside the class token",
    ),
    "integers": ("bert", cast(golden("bert"), np.int8), {}, "weights of float32, float64, float16, bfloat16 can be"),
    "float8": ("bert", cast(golden("bert"), ml_dtypes.float8_e4m3fn), {}, "is F8_E4M3; weights of float32, float64"),
    "not finite": (
        "bert", golden("bert") | {QUERY: np.full((16, 16), np.nan, np.float32)}, {},
        f"{QUERY} holds values that are not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_source_that_does_not_fit_is_refused_with_the_cause(case, tmp_path):
    kind, tensors, changes, said = WRONG[case]
    source = file_of(tmp_path / "weights.safetensors", tensors)
    with pytest.raises(UserError) as error:
        imported(source, kind, **changes)
    assert said in refusal(error)
    assert str(source) in refusal(error)


@pytest.mark.parametrize(
    "kind, said, changes",
    [
        ("vit", "is a 'beit' by its config.json; a ViT needs one of vit, vit_mae, deit", {"model_type": "beit"}),
        (
            "bert",
            "is a 'roberta' by its config.json; text_encoder.kind='bert' needs one of bert",
            {"model_type": "roberta"},
        ),
        (
            "vit",
            "has 4 heads; config.image_encoder.heads=2, give --config.image_encoder.heads=4",
            {"num_attention_heads": 4},
        ),
        (
            "vit",
            "is a 'dinov2' by its config.json; a ViT needs one of vit, vit_mae, deit; "
            "give --config.image_encoder.kind=dinov2",
            {"model_type": "dinov2"},
        ),
        (
            "clip",
            "is a 'clip_text_model' by its config.json; a vision tower of CLIP",
            {"model_type": "clip_text_model"},
        ),
        ("dinov2", "has SwiGLU layers (use_swiglu_ffn in its config.json)", {"use_swiglu_ffn": True}),
        ("clip", "has 12 heads; config.image_encoder.heads=2", {"vision_config": {}}),
        ("clip", "has vision_config=None in its config.json; an object with the sizes", {"vision_config": None}),
        ("siglip", "has vision_config=[1] in its config.json", {"model_type": "siglip", "vision_config": [1]}),
        (
            "siglip",
            "computes with hidden_act='gelu'; config.image_encoder.activation='gelu_tanh', "
            "give --config.image_encoder.activation=gelu",
            {"hidden_act": "gelu"},
        ),
        ("siglip", "computes with hidden_act='relu'; the layers here compute gelu_tanh", {"hidden_act": "relu"}),
        (
            "dinov2",
            "is a 'bert' by its config.json; a DINOv2 needs one of dinov2, dinov2_with_registers; "
            "a text encoder is given as --config.init_from.text",
            {"model_type": "bert"},
        ),
        ("bert", "an image encoder is given as --config.init_from.image", {"model_type": "dinov2"}),
        ("bert", "computes with hidden_act='gelu_new'", {"hidden_act": "gelu_new"}),
        ("bert", "has relative_key positions; absolute ones are needed", {"position_embedding_type": "relative_key"}),
        ("roberta", "has pad_token_id=0", {"pad_token_id": 0}),
        ("roberta", "is a decoder", {"is_decoder": True}),
    ],
)
def test_what_only_the_config_json_tells_is_checked_too(kind, said, changes, tmp_path):
    with pytest.raises(UserError) as error:
        imported(folder_of(tmp_path / "folder", kind, **changes), kind)
    assert said in refusal(error)


def test_at_most_ten_offenders_are_named_and_the_others_counted(tmp_path):
    tensors = renamed(golden("timm"), lambda name: name.replace("blocks.1.attn", "blocks.1.attention"))
    surplus = {f"extra.{n}": np.ones(1, np.float32) for n in range(20)}
    with pytest.raises(UserError) as error:
        imported(file_of(tmp_path / "weights.safetensors", tensors | surplus), "timm")
    message = refusal(error)
    assert message.count("unexpected ") + message.count("missing ") == 10 and message.endswith("; and 18 more")
    assert "(24 tensors unexpected" not in message and "24 tensors unexpected, 4 missing" in message


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_floats_are_loaded_and_the_report_says_so(dtype, tmp_path):
    source = file_of(tmp_path / "weights.safetensors", cast(golden("bert"), np.dtype(dtype)))
    report = imported(source, "bert")
    assert report.converted == {dtype: report.tensors}
    assert f"  {dtype} made float32: {report.tensors} tensors" in report.lines()


@pytest.mark.parametrize(
    "kind, prefix",
    [
        ("vit", "vit."),
        ("vit", "module.vit."),
        ("timm", "module."),
        ("timm", "model."),
        ("roberta", "roberta."),
        ("bert", "module.bert."),
    ],
)
def test_a_known_prefix_is_left_out_and_the_report_says_so(kind, prefix, tmp_path):
    source = file_of(tmp_path / "weights.safetensors", renamed(golden(kind), lambda name: prefix + name))
    report = imported(source, kind)
    assert report.prefix == prefix
    assert f"names without {prefix!r}" in report.lines()[0]
    assert report.parameters == imported(folder_of(tmp_path / "plain", kind), kind).parameters


def test_what_is_not_used_is_listed_with_its_reason(tmp_path):
    mae = {"mask_token": np.ones((1, 1, 8)), "decoder_embed.weight": np.ones((8, 16)), "decoder_blocks.0.x": np.ones(1)}
    report = imported(file_of(tmp_path / "mae.safetensors", golden("timm") | cast(mae, np.float32)), "timm")
    assert report.not_used == {
        "a classifier": ["head.bias", "head.weight"],
        "MAE's decoder": ["decoder_blocks.0.x", "decoder_embed.weight"],
        "the mask token of MAE's decoder, which no encoder sees": ["mask_token"],
    }
    assert any("heads is not in the weights" in note for note in report.notes)


def test_another_epsilon_is_noted_with_the_field_that_mends_it(tmp_path):
    [note] = imported(folder_of(tmp_path / "folder", "vit"), "vit", epsilon=1e-6).notes
    assert "--config.image_encoder.epsilon=1e-12" in note


def test_the_activation_of_a_file_without_a_config_is_noted(tmp_path):
    notes = imported(file_of(tmp_path / "weights.safetensors", golden("open_clip")), "open_clip").notes
    assert "the activation is not in the weights; config.image_encoder.activation='quick_gelu' is used" in notes


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        (
            "clip",
            ["the text tower", "a projection to the space of its own texts", "the temperature of its own contrast"],
        ),
        ("open_clip", ["the text tower", "a projection to the space of its own texts", "the temperature of its own c"]),
        ("siglip", ["the pooling head; the mean of the patches takes its place"]),
    ],
)
def test_the_rest_of_a_larger_model_is_left_out_by_name(name, rest, tmp_path):
    report = imported(folder_of(tmp_path / "folder", name), name)
    for given in rest:
        assert any(reason.startswith(given) for reason in report.not_used), given
    assert len(report.not_used) == len(rest)
    assert report.tensors + sum(map(len, report.not_used.values())) == len(golden(name))


def test_the_names_of_the_release_of_dinov2_are_read_as_those_of_timm(tmp_path):
    tensors = golden("dinov2_registers")
    positions, mask = tensors["embeddings.position_embeddings"], tensors["embeddings.mask_token"]
    released = renamed(golden("dinov2_timm"), lambda name: name.replace("reg_token", "register_tokens"))
    released |= {"pos_embed": positions, "cls_token": tensors["embeddings.cls_token"], "mask_token": mask}
    params = encoder_of(file_of(tmp_path / "vits14_reg.safetensors", released), "dinov2_timm").params
    expected = encoder_of(folder_of(tmp_path / "folder", "dinov2_registers"), "dinov2_registers").params
    assert set(params) == set(expected)
    for path, value in expected.items():
        np.testing.assert_array_equal(params[path], value, err_msg=path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"registers": 4}, "config.image_encoder.registers=4, but an encoder of kind='vit' has none; give 0"),
        ({"activation": "quick_gelu"}, "kind='vit' computes gelu; give --config.image_encoder.activation=gelu"),
        ({"kind": "clip", "registers": 1}, "an encoder of kind='clip' has none; give 0"),
    ],
)
def test_a_field_that_the_kind_does_not_have_is_refused(fields, said):
    config = config_lib.default()
    config.image_encoder.update(fields)
    with pytest.raises(UserError) as error:
        validate(config)
    assert said in str(error.value)


def test_other_normalisation_is_noted(tmp_path):
    folder = folder_of(tmp_path / "folder", "vit")
    said = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    [note] = imported(folder, "vit").notes
    assert "(0.485, 0.456, 0.406)" in note and "config.image.mean=(0.5, 0.5, 0.5)" in note


@pytest.mark.parametrize(
    "changes",
    [{"layer_norm_eps": None}, {"layer_norm_eps": "1e-6"}, {"pretrained_cfg": None}, {"pretrained_cfg": {"mean": 0.5}}],
    ids=str,
)
def test_what_is_only_noted_is_passed_over_where_it_is_no_number(changes, tmp_path):
    assert imported(folder_of(tmp_path / "folder", "vit", **changes), "vit").notes == []


# Files and folders


def sharded(folder):
    """The golden RoBERTa in two shards with an index."""
    tensors = sorted(golden("roberta").items())
    folder.mkdir()
    weight_map = {}
    for number, part in enumerate((tensors[:10], tensors[10:]), 1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file(dict(part), folder / name)
        weight_map |= {tensor: name for tensor, _ in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_shards_are_read_as_one(tmp_path):
    report = imported(sharded(tmp_path / "sharded"), "roberta")
    assert len(report.files) == 2
    assert report.parameters == imported(folder_of(tmp_path / "whole", "roberta"), "roberta").parameters


def test_a_missing_shard_is_named(tmp_path):
    folder = sharded(tmp_path / "sharded")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="1 of the 2 shards of .* missing: model-00002-of-00002.safetensors"):
        imported(folder, "roberta")


def test_a_shard_that_lacks_a_tensor_is_named(tmp_path):
    folder = sharded(tmp_path / "sharded")
    save_file({"other": np.ones(1, np.float32)}, folder / "model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match=r"model-00001-of-00002.safetensors lacks embeddings"):
        imported(folder, "roberta")


def test_an_index_that_points_elsewhere_is_refused(tmp_path):
    folder = sharded(tmp_path / "sharded")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(UserError, match="a shard lies beside its index"):
        imported(folder, "roberta")


@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_a_file_that_was_cut_short_is_refused(kept, tmp_path):
    file = folder_of(tmp_path / "folder", "vit") / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:kept])
    with pytest.raises(UserError) as error:
        imported(file.parent, "vit")
    assert f"{file} is damaged or cut short" in refusal(error)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda folder: None, "there is no "),
        (lambda folder: folder.mkdir(), "holds no weights; one of model.safetensors"),
        (lambda folder: folder.write_text("x"), "is none of .safetensors, .bin, .pt, .pth"),
        (lambda folder: two_files(folder), "holds 2 weight files (a.safetensors, b.safetensors) and no index"),
        (lambda folder: pointer(folder), "is a Git LFS pointer, not the weights"),
        (lambda folder: broken_config(folder), "config.json' cannot be read as JSON"),
    ],
)
def test_a_place_without_weights_is_refused(make, said, tmp_path):
    make(tmp_path / "weights")
    with pytest.raises(UserError) as error:
        open_tensors(tmp_path / "weights")
    assert said in refusal(error)


def two_files(folder):
    folder.mkdir()
    for name in ("a", "b"):
        file_of(folder / f"{name}.safetensors", {"x": np.ones(1)})


def pointer(folder):
    folder.mkdir()
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def broken_config(folder):
    (folder_of(folder, "vit") / "config.json").write_text("{")


# Files of torch


def test_a_file_of_torch_without_torch_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(UserError, match="pytorch_model.bin needs torch to be read; install torch, or convert"):
        imported(tmp_path, "vit")


def saved_by_torch(path, tensors, **extra):
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(value) for name, value in tensors.items()} | extra, path)
    return path


@pytest.mark.parametrize("name, wrap", [("pytorch_model.bin", None), ("mae.pth", "model")])
def test_a_file_of_torch_is_read(name, wrap, tmp_path):
    torch = pytest.importorskip("torch")
    held = {name: torch.from_numpy(value).bfloat16() for name, value in golden("timm").items()}
    torch.save({wrap: held, "epoch": 3} if wrap else held, tmp_path / name)
    report = imported(tmp_path, "timm")
    assert report.converted == {"bfloat16": report.tensors}


class Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_pickle_that_could_run_code_is_refused_by_name(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    file = saved_by_torch(tmp_path / "model.pth", golden("timm"), payload=Payload())
    with pytest.raises(UserError) as error:
        imported(file, "timm")
    assert f"is a pickle that needs {os.mkdir.__module__}.mkdir, which could run code" in refusal(error)
    assert not (tmp_path / "ran").exists()


def test_a_file_of_torch_that_was_cut_short_is_refused(tmp_path):
    file = saved_by_torch(tmp_path / "model.pth", golden("timm"))
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(UserError) as error:
        imported(file, "timm")
    assert f"{file} is damaged" in refusal(error)


# What a reader is shown


@pytest.mark.parametrize("kind", ["vit", "timm", "dinov2_timm", "open_clip", "roberta", "bert"])
def test_inspect_lists_every_tensor_and_says_what_it_is(kind, tmp_path):
    lines = inspect(folder_of(tmp_path / "folder", kind))
    tensors = golden(kind)
    assert [line.split()[0] for line in lines[: len(tensors)]] == sorted(tensors)
    assert lines[-2].startswith("named as ") and lines[-2].endswith("; 2 layers")
    assert lines[-1] == "no tokenizer beside it"


def test_inspect_says_why_a_file_cannot_be_imported(tmp_path):
    lines = inspect(file_of(tmp_path / "net.safetensors", {"conv1.weight": np.ones((1, 2), np.float32)}))
    assert lines[0] == "conv1.weight  [1, 2]  float32"
    assert "cannot be imported: " in lines[-2]
