"""The opponents of `make bench` in encoding, matching and re-ranking."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TOY = {"size": "tiny", "image_size": 32, "batch_size": 4, "dtype": "float32", "steps": 1}


@pytest.fixture
def construct(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import processes

    return lambda name: processes.construct(name, TOY)


def test_the_reference_reranks_the_pairs_that_it_matches(construct):
    reference = construct("torch_inference")
    logits = reference.verbs["rerank"]()
    odds = np.full((4, 4), np.nan)
    images = np.repeat(np.arange(4), 4)
    odds[images, reference.requests.candidates.ravel()] = logits[:, 1] - logits[:, 0]
    expected = reference.verbs["match"]()
    np.testing.assert_allclose(np.diagonal(odds), expected[:, 1] - expected[:, 0], atol=1e-5)
    for verb in ("encode_image", "encode_text"):
        np.testing.assert_allclose(np.linalg.norm(reference.verbs[verb](), axis=1), 1, atol=1e-5)


def test_the_encoders_of_transformers_have_the_sizes_of_ours(construct):
    encoders = construct("transformers")
    for verb in ("encode_image", "encode_text"):
        assert encoders.prepare(verb)["count"] == 4
        assert encoders.verbs[verb]().shape == (4, 64)
