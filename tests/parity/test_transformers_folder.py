"""What was exported loads in transformers and computes the same there. Run by `make parity`."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402
from sources import GOLDEN, encoder_of  # noqa: E402

from mvlm_jax.data.text import train_tokenizer  # noqa: E402
from mvlm_jax.interop.families import text_family  # noqa: E402

TOLERANCE = 1e-5
CAPTIONS = ["a red square", "a blue disc above a red square", "two green stars, left of a small disc"]


def loaded(model_class, folder):
    """The model, every tensor of which is in the folder."""
    options = {} if model_class is transformers.DistilBertModel else {"add_pooling_layer": False}
    model, info = model_class.from_pretrained(folder, **options, output_loading_info=True)
    assert not any(info[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


@torch.no_grad()
def test_a_vit(tmp_path):
    ours = encoder_of(GOLDEN / "vit", "vit")
    ours.write(tmp_path / "vit")
    expected = load_file(GOLDEN / "vit.outputs.safetensors")
    theirs = loaded(transformers.ViTModel, tmp_path / "vit")(expected["pixels"]).last_hidden_state
    np.testing.assert_allclose(theirs, expected["hidden"], atol=TOLERANCE)
    np.testing.assert_allclose(ours.encode(expected["pixels"].numpy()), theirs, atol=TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("kind, pad", [("roberta", 1), ("bert", 0), ("distilbert", 0), ("mpnet", 1)])
def test_a_text_encoder(kind, pad, tmp_path):
    ours = encoder_of(GOLDEN / kind, kind)
    tokenizer = train_tokenizer(CAPTIONS, kind=text_family(kind).tokenizer, vocab_size=300)
    ours.write(tmp_path / kind, tokenizer)
    expected = load_file(GOLDEN / f"{kind}.outputs.safetensors")
    kept = expected["ids"] != pad
    model = loaded(getattr(transformers, text_family(kind).architecture), tmp_path / kind)
    theirs = model(expected["ids"], attention_mask=kept.long()).last_hidden_state
    model.save_pretrained(tmp_path / "back")
    back, exported = (load_file(folder / "model.safetensors") for folder in (tmp_path / "back", tmp_path / kind))
    assert back.keys() == exported.keys() and all(torch.equal(back[name], exported[name]) for name in back)
    np.testing.assert_allclose(theirs[kept], expected["hidden"][kept], atol=TOLERANCE)

    library = transformers.AutoTokenizer.from_pretrained(tmp_path / kind)
    ids = library(CAPTIONS, padding="max_length", max_length=12, truncation=True)["input_ids"]
    np.testing.assert_array_equal(ids, tokenizer.encode(CAPTIONS, max_length=12))
