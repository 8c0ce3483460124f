"""The Dockerfile, as far as it can be read without a builder."""

import fnmatch
import re

import pytest
from tiny import ROOT

from mvlm_jax.launching import archive
from mvlm_jax.launching.jobset import IMAGE_USER

LINES = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
STAGES = {}  # name -> (the stage that it starts from, its lines)
for line in LINES:
    if found := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
        STAGES[found[2]] = (found[1], [])
    elif STAGES and line and not line.startswith("#"):
        list(STAGES.values())[-1][1].append(line)


def steps(target):
    if target not in STAGES:
        return []
    parent, own = STAGES[target]
    return [*steps(parent), *own]


@pytest.mark.parametrize("target, extra", [("cpu", "--editable=."), ("gpu", "'.[gpu]'"), ("tpu", "'.[tpu]'")])
def test_a_target_installs_its_extra_at_pinned_versions_for_a_user_who_is_not_root(target, extra):
    installs = [step for step in steps(target) if "pip install" in step]
    assert extra in installs[-1]
    assert all("--constraint=constraints.txt" in step for step in installs)
    assert [step for step in steps(target) if step.startswith("USER")] == [f"USER {IMAGE_USER}"]


def test_everything_that_is_copied_is_there_and_is_sent_to_the_builder():
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = {
        name
        for _, own in STAGES.values()
        for step in own
        if step.startswith("COPY")
        for name in step.split()[1:-1]
        if name != "."
    }
    assert "constraints-gpu.txt" in copied and set(archive.FILES) <= set(sent)
    for name in copied:
        assert (ROOT / name).exists() and any(fnmatch.fnmatch(name.split("/")[0], each) for each in sent), name
    assert all((ROOT / name).exists() for name in sent)
