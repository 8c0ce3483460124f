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


CLASSES = {
    "vit": transformers.ViTModel,
    "dinov2": transformers.Dinov2Model,
    "dinov2_registers": transformers.Dinov2WithRegistersModel,
    "clip": transformers.CLIPVisionModel,
    "siglip": transformers.SiglipVisionModel,
}


def loaded(model_class, folder, **arguments):
    """The model, every tensor of which is in the folder."""
    model, info = model_class.from_pretrained(folder, output_loading_info=True, **arguments)
    assert not any(info[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
def test_an_image_encoder(name, tmp_path):
    ours = encoder_of(GOLDEN / name, name)
    ours.write(tmp_path / "written")
    expected = load_file(GOLDEN / f"{name}.outputs.safetensors")
    model = loaded(CLASSES[name], tmp_path / "written", **({"add_pooling_layer": False} if name == "vit" else {}))
    theirs = model(expected["pixels"]).last_hidden_state
    received = ours.encode(expected["pixels"].numpy())
    if name == "clip":
        theirs = model.post_layernorm(theirs)
    if name == "dinov2_registers":
        theirs = torch.cat([theirs[:, :1], theirs[:, 4:]], dim=1)
    if name == "siglip":
        received = received[:, 1:]
    np.testing.assert_allclose(received, theirs, atol=TOLERANCE)
    model.save_pretrained(tmp_path / "again")
    written, again = (load_file(tmp_path / folder / "model.safetensors") for folder in ("written", "again"))
    assert written.keys() == again.keys()
    for key, value in written.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)


@torch.no_grad()
@pytest.mark.parametrize("kind, pad", [("roberta", 1), ("bert", 0), ("distilbert", 0), ("mpnet", 1)])
def test_a_text_encoder(kind, pad, tmp_path):
    ours = encoder_of(GOLDEN / kind, kind)
    tokenizer = train_tokenizer(CAPTIONS, kind=text_family(kind).tokenizer, vocab_size=300)
    ours.write(tmp_path / kind, tokenizer)
    expected = load_file(GOLDEN / f"{kind}.outputs.safetensors")
    kept = expected["ids"] != pad
    family = text_family(kind)
    options = {"add_pooling_layer": False} if family.pooling_layer else {}
    model = loaded(getattr(transformers, family.architecture), tmp_path / kind, **options)
    theirs = model(expected["ids"], attention_mask=kept.long()).last_hidden_state
    model.save_pretrained(tmp_path / "back")
    back, exported = (load_file(folder / "model.safetensors") for folder in (tmp_path / "back", tmp_path / kind))
    assert back.keys() == exported.keys() and all(torch.equal(back[name], exported[name]) for name in back)
    np.testing.assert_allclose(theirs[kept], expected["hidden"][kept], atol=TOLERANCE)

    library = transformers.AutoTokenizer.from_pretrained(tmp_path / kind)
    ids = library(CAPTIONS, padding="max_length", max_length=12, truncation=True)["input_ids"]
    np.testing.assert_array_equal(ids, tokenizer.encode(CAPTIONS, max_length=12))
