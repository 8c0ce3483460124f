import jax
import pytest

from mvlm_jax import config as config_lib
from mvlm_jax.aot import ahead
from mvlm_jax.aot.ahead import REMAT, CompiledStep, fit, largest_fit
from mvlm_jax.errors import UserError
from mvlm_jax.tasks import registry


def memory(limits):
    """A chip that holds up to `limits[policy]` pairs, and what it was asked."""
    asked = []

    def fits(pairs, policy):
        asked.append((pairs, policy))
        return pairs <= limits[policy]

    return fits, asked


@pytest.mark.parametrize(
    ("limits", "found"),
    [
        ({"none": 40, "inputs": 60, "dots": 70, "full": 130}, (128, "full")),
        ({"none": 40, "inputs": 60, "dots": 70, "full": 100}, (96, "full")),
        ({"none": 40, "inputs": 60, "dots": 100, "full": 100}, (96, "dots")),
        ({"none": 96, "inputs": 96, "dots": 96, "full": 96}, (96, "none")),
        ({"none": 40, "inputs": 60, "dots": 70, "full": 63 * 32}, (63 * 32, "full")),
        ({"none": 0, "inputs": 0, "dots": 0, "full": 31}, None),
    ],
)
def test_the_largest_batch_comes_before_the_cheapest_policy(limits, found):
    fits, asked = memory(limits)
    assert largest_fit(fits, group=32) == found
    assert len(set(asked)) == len(asked) <= 15


def test_the_search_ends_where_everything_fits():
    fits, asked = memory(dict.fromkeys(REMAT, 10**9))
    assert largest_fit(fits, group=4) == (64 * 4, "none")
    assert len(asked) <= 8


@pytest.fixture
def compiled(monkeypatch):
    """A compiler that takes every step, which needs 1 GB and 1 GB a pair; and the configs that it took."""
    configs = []

    def compile_step(config, devices):
        registry.validate(config)
        configs.append(config)
        pairs = config.batch_size // len(devices)
        return CompiledStep(None, 1, 10**9, pairs * 10**9, own_rows=True, program="a program")

    monkeypatch.setattr(ahead, "compile_step", compile_step)
    return configs


def test_every_batch_that_is_tried_is_whole_groups_in_each_microbatch_and_held_by_the_chip(compiled):
    config = config_lib.default()
    config.accumulate, config.matching.group = 2, 4
    lines = []
    found, step = fit(config, jax.devices(), capacity=26 * 10**9, report=lines.append)
    # 24 pairs and what comes with them are 25 GB; 32 pairs are 33.
    assert found.batch_size == 24 * len(jax.devices()) and found.model.remat == "none"
    assert step.total == 25 * 10**9
    assert {one.batch_size // len(jax.devices()) for one in compiled} == {8, 16, 24, 32}
    assert "32 pairs a chip, remat full: does not fit" in lines


def test_chips_too_small_for_one_group_in_each_microbatch_are_refused(compiled):
    config = config_lib.default()
    config.accumulate, config.matching.group = 2, 4
    with pytest.raises(UserError, match="not even 8 pairs a chip, .* config.mesh.fsdp above 1"):
        fit(config, jax.devices(), capacity=8 * 10**9, report=lambda line: None)
