import itertools

import jax
import jax.numpy as jnp
import numpy as np

from mvlm_jax.training.streams import Streams


def bits(*, seed=0, name="mask", step=0):
    return tuple(jax.random.key_data(Streams(seed=seed, step=jnp.int32(step)).key(name)).tolist())


def test_keys_differ_by_seed_stream_and_step():
    cases = itertools.product((0, 1, 2**31 - 1), ("mask", "init", "dropout"), (0, 1, 10**6))
    keys = [bits(seed=seed, name=name, step=step) for seed, name, step in cases]
    assert len(set(keys)) == 27


def test_a_key_is_the_same_in_every_process_and_version():
    # zlib.crc32(b"mask") is 2138030896.
    expected = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), 2138030896), 5)
    assert bits(seed=7, name="mask", step=5) == tuple(jax.random.key_data(expected).tolist())


def test_a_key_is_the_same_under_jit_with_a_traced_step():
    traced = jax.jit(lambda streams: jax.random.key_data(streams.key("mask")))(Streams(seed=3, step=jnp.int32(4)))
    np.testing.assert_array_equal(traced, bits(seed=3, step=4))
