"""Every `mvlm` command in the documentation names a command, flags and config fields that there are."""

import re
import shlex

import pytest
from absl import flags
from tiny import ROOT

from mvlm_jax import config as config_lib
from mvlm_jax import doors

TEXTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("configs/*.py")),
         *(ROOT / "mvlm_jax" / f"{door}.py" for door in doors.DOORS)]  # fmt: skip
BLOCK = re.compile(r"^ *((?:mvlm|python3? -m mvlm_jax\.)(?:[^`\\\n]|\\\n)*)", re.MULTILINE)
INLINE = re.compile(r"`((?:mvlm|python -m mvlm_jax\.)[^`]*)`")
PLACEHOLDER = "…"  # in place of a path, or of all other flags


def commands(pattern):
    """The words of each command; what follows a # is a remark."""
    for path in TEXTS:
        for text in pattern.findall(path.read_text()):
            for part in text.replace("\\\n", " ").replace("\\|", "|").split("&&"):
                part = part.partition(" | ")[0]  # what reads the output is no command of ours
                part = re.sub(r"\bpython3? -m mvlm_jax\.", "mvlm ", part)
                words = [word for word in shlex.split(part, comments=True) if word != PLACEHOLDER]
                if words[0] == "mvlm" and words[1:] and "<" not in part:
                    yield pytest.param(words[1:], id=f"{path.name}: {' '.join(words)}")


def defined_flags(words, monkeypatch):
    """The flags of a command, before any is parsed."""
    defined = []

    def run(*, define_flags, argv, **_):
        values = flags.FlagValues()
        define_flags(values, ["mvlm", *argv])
        defined.append(values)
        return 0

    monkeypatch.setattr(doors, "run", run)
    assert doors.main(words) == 0
    [values] = defined
    return values


def test_there_are_commands_in_the_documentation():
    assert len(list(commands(BLOCK))) > 40 and len(list(commands(INLINE))) > 10


@pytest.mark.parametrize("words", list(commands(BLOCK)))
def test_a_command_to_copy_is_parsed(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    # A block whose recipe is left open is of a downstream task.
    words = [word.replace(f"--config={PLACEHOLDER}", "--config=configs/finetune_vqa.py") for word in words]
    values = defined_flags(words, monkeypatch)
    own = words[2:] if words[0] == "weights" else words[1:]
    assert values(["mvlm", *own]) == ["mvlm"]  # nothing is left over
    if "config" in values and values.config:
        config_lib.validate(values.config)


@pytest.mark.parametrize("words", list(commands(INLINE)))
def test_a_command_within_a_sentence_names_flags_that_there_are(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    if words[0] in doors.DOORS and words[0] != "weights":
        values = defined_flags([words[0]], monkeypatch)
        fields = {f"config.{name}" for name, _ in config_lib.flatten(config_lib.default())}
        for word in words[1:]:
            name = word.removeprefix("--").partition("=")[0]
            assert name == "help" or name in values or name in fields, word
    else:
        assert words[:1] == ["--version"] or words[1] in ("import", "export", "inspect")
