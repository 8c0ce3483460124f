"""Makes the tiny published-style encoders of `golden/` with their own libraries' outputs.

  .venv-parity/bin/python tests/interop/make_goldens.py

`make parity` makes that environment. The timm folder is only made again where timm is installed too.
"""

import importlib.util
import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

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
    makers = {"vit": make_vit, "roberta": make_roberta, "bert": make_bert}
    makers |= {"distilbert": make_distilbert, "mpnet": make_mpnet}
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
