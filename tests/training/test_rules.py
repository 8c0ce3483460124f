import jax.numpy as jnp
import pytest

from mvlm_jax.training.rules import match_rules

PARAMS = {"encoder": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}, "head": {"kernel": jnp.zeros((3, 1))}}


def test_the_first_matching_rule_wins():
    rules = [(r".*/bias", 1), (r"encoder/.*", 2), (r".*", 3)]
    assert match_rules(rules, PARAMS) == {"encoder": {"kernel": 2, "bias": 1}, "head": {"kernel": 3}}


def test_a_rule_covers_the_whole_path_or_nothing():
    params = {"encoder": {"kernel": jnp.zeros(1)}}
    assert match_rules([(r"kernel", "part"), (r".*kernel", "whole")], params) == {"encoder": {"kernel": "whole"}}
    with pytest.raises(ValueError, match="no rule covers 1 of 1 parameters: encoder/kernel"):
        match_rules([(r"encoder", 1), (r"kernel", 2)], params)


def test_parameters_that_no_rule_covers_are_named():
    with pytest.raises(ValueError, match=r"no rule covers 2 of 3 parameters: encoder/bias, head/kernel$"):
        match_rules([(r"encoder/kernel", 1)], PARAMS)


def test_at_most_ten_uncovered_parameters_are_named():
    params = {f"layer_{index:02}": jnp.zeros(1) for index in range(12)}
    with pytest.raises(ValueError, match=r"12 of 12 parameters: layer_00, .*layer_09 and 2 more$"):
        match_rules([], params)
