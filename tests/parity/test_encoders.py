"""Random weights at full size, float32: the same hidden states as in transformers. Run by `make parity`."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from encoders import image_encoder, text_encoder  # noqa: E402

SMALL = {"width": 384, "heads": 6, "layers": 12, "mlp_ratio": 4}
BASE = {"width": 768, "heads": 12, "layers": 12, "mlp_ratio": 4}
LARGE = {"width": 1024, "heads": 16, "layers": 24, "mlp_ratio": 4}
TOLERANCE = 1e-4
DINOV2 = Path(os.environ["MVLM_DINOV2_SMALL"]) if "MVLM_DINOV2_SMALL" in os.environ else None


def saved(model, folder):
    """The model with biases and norms that are not all zero or one, as trained ones are not."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit")
    return folder, saved(transformers.ViTModel(transformers.ViTConfig()), folder)


@pytest.mark.parametrize("image_size", [224, 384])
def test_vit_base(vit, image_size):
    folder, model = vit
    pixels = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(pixels, interpolate_pos_encoding=image_size != 224).last_hidden_state.numpy()
    encode, report, *_ = image_encoder(folder, image_size=image_size, patch=16, epsilon=1e-12, **BASE)
    difference = np.abs(encode(pixels.numpy()) - expected).max()
    print(f"\nViT-B/16 at {image_size}: max abs difference {difference:.2e}, values up to {np.abs(expected).max():.2f}")
    assert difference <= TOLERANCE
    assert bool(report.resized) == (image_size != 224)


@pytest.fixture
def folder(tmp_path):
    """Deleted after the test: pytest would keep gigabytes of weights."""
    yield tmp_path / "encoder"
    shutil.rmtree(tmp_path / "encoder")


def pixels_of(size):
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))


def sizes_of(sizes, **fields):
    names = {"hidden_size": "width", "num_hidden_layers": "layers", "num_attention_heads": "heads"}
    return {theirs: sizes[ours] for theirs, ours in names.items()} | fields


def check(title, received, expected):
    difference = np.abs(received - expected).max()
    print(f"\n{title}: max abs difference {difference:.2e}, values up to {np.abs(expected).max():.2f}")
    assert difference <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("native", [224, 518])
@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("size", ["small", "base"])
def test_dinov2(size, registers, native, folder):
    torch.manual_seed(0)
    sizes = {"small": SMALL, "base": BASE}[size]
    fields = sizes_of(sizes, image_size=native, patch_size=14, layerscale_value=0.5)
    if registers:
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=registers, **fields)
        model = saved(transformers.Dinov2WithRegistersModel(config), folder)
    else:
        model = saved(transformers.Dinov2Model(transformers.Dinov2Config(**fields)), folder)
    pixels = pixels_of(224)
    expected = np.delete(model(pixels).last_hidden_state.numpy(), range(1, 1 + registers), axis=1)
    encode, report, *_ = image_encoder(folder, kind="dinov2", image_size=224, patch=14, registers=registers, **sizes)
    check(f"DINOv2-{size}/14, {registers} registers, positions for {native}", encode(pixels), expected)
    assert bool(report.resized) == (native != 224)
    assert report.initial == []


@pytest.mark.parametrize(
    ("title", "sizes", "patch", "activation", "image_size"),
    [
        ("CLIP ViT-B/16", BASE, 16, "quick_gelu", 224),
        ("CLIP ViT-B/16", BASE, 16, "quick_gelu", 336),
        ("CLIP ViT-B/32", BASE, 32, "gelu", 224),
        ("CLIP ViT-L/14", LARGE, 14, "quick_gelu", 224),
        ("CLIP ViT-L/14", LARGE, 14, "gelu", 112),
    ],
)
@torch.no_grad()
def test_clip(title, sizes, patch, activation, image_size, folder):
    torch.manual_seed(0)
    fields = sizes_of(sizes, intermediate_size=4 * sizes["width"], patch_size=patch, hidden_act=activation)
    model = saved(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**fields)), folder)
    pixels = pixels_of(image_size)
    theirs = model(pixels, interpolate_pos_encoding=image_size != 224)
    encode, report, *_ = image_encoder(
        folder, kind="clip", image_size=image_size, patch=patch, activation=activation, epsilon=1e-5, **sizes
    )
    title = f"{title}, {activation}, at {image_size}"
    check(f"{title}, before the last norm", encode(pixels, normed=False), theirs.last_hidden_state.numpy())
    received, normed = encode(pixels), model.post_layernorm(theirs.last_hidden_state).numpy()
    check(f"{title}, behind it", received, normed)
    check(f"{title}, class token", received[:, 0], theirs.pooler_output.numpy())
    assert bool(report.resized) == (image_size != 224)


@torch.no_grad()
@pytest.mark.parametrize("image_size", [224, 336])
def test_siglip_base(image_size, folder):
    torch.manual_seed(0)
    fields = sizes_of(BASE, intermediate_size=4 * 768)
    model = saved(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**fields)), folder)
    pixels = pixels_of(image_size)
    expected = model(pixels, interpolate_pos_encoding=image_size != 224).last_hidden_state
    encode, *_ = image_encoder(
        folder, kind="siglip", image_size=image_size, patch=16, activation="gelu_tanh", epsilon=1e-6, **BASE
    )
    received = encode(pixels)
    check(f"SigLIP ViT-B/16 at {image_size}", received[:, 1:], expected.numpy())
    check("its mean", received[:, 0], expected.mean(dim=1).numpy())


@pytest.mark.skipif(DINOV2 is None, reason="MVLM_DINOV2_SMALL names no folder of a real DINOv2-small")
def test_a_real_dinov2_small():
    """Beside its weights, `last_hidden_state.npy`: the reference's output for the pixels below."""
    pixels = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    expected = np.load(DINOV2 / "last_hidden_state.npy")
    encode, report, *_ = image_encoder(DINOV2, kind="dinov2", image_size=224, patch=14, **SMALL)
    difference = np.abs(encode(pixels) - expected).max()
    print(f"\nreal DINOv2-small: max abs difference {difference:.2e}, values up to {np.abs(expected).max():.2f}")
    assert difference <= 2e-4
    assert "from 37x37 to 16x16" in report.resized[0]


@pytest.mark.skipif(DINOV2 is None, reason="MVLM_DINOV2_SMALL names no folder of a real DINOv2-small")
@torch.no_grad()
def test_a_real_dinov2_small_goes_out_to_transformers_bit_for_bit(folder):
    encoder = image_encoder(DINOV2, kind="dinov2", image_size=518, patch=14, **SMALL)
    encoder.write(folder)
    assert transformers.Dinov2Model.from_pretrained(folder).config.use_mask_token is False
    before, after = (load_file(path / "model.safetensors") for path in (DINOV2, folder))
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value.astype(np.float32), err_msg=name)


def text_base(kind):
    """The published sizes, where a config's defaults are others."""
    match kind:
        case "roberta":
            sizes = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
            return transformers.RobertaModel(transformers.RobertaConfig(pad_token_id=1, **sizes))
        case "bert":
            return transformers.BertModel(transformers.BertConfig())
        case "distilbert":
            return transformers.DistilBertModel(transformers.DistilBertConfig())
        case "mpnet":
            sizes = {"max_position_embeddings": 514, "layer_norm_eps": 1e-5}
            return transformers.MPNetModel(transformers.MPNetConfig(**sizes))


@pytest.mark.parametrize(
    "kind, tokens", [("roberta", 64), ("bert", 64), ("distilbert", 64), ("mpnet", 64), ("mpnet", 512)]
)
def test_text_base(kind, tokens, tmp_path):
    torch.manual_seed(0)
    model = saved(text_base(kind), tmp_path)
    pad, vocab_size = model.config.pad_token_id, model.config.vocab_size
    ids = torch.randint(5, vocab_size, (5, tokens), generator=torch.Generator().manual_seed(1))
    for row, length in zip(ids, (tokens, 40, 17, 2, 1)):
        row[length:] = pad
    kept = (ids != pad).numpy()
    with torch.no_grad():
        expected = model(ids, attention_mask=(ids != pad).long()).last_hidden_state.numpy()
    sizes = BASE | {"layers": model.config.num_hidden_layers}
    encode, *_ = text_encoder(tmp_path, kind=kind, vocab_size=vocab_size, positions=512, **sizes)
    difference = np.abs(encode(ids.numpy(), kept) - expected)[kept].max()
    largest = np.abs(expected).max()
    print(f"\n{kind}-base, up to {tokens} tokens: max abs difference {difference:.2e}, values up to {largest:.2f}")
    assert difference <= TOLERANCE
