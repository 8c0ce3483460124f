"""Each tutorial works as it is written, from its first command to its last, at a small size."""

import re
import shlex
import shutil

import pytest
from tiny import ROOT, SMALLER

from mvlm_jax import cli

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
# A block of commands, or a program.
STEP = re.compile(r"^```python\n(?P<program>[\s\S]*?)^```|^(?P<commands>(?: {4}\S.*\n|  +--.*\n)+)", re.MULTILINE)
BY_HAND = ("make ", "source ")  # an environment, and the run that the test has already


def steps(path) -> list[tuple[str, str]]:
    found = [(step.lastgroup or "", step[step.lastgroup or 0]) for step in STEP.finditer(path.read_text())]
    return [(kind, line) for kind, text in found for line in ([text] if kind == "program" else lines(text))]


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.replace("\\\n", " ").splitlines()]


def command(line: str) -> list[str]:
    """The words behind `mvlm`; what is trained is made smaller."""
    program, *words = shlex.split(line, comments=True)
    assert program == "mvlm", line
    fields = SMALLER | {"steps": 6}
    return words + [f"--config.{name}={value}" for name, value in fields.items() if words[0] == "train"]


def test_every_tutorial_has_commands_and_a_program():
    assert [path.stem for path in TUTORIALS] == ["first_run", "search", "your_own_data"]
    for path in TUTORIALS:
        kinds = [kind for kind, _ in steps(path)]
        assert kinds.count("commands") >= 3 and "program" in kinds


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_works_as_it_is_written(path, demo_dir, demo_run, tmp_path, monkeypatch, capsys):
    shutil.copytree(demo_dir, tmp_path / "runs" / "data")
    shutil.copytree(demo_run, tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    ran = 0
    for kind, text in steps(path):
        if kind == "program":
            exec(compile(text, path.name, "exec"), names)
        elif text.startswith("mvlm "):
            assert cli.main(command(text)) == 0, text
        else:
            assert text.startswith(BY_HAND) or "," in text, text  # the lines of a list
            continue
        ran += 1
    assert ran >= 5
    printed = capsys.readouterr().out
    named = re.findall(r"(?:written to|writes|wrong in|side, in)\s+`([\w./-]+)`", path.read_text())
    assert all((tmp_path / name).exists() for name in named), (named, printed)
