import tracemalloc

import numpy as np
import pytest
from tiny import recipe

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
