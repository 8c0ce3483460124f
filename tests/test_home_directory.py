"""A ~ at the start of a flag's path: a shell leaves it there, and every command reads it as the home directory."""

import pytest

from mvlm_jax import cli
from mvlm_jax.cli import commands

RECIPE = """
from mvlm_jax import config

def get_config():
    recipe = config.default()
    recipe.seed = 77
    return recipe
"""
CONFIG, WORKDIR, OUTPUT = "--config=~/recipe.py", "--workdir=~/runs/a", "--output=~/out"
PATHS = [  # a command with what it requires, and the flag that is looked at
    (["train", CONFIG, WORKDIR], "workdir"),
    (["evaluate", CONFIG, WORKDIR], "workdir"),
    *(
        (["evaluate", CONFIG, WORKDIR, f"--{flag}=~/{flag}"], flag)
        for flag in ("classify", "templates", "class_names", "submission")
    ),
    (["prepare", "--preview", WORKDIR], "workdir"),
    (["weights", "import", CONFIG, OUTPUT], "output"),
    (["weights", "export", WORKDIR, OUTPUT], "workdir"),
    (["weights", "export", WORKDIR, OUTPUT], "output"),
    (["weights", "inspect", "--source=~/model.safetensors"], "source"),
    (["report", CONFIG, WORKDIR], "workdir"),
    (["report", CONFIG, WORKDIR, "--output=~/page.html"], "output"),
    (["report", CONFIG, WORKDIR, "--compare=~/other"], "compare"),
    (["compile", CONFIG, "--topology=v5e:2x2", "--json=~/figures.json"], "json"),
    *(
        (["search", "--model=~/model", "--images=~/images", "--index=~/index", "--page=~/page", "--image=~/dog"], flag)
        for flag in ("model", "images", "index", "page", "image")
    ),
]
WITH_RECIPE = [
    ["train", WORKDIR],
    ["evaluate", WORKDIR],
    ["prepare", "--check"],
    ["weights", "import"],
    ["compile", "--topology=v5e:2x2"],
]


@pytest.fixture
def parsed(tmp_path, monkeypatch):
    """The flags of a command, as it would be run with."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "recipe.py").write_text(RECIPE)
    taken, run = [], commands.run

    def recorded(values, *texts):
        taken.append(values)

    monkeypatch.setattr(commands, "run", lambda *, main, **given: run(main=recorded, **given))

    def parse(argv):
        assert cli.main(argv) == 0
        return taken.pop()

    return parse


@pytest.mark.parametrize("argv, flag", PATHS, ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_a_path_may_begin_at_the_home_directory(argv, flag, parsed, tmp_path):
    [written] = [word.partition("~/")[2] for word in argv if word.startswith(f"--{flag}=")]
    assert parsed(argv)[flag].value == tmp_path / written


@pytest.mark.parametrize("argv", WITH_RECIPE, ids=" ".join)
def test_a_recipe_may_lie_in_the_home_directory(argv, parsed):
    assert parsed([*argv, CONFIG]).config.seed == 77


def test_every_flag_that_is_a_path_is_looked_at(parsed):
    for command in sorted({tuple(argv[: 2 if argv[0] == "weights" else 1]) for argv, _ in PATHS}):
        ours = [(argv, flag) for argv, flag in PATHS if tuple(argv[: len(command)]) == command]
        values = parsed(ours[0][0])
        paths = {name for name in values if values[name].parser.syntactic_help == "a path"}
        assert paths == {flag for _, flag in ours}, command


@pytest.mark.parametrize(
    "given, message",
    [
        ("~nobody_here/a", "begins with ~nobody_here, which is no home directory"),
        ("gs://a", "names no folder in a bucket"),
    ],
)
@pytest.mark.usefixtures("parsed")
@pytest.mark.parametrize("command", [["weights", "inspect", "--source={}"], ["train", CONFIG, "--workdir={}"]])
def test_a_path_that_is_none_is_one_line_with_its_flag(command, given, message, capsys):
    assert cli.main([word.format(given) for word in command]) == 2
    error = capsys.readouterr().err.strip()
    assert command[-1].format(given) in error and message in error and "\n" not in error
