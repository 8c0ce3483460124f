"""The README's path from nothing to a search, as a newcomer goes it; at small size, with the packages that are here."""

import importlib.util
import json
import os
import shlex
import shutil
import sys

import pytest
from tiny import ROOT, SMALLER

spec = importlib.util.spec_from_file_location("first_hour", ROOT / "benchmarks" / "first_hour.py")
first_hour = importlib.util.module_from_spec(spec)
spec.loader.exec_module(first_hour)


def test_the_readme_has_every_step():
    commands, program = first_hour.readme(ROOT / "README.md")
    assert {name: words[:3] for name, words in commands.items()} == {
        "install": ["pip", "install", "-e"],
        "demo": ["make", "demo"],
        "export": ["mvlm", "weights", "export"],
        "search": ["mvlm", "search", commands["search"][2]],
    }
    compile(program, "README.md", "exec")
    assert "mvlm_jax.load(" in program
    search = first_hour.search_in(commands["search"], images=ROOT, model="here")
    assert search[:2] == ["mvlm", "search"] and {f"--images={ROOT}", "--model=here"} < set(search)


def test_a_step_that_the_readme_lacks_is_one_line(tmp_path, capsys):
    (tmp_path / "checkout").mkdir()
    text = (ROOT / "README.md").read_text().replace("make demo", "make nothing")
    (tmp_path / "checkout" / "README.md").write_text(text)
    flags = [f"--directory={tmp_path / 'made'}", f"--checkout={tmp_path / 'checkout'}"]
    assert first_hour.main(flags) == 1
    assert first_hour.main(flags) == 1
    lacking, there = capsys.readouterr().err.splitlines()
    assert lacking.endswith("README.md has no command that begins with 'make demo'")
    assert there == f"first_hour.py: --directory={tmp_path / 'made'} exists; give a new one"


@pytest.mark.slow
def test_the_path_of_the_readme_leads_to_a_picture_a_model_and_a_search(tmp_path, capsys):
    checkout, environment = tmp_path / "checkout", tmp_path / "environment"
    checkout.mkdir()
    for name in ("README.md", "Makefile", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, checkout)
    for name in ("launch", "mvlm_jax"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    (environment / "bin").mkdir(parents=True)
    start = f'#!/bin/sh\nPYTHONPATH="{checkout}:$PYTHONPATH" exec "{sys.executable}"'
    for name, rest in (("python", '"$@"'), ("mvlm", '-m mvlm_jax "$@"')):
        (environment / "bin" / name).write_text(f"{start} {rest}\n")
        (environment / "bin" / name).chmod(0o755)
    (environment / ".installed").touch()  # newer than setup.py: make installs nothing
    for name in ("setup.py", "constraints.txt"):
        os.utime(checkout / name, (0, 0))
    fields = shlex.join(f"--config.{name}={value}" for name, value in (SMALLER | {"steps": 6}).items())
    directory = tmp_path / "hour"
    flags = [f"--directory={directory}", f"--checkout={checkout}", f"--environment={environment}", f"--fields={fields}"]
    status = first_hour.main(flags)
    printed = capsys.readouterr()
    assert status == 0, printed.err
    *lines, last = printed.out.splitlines()
    steps = [line.split()[2] for line in lines]
    assert steps == ["demo", "export", "program", "search"]
    seconds = json.loads(last)
    assert min(seconds.values()) > 0
    assert seconds["total"] == pytest.approx(sum(seconds[step] for step in steps), abs=0.5)
    assert seconds["picture"] <= seconds["demo"] + 1
    demo = (directory / "demo.log").read_text().splitlines()[-1]
    assert json.loads(demo)["workdir"] == str(checkout / "runs" / "demo")
    assert (checkout / "attention.png").is_file()
    assert (directory / "search.log").read_text().count("cosine") == 10
