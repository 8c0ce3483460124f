import tracemalloc
from unittest.mock import MagicMock

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import recipe

from mvlm_jax.data.pipeline import EvalSplit
from mvlm_jax.evaluation import retrieval
from mvlm_jax.tasks.pretrain import Pretrain


def features_of(model, _, text):
    """Made up: as large as the real ones, and different for every text."""
    text = np.asarray(text)
    w = np.repeat(text[:, :, None], model.width, axis=2).astype(model.dtype)
    return w, text[:, :4].astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_text_features_take_what_they_are_allowed_and_no_more(dtype, monkeypatch):
    monkeypatch.setattr(retrieval, "_encode_texts", features_of)
    monkeypatch.setattr(retrieval, "fetch", lambda x: x)
    config = recipe("demo")
    config.dtype = dtype
    model = Pretrain.build_model(config, pad_id=1)
    text = np.random.default_rng(0).integers(0, 200, (1000, config.text.max_length), dtype=np.int32)
    size = text.size * model.width * model.dtype.itemsize
    encode = {"model": model, "params": np.zeros(1), "batch_size": 30}
    # What is only imported or compiled at the first call is no matter here.
    retrieval.encode_texts(text=text[:30], host_bytes=size, **encode)
    tracemalloc.start()
    z, w = retrieval.encode_texts(text=text, host_bytes=size, **encode)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.3 * size
    expected = features_of(model, None, text)
    np.testing.assert_array_equal(w, expected[0])
    np.testing.assert_array_equal(z, expected[1])
    assert w.dtype == model.dtype
    assert retrieval.encode_texts(text=text, host_bytes=size - 1, **encode)[1] is None


# Image 0 has captions 0 and 1, image 1 has caption 2.
Z_IMAGE = np.array([[1, 0], [0.6, 0.8]], np.float32)
Z_TEXT = np.array([[0.8, 0.6], [0.6, 0.8], [0, 1]], np.float32)
CAPTION_IMAGE = np.array([0, 0, 1])
LOG_ODDS = np.array([-1, 2, 2.5, 1, -3, 3], np.float32)  # of image 0 with each caption, then of image 1
TEMPERATURE = 0.25
# -1 + 0.8 / 0.25, 2 + 0.6 / 0.25, 2.5 + 0; 1 + 0.96 / 0.25, -3 + 1 / 0.25, 3 + 0.8 / 0.25
SUMS = [2.2, 4.4, 2.5, 4.84, 1, 6.2]


def every_pair(images, captions):
    texts = np.tile(np.arange(captions), (images, 1))
    return retrieval.Pairs(texts, np.tile(np.arange(images), (captions, 1)), captions=captions)


@pytest.mark.parametrize("host_bytes", [1, 2**20])
def test_similarity_over_temperature_is_added_to_the_log_odds(host_bytes):
    added = {"temperature": TEMPERATURE, "host_bytes": host_bytes}
    scores = retrieval.plus_similarity(LOG_ODDS, every_pair(2, 3), Z_IMAGE, Z_TEXT, **added)
    np.testing.assert_allclose(scores, SUMS, rtol=1e-6)


def test_a_sum_with_what_is_no_number_is_none_and_equal_pairs_stay_equal():
    # Captions 0 and 3 are the same; the embedding of caption 1 is broken, and so is the matching of image 0 with 2.
    z_text = np.array([[0.1, 0.7, 0.3], [np.nan, 0, 0], [1, 0, 0], [0.1, 0.7, 0.3]], np.float32)
    z_image = np.array([[0.3, 0.3, 0.9], [0.2, 0.1, 0.7]], np.float32)
    log_odds = np.array([0.3, 1, np.nan, 0.3, 0.1, 1, 1, 0.1], np.float32)
    added = {"temperature": 0.07, "host_bytes": 200}
    scores = retrieval.plus_similarity(log_odds, every_pair(2, 4), z_image, z_text, **added).reshape(2, 4)
    assert np.isnan(scores).tolist() == [[False, True, True, False], [False, True, False, False]]
    assert (scores[:, 0] == scores[:, 3]).all()


@pytest.mark.parametrize(
    ("rule", "tr_r1"),
    [
        ("itm", 50),  # image 0 takes caption 2, which is wrong
        ("itm+itc", 100),  # it takes caption 1, its own
    ],
)
def test_candidates_are_re_ranked_by_the_rule_that_the_results_name(rule, tr_r1, monkeypatch):
    monkeypatch.setattr(retrieval, "encode_images", lambda *_, **options: Z_IMAGE)
    monkeypatch.setattr(retrieval, "encode_texts", lambda *_, **options: (Z_TEXT, None))
    monkeypatch.setattr(retrieval, "match_pairs", lambda *_, **options: LOG_ODDS)
    split = MagicMock(EvalSplit, captions=np.zeros((3, 4), np.int32), caption_image=CAPTION_IMAGE)
    split.__len__.return_value = 2
    found = retrieval.evaluate_retrieval(
        Pretrain.build_model(recipe("demo"), pad_id=1),
        {"temperature": jnp.array(TEMPERATURE)},
        split,
        batch_size=2,
        rerank=3,
        rerank_by=rule,
        host_bytes=2**20,
    )
    assert found["rerank_by"] == rule
    # By contrast image 1 takes caption 1, and captions 0 and 1 take image 1: all three are wrong.
    assert (found["tr_r1"], found["ir_r1"]) == pytest.approx((50, 100 / 3))
    # Either rule brings back image 1 and caption 1, and leaves caption 0 with image 1.
    assert (found["tr_r1_rerank"], found["ir_r1_rerank"]) == pytest.approx((tr_r1, 200 / 3))
