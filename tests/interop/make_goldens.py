"""Makes the tiny published-style encoders of `golden/` with their own libraries' outputs.

  .venv-parity/bin/python tests/interop/make_goldens.py

`make parity` makes that environment. The timm folder is only made again where timm is installed too;
`dinov2_timm` and `open_clip` are models of transformers under the names that these libraries would give.
"""

import functools
import importlib.util
import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).with_name("golden")
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE_SIZE, PATCH, RESIZED = 16, 4, 24
VOCABULARY, POSITIONS, LENGTH = 48, 12, 7


def shake(model):
    """Fresh models have zero biases and unit norms, which would hide a tensor put in another's place."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def pixels(size):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))


def tokens(pad):
    ids = torch.randint(3, VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    for row, kept in zip(ids, (LENGTH, 5, 2)):
        row[kept:] = pad
    return ids


@torch.no_grad()
def image_outputs(encode):
    return {
        "pixels": pixels(IMAGE_SIZE),
        "hidden": encode(pixels(IMAGE_SIZE), resized=False),
        "resized_pixels": pixels(RESIZED),
        "resized_hidden": encode(pixels(RESIZED), resized=True),
    }


def make_vit(folder):
    config = transformers.ViTConfig(image_size=IMAGE_SIZE, patch_size=PATCH, **SIZES)
    model = shake(transformers.ViTModel(config))
    model.save_pretrained(folder)
    return image_outputs(lambda x, resized: model(x, interpolate_pos_encoding=resized).last_hidden_state)


def make_timm(folder):
    from timm.models.vision_transformer import VisionTransformer

    model = shake(
        VisionTransformer(
            img_size=IMAGE_SIZE, patch_size=PATCH, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2, num_classes=3
        )
    )
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    with torch.no_grad():
        return {"pixels": pixels(IMAGE_SIZE), "hidden": model.forward_features(pixels(IMAGE_SIZE))}


def make_dinov2(folder, *, registers=0):
    sizes = {name: value for name, value in SIZES.items() if name != "intermediate_size"} | {"mlp_ratio": 2}
    sizes |= {"image_size": IMAGE_SIZE, "patch_size": PATCH}
    if registers:
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=registers, **sizes)
        model = shake(transformers.Dinov2WithRegistersModel(config))
    else:
        model = shake(transformers.Dinov2Model(transformers.Dinov2Config(**sizes)))
    model.save_pretrained(folder)

    def encode(x, **_):
        hidden = model(x).last_hidden_state
        return torch.cat([hidden[:, :1], hidden[:, 1 + registers :]], dim=1)

    hidden_patches = torch.arange((IMAGE_SIZE // PATCH) ** 2) % 3 == 0
    masked = model(pixels(IMAGE_SIZE), bool_masked_pos=hidden_patches.expand(2, -1)).last_hidden_state
    masked = torch.cat([masked[:, :1], masked[:, 1 + registers :]], dim=1)
    return image_outputs(encode) | {"hidden_patches": hidden_patches, "masked_hidden": masked}


def make_dinov2_timm(folder):
    """The DINOv2 with registers as timm would save it, without a position of the class token."""
    theirs = load_file(GOLDEN / "dinov2_registers" / "model.safetensors")
    positions = theirs.pop("embeddings.position_embeddings")
    theirs.pop("embeddings.mask_token")
    tensors = {
        "cls_token": theirs.pop("embeddings.cls_token") + positions[:, :1],
        "reg_token": theirs.pop("embeddings.register_tokens"),
        "pos_embed": positions[:, 1:].contiguous(),
    }
    for kind in ("weight", "bias"):
        tensors[f"patch_embed.proj.{kind}"] = theirs.pop(f"embeddings.patch_embeddings.projection.{kind}")
        tensors[f"norm.{kind}"] = theirs.pop(f"layernorm.{kind}")
        for n in range(2):
            old, new = f"encoder.layer.{n}.", f"blocks.{n}."
            into_heads = [theirs.pop(f"{old}attention.attention.{part}.{kind}") for part in ("query", "key", "value")]
            tensors[f"{new}attn.qkv.{kind}"] = torch.cat(into_heads)
            tensors[f"{new}attn.proj.{kind}"] = theirs.pop(f"{old}attention.output.dense.{kind}")
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                tensors[f"{new}{name}.{kind}"] = theirs.pop(f"{old}{name}.{kind}")
    for n in range(2):
        tensors[f"blocks.{n}.ls1.gamma"] = theirs.pop(f"encoder.layer.{n}.layer_scale1.lambda1")
        tensors[f"blocks.{n}.ls2.gamma"] = theirs.pop(f"encoder.layer.{n}.layer_scale2.lambda1")
    assert not theirs
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return load_file(GOLDEN / "dinov2_registers.outputs.safetensors")


def make_clip(folder):
    """A whole CLIP, of which the vision tower is compared, its last norm on every token."""
    vision = {**SIZES, "image_size": IMAGE_SIZE, "patch_size": PATCH}
    text = {**SIZES, "vocab_size": 8, "max_position_embeddings": 4, "bos_token_id": 1, "eos_token_id": 2}
    model = shake(transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config=text)))
    model.save_pretrained(folder)
    tower = model.vision_model

    def encode(x, resized):
        return tower.post_layernorm(tower(x, interpolate_pos_encoding=resized).last_hidden_state)

    return image_outputs(encode)


def make_open_clip(folder):
    """The same CLIP as open_clip would save it."""
    theirs, tensors = load_file(GOLDEN / "clip" / "model.safetensors"), {}
    for tower, start, final in (("vision_model", "visual.", "post_layernorm"), ("text_model", "", "final_layer_norm")):
        tensors[f"{start}positional_embedding"] = theirs.pop(f"{tower}.embeddings.position_embedding.weight")
        for kind in ("weight", "bias"):
            tensors[f"{start}{'ln_post' if start else 'ln_final'}.{kind}"] = theirs.pop(f"{tower}.{final}.{kind}")
            for n in range(2):
                old, new = f"{tower}.encoder.layers.{n}.", f"{start}transformer.resblocks.{n}."
                into_heads = [theirs.pop(f"{old}self_attn.{part}_proj.{kind}") for part in "qkv"]
                tensors[f"{new}attn.in_proj_{kind}"] = torch.cat(into_heads)
                for before, after in (
                    ("self_attn.out_proj", "attn.out_proj"),
                    ("layer_norm1", "ln_1"),
                    ("layer_norm2", "ln_2"),
                    ("mlp.fc1", "mlp.c_fc"),
                    ("mlp.fc2", "mlp.c_proj"),
                ):
                    tensors[f"{new}{after}.{kind}"] = theirs.pop(f"{old}{before}.{kind}")
    tensors["visual.class_embedding"] = theirs.pop("vision_model.embeddings.class_embedding")
    tensors["visual.conv1.weight"] = theirs.pop("vision_model.embeddings.patch_embedding.weight")
    for kind in ("weight", "bias"):
        tensors[f"visual.ln_pre.{kind}"] = theirs.pop(f"vision_model.pre_layrnorm.{kind}")
    tensors["visual.proj"] = theirs.pop("visual_projection.weight").T.contiguous()
    tensors["token_embedding.weight"] = theirs.pop("text_model.embeddings.token_embedding.weight")
    tensors["text_projection"] = theirs.pop("text_projection.weight").T.contiguous()
    tensors["logit_scale"] = theirs.pop("logit_scale")
    assert not theirs
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return load_file(GOLDEN / "clip.outputs.safetensors")


def make_siglip(folder):
    model = shake(
        transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(image_size=IMAGE_SIZE, patch_size=PATCH, **SIZES)
        )
    )
    model.save_pretrained(folder)

    def encode(x, resized):
        hidden = model(x, interpolate_pos_encoding=resized).last_hidden_state
        return torch.cat([hidden.mean(dim=1, keepdim=True), hidden], dim=1)

    return image_outputs(encode)


def make_text(folder, *, model_class, config_class, pad, positions):
    config = config_class(vocab_size=VOCABULARY, max_position_embeddings=positions, pad_token_id=pad, **SIZES)
    model = shake(model_class(config))
    with torch.no_grad():
        # torch keeps the padding's row at zero only while training; published files hold zeros there.
        model.embeddings.word_embeddings.weight[pad] = 0
    model.save_pretrained(folder)
    ids = tokens(pad)
    with torch.no_grad():
        hidden = model(ids, attention_mask=(ids != pad).long()).last_hidden_state
    return {"ids": ids, "hidden": hidden}


def make_roberta(folder):
    return make_text(
        folder,
        model_class=transformers.RobertaModel,
        config_class=lambda **fields: transformers.RobertaConfig(type_vocab_size=1, layer_norm_eps=1e-5, **fields),
        pad=1,
        positions=POSITIONS + 2,
    )


def make_bert(folder):
    return make_text(
        folder, model_class=transformers.BertModel, config_class=transformers.BertConfig, pad=0, positions=POSITIONS
    )


def make_distilbert(folder):
    def config(*, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, **fields):
        sizes = {"dim": hidden_size, "n_layers": num_hidden_layers, "n_heads": num_attention_heads}
        return transformers.DistilBertConfig(hidden_dim=intermediate_size, **sizes, **fields)

    return make_text(folder, model_class=transformers.DistilBertModel, config_class=config, pad=0, positions=POSITIONS)


def make_mpnet(folder):
    return make_text(
        folder,
        model_class=transformers.MPNetModel,
        config_class=lambda **fields: transformers.MPNetConfig(layer_norm_eps=1e-5, **fields),
        pad=1,
        positions=POSITIONS + 2,
    )


def main():
    makers = {
        "vit": make_vit,
        "dinov2": make_dinov2,
        "dinov2_registers": functools.partial(make_dinov2, registers=3),
        "dinov2_timm": make_dinov2_timm,
        "clip": make_clip,
        "open_clip": make_open_clip,
        "siglip": make_siglip,
        "roberta": make_roberta,
        "bert": make_bert,
        "distilbert": make_distilbert,
        "mpnet": make_mpnet,
    }
    if importlib.util.find_spec("timm"):
        makers["timm"] = make_timm
    for name, make in makers.items():
        torch.manual_seed(0)
        folder = GOLDEN / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        outputs = make(folder)
        # Not in the folder itself: it holds what a published one holds.
        save_file({key: value.contiguous() for key, value in outputs.items()}, GOLDEN / f"{name}.outputs.safetensors")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    (GOLDEN / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
