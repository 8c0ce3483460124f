"""What the processes of a run tell each other at its start."""

import jax
import pytest

import mvlm_jax
from mvlm_jax.errors import UserError
from mvlm_jax.training.inventory import Member, describe, differences, installation

OWN = {"JAX": "0.10.2", "mvlm-jax": "0.1.0", "code": "0123", "Python": "3.11.7", "numpy": "2.3.0"}
USUAL = Member("a", devices=4, kind="TPU v6 lite", examples=128, workers=8)


def test_hosts_are_named_with_what_all_of_them_have_and_what_one_has_not():
    members = [USUAL, USUAL._replace(host="b"), USUAL._replace(host="c", devices=3, examples=96)]
    assert describe(members) == [
        "hosts: a (process 0), b (process 1), c (process 2); each: 4 x TPU v6 lite, 128 examples of a batch, "
        "8 input workers",
        "hosts: process 2 (c) differs: 3 x TPU v6 lite, 96 examples of a batch, 8 input workers",
    ]


def test_processes_of_one_host_stand_together():
    usual = USUAL._replace(devices=1, kind="NVIDIA H100", workers=0)
    hosts = ["a", "a", "a", "b", "c", "b"]
    assert describe([usual._replace(host=host) for host in hosts]) == [
        "hosts: a (processes 0 to 2), b (processes 3, 5), c (process 4); each: 1 x NVIDIA H100, "
        "128 examples of a batch, threads for the input"
    ]


@pytest.mark.parametrize("what, kind", [("JAX", "version"), ("mvlm-jax", "version"), ("code", "commit")])
def test_processes_of_other_code_are_refused_by_the_name_of_the_host(what, kind):
    installed = [OWN, OWN, OWN | {what: "9"}, OWN | {what: "9"}]
    said = rf"process 2 \(c\) \(and 1 more\) has {what} {kind} 9, process 0 \(a\) has {OWN[what]}; install the same"
    with pytest.raises(UserError, match=said):
        differences(installed, names=["a", "b", "c", "d"])


def test_other_versions_of_libraries_are_told():
    without_commit = {name: value for name, value in OWN.items() if name != "code"}
    lines = differences([OWN, without_commit | {"numpy": "2.2.0"}], names=["a", "b"])
    assert lines == ["process 1 (b) has numpy version 2.2.0, process 0 (a) has 2.3.0"]


def test_an_installation_is_told_by_its_versions():
    own = installation()
    assert (own["JAX"], own["mvlm-jax"]) == (jax.__version__, mvlm_jax.__version__)
    assert {"Python", "numpy", "grain", "jaxlib"} <= set(own) and "jax" not in own
