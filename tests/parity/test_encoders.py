"""Random weights at full size, float32: the same hidden states as in transformers. Run by `make parity`."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from encoders import image_encoder, text_encoder  # noqa: E402

BASE = {"width": 768, "heads": 12, "layers": 12, "mlp_ratio": 4}
TOLERANCE = 1e-4


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
