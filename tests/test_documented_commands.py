"""Every `mvlm` command in the documentation and the launchers names a command, flags and fields that there are."""

import ast
import json
import re
import shlex

import pytest
from absl import flags
from launchers import recorded
from tiny import ROOT

from mvlm_jax import cli
from mvlm_jax import config as config_lib
from mvlm_jax.cli import commands, launch, weights
from mvlm_jax.tasks import registry

TEXTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("configs/*.py")),
         *(ROOT / "mvlm_jax" / "cli" / f"{command}.py" for command in cli.COMMANDS)]  # fmt: skip
BLOCK = re.compile(r"^ *((?:mvlm|python3? -m mvlm_jax )(?:[^`\\\n]|\\\n)*)", re.MULTILINE)
INLINE = re.compile(r"`((?:mvlm|python -m mvlm_jax )[^`]*)`")
LAUNCHED = re.compile(r"(?:\.venv/bin/mvlm |-m mvlm_jax )(.*)")
MAKE = re.compile(r"(?:^ {4}|`)make (?:[A-Z_]+=\S+ )*([a-z-]+)", re.MULTILINE)
PYTEST = re.compile(r"-m pytest ([\w/.]+)")
NOTEBOOKS = sorted((ROOT / "launch" / "colab").glob("*.ipynb"))
LAUNCHERS = {"flickr8k_gpu.sh": ["FLICKR8K"]}
PLACEHOLDER = "…"  # in place of a path, or of all other flags


def documented(pattern):
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
    """The flags of a command, before any is parsed, and the words that they are parsed from."""
    defined = []

    def run(*, define_flags, argv, **_):
        values = flags.FlagValues()
        define_flags(values, ["mvlm", *argv])
        defined.append((values, argv))
        return 0

    monkeypatch.setattr(commands, "run", run)
    assert cli.main(words) == 0
    [both] = defined
    return both


def test_there_are_commands_in_the_documentation():
    assert len(list(documented(BLOCK))) > 40 and len(list(documented(INLINE))) > 10


@pytest.mark.parametrize("words", list(documented(BLOCK)))
def test_a_command_to_copy_is_parsed(words, monkeypatch):
    # A block whose recipe is left open is of a downstream task.
    parse([word.replace(f"--config={PLACEHOLDER}", "--config=finetune_vqa") for word in words], monkeypatch)


def parse(words, monkeypatch):
    """As a command that is run from the root of the repository."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(commands, "read_config", lambda directory: config_lib.default())
    values, own = defined_flags(words, monkeypatch)
    assert values(["mvlm", *own]) == ["mvlm"] or words[0] == "search"  # which takes texts; else nothing is left over
    if "config" in values and values.config:
        registry.validate(values.config)


@pytest.mark.parametrize("words", list(documented(INLINE)))
def test_a_command_within_a_sentence_names_flags_that_there_are(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    if words[0] == "launch" and words[1:]:
        assert words[1] in launch.PLATFORMS and set(words[2:3]) <= set(launch.VERBS)
    elif words[0] in cli.COMMANDS and words[0] not in ("weights", "launch"):
        values, _ = defined_flags([words[0], "--help"], monkeypatch)
        fields = {f"config.{name}" for name, _ in config_lib.flatten(config_lib.default())}
        for word in words[1:]:
            name = word.removeprefix("--").partition("=")[0]
            assert name == "help" or name in values or name in fields, word
    else:
        assert (
            words in (["--help"], ["--version"], ["launch"])
            or words[0] == "weights"
            and set(words[1:2]) <= set(weights.ACTIONS)
        )


@pytest.mark.parametrize("script, arguments", LAUNCHERS.items())
def test_the_commands_of_a_launcher_are_parsed(script, arguments, tmp_path, monkeypatch):
    found = LAUNCHED.findall(recorded(script, arguments, directory=tmp_path))
    assert len(found) == 2
    for command in found:
        parse(shlex.split(command), monkeypatch)


def test_every_launcher_with_a_command_is_tried():
    assert {path.name for path in ROOT.glob("launch/*.sh") if LAUNCHED.search(path.read_text())} == set(LAUNCHERS)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_the_commands_of_a_notebook_are_parsed(file, tmp_path, monkeypatch):
    cells = [cell for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "code"]
    [parameters] = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    # What the cells before a command have set.
    given = {"folder": tmp_path, "PAGE": str(tmp_path / "page.html"), "EXAMPLE": tmp_path / "0.png"}
    exec("".join(parameters["source"]), given)
    called = [
        node
        for cell in cells[1:]
        for node in ast.walk(ast.parse("".join(cell["source"])))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "mvlm"
    ]
    assert called
    for call in called:
        # `fields` become flags of a config that the notebook's reader changes.
        words = eval(ast.unparse(ast.List(call.args, ast.Load())), given)
        parse([str(word) for word in words], monkeypatch)


def test_what_make_and_pytest_are_given_in_the_documentation_is_there():
    texts = [path.read_text() for path in TEXTS if path.suffix == ".md"]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for text in texts for name in MAKE.findall(text)}
    assert {"demo", "test"} <= named <= targets
    paths = [path for text in texts for path in PYTEST.findall(text)]
    assert paths and all((ROOT / path).exists() for path in paths)
