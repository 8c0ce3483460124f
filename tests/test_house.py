"""The shape of the package: which module may import which, how much a function takes, and where a task is named."""

import ast
import importlib
import inspect
import os
import pkgutil
import re
from pathlib import Path

import pytest
from tiny import ROOT

import mvlm_jax

PACKAGE = ROOT / "mvlm_jax"
# From top to bottom. A module imports from its own folder and from the lines below, never from beside it or above.
# `mvlm_jax/__init__.py` has no place here: it holds the version, and imports `load` only when it is used.
LAYERS = (
    "__main__",
    "cli",
    "report  aot  launching",
    "search",
    "inference",
    "tasks",
    "evaluation  interop  doctor",
    "objectives",
    "models  data  training",
    "configs",  # the shipped recipes
    "config",
    "config_migration  compilation_cache  compile_time  console",
    "stores",
    "allocator  files  lock  signals",
    "errors",
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names.split()}
MOST_PARAMETERS = 8

# With the recipes, to which a link leads.
FILES = [Path(folder, name) for folder, _, names in os.walk(PACKAGE, followlinks=True) for name in names]
SOURCES = {path.relative_to(ROOT): path.read_text() for path in sorted(FILES) if path.suffix == ".py"}


def folder(module: str) -> str:
    """The entry of a dotted module name in the table."""
    return module.split(".")[1]


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, module) of every import from the package in a file, inside functions too."""
    found = []
    for node in ast.walk(ast.parse(SOURCES[path])):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "mvlm_jax":
            names = [f"mvlm_jax.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
        else:
            continue
        found += [(node.lineno, name) for name in names]
    return [(line, name) for line, name in found if name.startswith(("mvlm_jax.", "."))]


def test_every_folder_has_its_place_in_the_order():
    names = {path.parts[1].removesuffix(".py") for path in SOURCES}
    assert names - {"__init__"} <= set(LEVEL)


def test_no_import_points_upwards():
    wrong = []
    for path in SOURCES:
        own = folder(".".join(path.with_suffix("").parts))
        for line, name in imports(path):
            if own == "__init__" or name == "mvlm_jax.__version__":
                continue
            if name.startswith(".") or folder(name) != own and LEVEL[folder(name)] <= LEVEL[own]:
                wrong.append(f"{path}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def own_functions(module) -> dict[str, list[str]]:
    """The parameters of every function and method that is written in a module, by its name.

    What `dataclass` and `NamedTuple` generate is not among them: a dataclass may have as many fields as it needs.
    """
    owners = [module, *(each for each in vars(module).values() if isinstance(each, type))]
    found = {}
    for owner in owners:
        if owner is not module and owner.__module__ != module.__name__:
            continue
        for member in vars(owner).values():
            function = inspect.unwrap(getattr(member, "fget", getattr(member, "__func__", member)))
            if inspect.isfunction(function) and function.__code__.co_filename == module.__file__:
                found[f"{module.__name__}.{function.__qualname__}"] = list(inspect.signature(function).parameters)
    return found


def test_no_function_takes_more_than_eight_parameters():
    found = {}
    for module in pkgutil.walk_packages(mvlm_jax.__path__, "mvlm_jax."):
        found |= own_functions(importlib.import_module(module.name))
    # A function, a jitted one, a class method and an `__init__`.
    assert found["mvlm_jax.files.write_text"] == ["path", "text", "errors"]
    assert found["mvlm_jax.training.checkpoints._fingerprints"] == ["leaves"]
    assert found["mvlm_jax.training.checkpoints.Checkpoints.for_reading"] == ["cls", "directory"]
    assert found["mvlm_jax.training.nonfinite.NonFiniteWatch.__init__"] == ["self", "limit", "example_ids"]
    assert "mvlm_jax.training.nonfinite.Skipped.__init__" not in found
    long = [f"{name} takes {len(has)}: {', '.join(has)}" for name, has in found.items() if len(has) > MOST_PARAMETERS]
    assert not long, "\n".join(long)


@pytest.mark.parametrize(
    "pattern, allowed, instead",
    [
        (r"\bmethod=[\"']", (), "give the method itself, as in `method=MaskVLM.embed_image`"),
        (r"config\.task (==|!=|in|not in)\b", ("mvlm_jax/tasks/registry.py",), "let the task's class decide"),
    ],
)
def test_a_pattern_that_the_package_must_not_contain(pattern, allowed, instead):
    lines = [
        f"{path}:{number} {line.strip()}"
        for path, text in SOURCES.items()
        if str(path) not in allowed
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not lines, f"{instead}:\n" + "\n".join(lines)


def test_every_path_in_the_description_of_the_architecture_exists():
    text = (ROOT / "docs" / "architecture.md").read_text()
    # Relative to the repository, the package or the page. A path with `<…>` is one that the reader adds.
    paths = set(re.findall(r"(?<![\w./<>-])((?:[\w.-]+/)+(?:[\w.-]+\.\w+)?|[\w-]+\.(?:py|md|toml))(?![\w/<*-])", text))
    assert len(paths) > 40
    roots = (ROOT, PACKAGE, ROOT / "docs")
    missing = sorted(path for path in paths if not any((root / path).exists() for root in roots))
    assert not missing, missing
