import json
from types import SimpleNamespace

import pytest

from mvlm_jax import config as config_lib
from mvlm_jax.aot.ahead import CompiledStep, wanted_memory
from mvlm_jax.aot.hlo import read
from mvlm_jax.aot.report import roofline, summary, table, what_to_change
from mvlm_jax.aot.topology import CHIPS, Topology

# One product of 2 x 1000 x 1000 x 1000 = 2e9 operations over three matrices of 4 MB, and 8 MB reduced by 4 chips.
PROGRAM = """HloModule m

ENTRY %e (x: f32[1000,1000], y: f32[1000,1000]) -> f32[1000,1000] {
  %x = f32[1000,1000]{1,0} parameter(0)
  %y = f32[1000,1000]{1,0} parameter(1)
  %z = f32[1000,1000]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %r = (f32[1000,1000]{1,0}, f32[1000,1000]{1,0}) all-reduce(%z, %x), replica_groups={{0,1,2,3}}
}
"""


@pytest.fixture(params=[True, False], ids=["fits", "does not fit"])
def step(request):
    program = read(PROGRAM) if request.param else None
    task = SimpleNamespace(flops_per_step=8e9)
    return CompiledStep(task, params=7, arguments=2**30, temporaries=2**34, own_rows=True, program=program)


@pytest.fixture
def topology():
    return Topology("v6e:2x2", CHIPS["v6e"], [SimpleNamespace(device_kind="TPU v6 lite")] * 4)


def test_the_step_is_the_slower_of_matrix_units_and_memory_and_then_the_links(topology):
    found = roofline(read(PROGRAM), topology)
    assert found.matrix == pytest.approx(2e9 / 918e12)
    assert found.memory == pytest.approx(12e6 / 1640e9)
    assert found.chip == found.memory
    # A ring all-reduce sends 2 x 3/4 of the 8 MB.
    assert found.links == pytest.approx(12e6 / 448e9)
    assert found.step == found.chip + found.links


def test_the_summary_has_just_the_promised_fields(step, topology):
    values = json.loads(json.dumps(summary(step, topology=topology, steps=3600)))
    assert list(values) == [
        "chips", "params", "hbm_bytes_per_chip", "model_flops_per_chip", "compiled_flops_per_chip",
        "hbm_traffic_bytes_per_chip", "collective_bytes_per_chip", "step_seconds_estimate", "hours_estimate", "fits",
    ]  # fmt: skip
    assert values["hbm_bytes_per_chip"] == {
        "arguments": 2**30, "temporaries": 2**34, "total": 2**30 + 2**34, "capacity": int(31.25 * 2**30),
    }  # fmt: skip
    assert (values["chips"], values["params"], values["model_flops_per_chip"]) == (4, 7, 2e9)
    assert values["fits"] is (step.program is not None)
    if values["fits"]:
        assert values["compiled_flops_per_chip"] == 2e9
        assert values["collective_bytes_per_chip"] == {"all-reduce": 8_000_000}
        assert values["hbm_traffic_bytes_per_chip"] == {
            "matrix products": 12_000_000, "attention": 0, "copies": 0, "element-wise": 0, "collectives": 16_000_000,
        }  # fmt: skip
        assert values["hours_estimate"] == pytest.approx(values["step_seconds_estimate"])
    else:
        assert values["step_seconds_estimate"] is values["compiled_flops_per_chip"] is None


def test_a_program_that_libtpu_takes_but_the_chip_does_not_hold_does_not_fit(step, topology):
    larger = step._replace(temporaries=2**36)
    assert not summary(larger, topology=topology, steps=1)["fits"]


def test_the_table_says_what_the_summary_says(step, topology):
    config = config_lib.default()
    shown = table(summary(step, topology=topology, steps=1), step=step, topology=topology, config=config)
    assert "v6e:2x2, 4 chips" in shown
    assert "17.00 GiB" in shown and "31.25 GiB" in shown
    fits = step.program is not None
    assert shown.splitlines()[-1].split() == ["fits", "yes" if fits else "no"]
    assert ("all-reduce" in shown) is fits
    assert ("HBM traffic, matrix products" in shown) is fits


def test_the_table_says_whether_features_are_sent(step, topology):
    def shown(step):
        values = summary(step, topology=topology, steps=1)
        return table(values, step=step, topology=topology, config=config_lib.default()).splitlines()

    assert any(line.split() == ["features", "sent", "no"] for line in shown(step))
    sent = next(line for line in shown(step._replace(own_rows=False)) if line.startswith("features sent"))
    assert "yes, no chip holds whole matching groups" in sent


def test_no_time_is_estimated_for_several_slices(step, topology):
    topology = topology._replace(slices=2)
    values = summary(step, topology=topology, steps=1)
    assert values["step_seconds_estimate"] is values["hours_estimate"] is None
    assert (values["collective_bytes_per_chip"] is None) is (step.program is None)
    shown = table(values, step=step, topology=topology, config=config_lib.default())
    assert "hours" not in shown and "pairs a second" not in shown
    if step.program is not None:
        assert "ms as if within one slice" in shown
        assert "the network between slices is not known" in shown


def test_what_to_change_names_what_is_left_to_change():
    config = config_lib.default()
    config.model.remat = "none"
    advice = what_to_change(config, parts=4)
    assert "model.remat=dots" in advice and "accumulate=4" in advice and "batch_size=128" in advice
    config.accumulate = 2
    advice = what_to_change(config, parts=4)
    # Two microbatches of one group of 32 on each of 4 chips.
    assert "accumulate=4" in advice and "batch_size=256" in advice
    config.model.remat, config.batch_size = "full", 256
    advice = what_to_change(config, parts=4)
    assert not any(field in advice for field in ("remat=", "accumulate", "batch_size")) and "mesh.fsdp" in advice


def test_what_libtpu_says_of_missing_memory_is_understood():
    temporaries = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (19.50G) exceeds "
        "available HBM (15.75G)."
    )
    assert wanted_memory(temporaries, arguments=2**30) == 19.5 * 2**30
    everything = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.50G of "
        "15.75G hbm. Exceeded hbm capacity by 4.75G."
    )
    assert wanted_memory(everything, arguments=2**30) == 19.5 * 2**30
    assert wanted_memory("Ran out of memory in memory space vmem. Used 20.50M of 16.00M", arguments=0) is None
