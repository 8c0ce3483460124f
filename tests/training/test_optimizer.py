import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mvlm_jax.errors import UserError
from mvlm_jax.training.optimizer import learning_rates, make_optimizer, scale_by_adam, warmup_cosine

PARAMS = {"encoder": {"kernel": jnp.full(2, 2.0), "bias": jnp.full(2, 2.0)}, "head": {"kernel": jnp.full(2, 4.0)}}
RULES = [(r"encoder/.*", "encoder"), (r".*", "rest")]
DECAY_RULES = [(r".*/bias", False), (r".*", True)]


def optimizer(**options):
    defaults = {
        "schedules": {"encoder": lambda update: 0.01 * update, "rest": lambda update: 0.1 * update},
        "rules": RULES,
        "decay_rules": DECAY_RULES,
        "weight_decay": 0.0,
        "b1": 0.9,
        "b2": 0.999,
        "clip_norm": 0.0,
    }
    return make_optimizer(PARAMS, **(defaults | options))


def updated(gradients, *, updates=1, **options):
    transform = optimizer(**options)
    params, state = PARAMS, transform.init(PARAMS)
    for _ in range(updates):
        changes, state = transform.update(gradients, state, params)
        params = optax.apply_updates(params, changes)
    return params


def test_the_schedule_rises_in_a_line_and_falls_along_a_cosine():
    rate = warmup_cosine(steps=12, warmup_steps=4, peak=0.8, final=0.2)
    # cos(pi / 4) = 0.70711: 0.2 + 0.6 * (1 + 0.70711) / 2 = 0.712132
    expected = {0: 0.0, 1: 0.2, 2: 0.4, 4: 0.8, 6: 0.712132, 8: 0.5, 10: 0.287868, 12: 0.2, 13: 0.2}
    for update, value in expected.items():
        assert float(rate(update)) == pytest.approx(value, abs=1e-6), update


def test_each_group_has_its_own_peak_and_final():
    rates = learning_rates(steps=100, warmup_steps=10, ends={"text_encoder": (1e-5, 1e-5), "rest": (3e-4, 3e-5)})
    assert [float(rates["rest"](update)) for update in (5, 10, 55, 100)] == pytest.approx([1.5e-4, 3e-4, 1.65e-4, 3e-5])
    encoder = [float(rates["text_encoder"](update)) for update in (5, 10, 55, 100)]
    assert encoder == pytest.approx([5e-6, 1e-5, 1e-5, 1e-5])


@pytest.mark.parametrize(
    ("steps", "warmup_steps", "peak", "final"),
    [(600, 100, 2e-3, 1e-5), (20, 0, 1.0, 0.5), (20, 19, 3e-4, 0.0), (20, 5, 1e-5, 1e-5), (10, 2, 0.0, 0.0)],
)
def test_the_rates_are_those_of_optax_to_rounding(steps, warmup_steps, peak, final):
    updates = jnp.arange(steps + 2)
    theirs = optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, steps, final)
    ours = warmup_cosine(steps=steps, warmup_steps=warmup_steps, peak=peak, final=final)
    rates = [np.asarray(jax.jit(jax.vmap(rate))(updates), np.float64) for rate in (theirs, ours)]
    assert np.abs(rates[0] - rates[1]).max() <= 2e-7 * peak


def test_a_peak_of_zero_rises_to_the_final_rate_where_that_of_optax_stays_at_zero():
    rate = warmup_cosine(steps=6, warmup_steps=2, peak=0.0, final=0.4)
    assert [float(rate(update)) for update in (0, 2, 4, 6)] == pytest.approx([0.0, 0.0, 0.2, 0.4])
    assert float(optax.warmup_cosine_decay_schedule(0.0, 0.0, 2, 6, 0.4)(6)) == 0


def test_a_peak_of_zero_stays_at_zero():
    rate = warmup_cosine(steps=10, warmup_steps=2, peak=0.0, final=0.0)
    assert [float(rate(update)) for update in range(11)] == [0.0] * 11


def test_without_warm_up_the_cosine_starts_at_once():
    rate = warmup_cosine(steps=2, warmup_steps=0, peak=1.0, final=0.0)
    assert [float(rate(update)) for update in (0, 1, 2)] == pytest.approx([1.0, 0.5, 0.0])


def test_a_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(UserError, match=r"config.optimizer.warmup_steps=100 must be less than config.steps=100"):
        learning_rates(steps=100, warmup_steps=100, ends={"rest": (1.0, 0.0)})


def test_the_nth_update_moves_each_group_by_its_nth_rate():
    # With a constant gradient Adam's normalised step is 1: the parameters move by the sum of the rates.
    params = updated(jax.tree.map(jnp.ones_like, PARAMS), updates=3)
    np.testing.assert_allclose(params["encoder"]["kernel"], 2 - (0.01 + 0.02 + 0.03), rtol=1e-5)
    np.testing.assert_allclose(params["head"]["kernel"], 4 - (0.1 + 0.2 + 0.3), rtol=1e-5)


def test_decay_shrinks_what_its_rules_name_by_the_rate_of_the_group():
    params = updated(jax.tree.map(jnp.zeros_like, PARAMS), weight_decay=0.5)
    np.testing.assert_allclose(params["encoder"]["kernel"], 2 - 0.01 * 0.5 * 2, rtol=1e-6)
    np.testing.assert_array_equal(params["encoder"]["bias"], PARAMS["encoder"]["bias"])
    np.testing.assert_allclose(params["head"]["kernel"], 4 - 0.1 * 0.5 * 4, rtol=1e-6)


def test_gradients_are_clipped_to_the_global_norm():
    gradients = {"encoder": {"kernel": jnp.full(2, 3.0), "bias": jnp.zeros(2)}, "head": {"kernel": jnp.full(2, 4.0)}}
    transform = optimizer(clip_norm=1.0)
    _, state = transform.update(gradients, transform.init(PARAMS), PARAMS)
    # The norm is sqrt(2 * 9 + 2 * 16) = 7.0711, and the first moment is a tenth of what is left of the gradient.
    moment = optax.tree.get(state, "mu")
    np.testing.assert_allclose(moment["encoder"]["kernel"], 0.1 * 3 / 50**0.5, rtol=1e-5)
    np.testing.assert_allclose(moment["head"]["kernel"], 0.1 * 4 / 50**0.5, rtol=1e-5)


def test_a_group_without_a_schedule_is_refused():
    with pytest.raises(ValueError, match="name the group 'frozen'"):
        optimizer(rules=[(r"encoder/.*", "frozen"), (r".*", "rest")])


def test_a_parameter_without_a_decay_rule_is_refused_by_name():
    with pytest.raises(ValueError, match="no rule covers 1 of 3 parameters: head/kernel"):
        optimizer(decay_rules=[(r"encoder/.*", True)])


def test_adam_is_that_of_optax_and_stays_as_it_is_where_an_update_is_not_finite():
    ours, theirs = scale_by_adam(b1=0.8, b2=0.9), optax.scale_by_adam(b1=0.8, b2=0.9)
    state = ours.init(PARAMS)
    gradients = jax.tree.map(lambda leaf: leaf * 0.3, PARAMS)
    for _ in range(2):
        expected, expected_state = theirs.update(gradients, state)
        updates, state = ours.update(gradients, state)
        jax.tree.map(np.testing.assert_array_equal, (updates, state), (expected, expected_state))
    _, after = ours.update(jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS), state, finite=jnp.bool_(False))
    jax.tree.map(np.testing.assert_array_equal, after, state)
