"""Which recipe a run came from, and what its config has otherwise."""

import importlib
import pkgutil
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

import mvlm_jax.configs
from mvlm_jax import config as config_lib


class Difference(NamedTuple):
    """A field that a config has otherwise than another one."""

    name: str
    value: Any
    other: Any


class Recipe(NamedTuple):
    """A recipe and what a config has otherwise."""

    name: str  # as `--config` takes it; empty: no recipe, the values of `default()`
    is_recorded: bool  # whether the run says that it was started with it; else it is the nearest of the shipped ones
    differences: list[Difference]

    def flags(self) -> list[str]:
        """The flags that make this config of the recipe."""
        return [f"--config.{one.name}={_as_flag(one.value)}" for one in self.differences]


def recipe_of(config: ConfigDict, *, commands: Sequence[str] = ()) -> Recipe:
    """
    Args:
      commands: that started the run, as far as they are recorded.
    """
    shipped = dict(shipped_recipes())
    for command in commands:
        named = _named(command)
        if named in shipped:
            return Recipe(named, True, differences(config, shipped[named]))
    candidates = {"": config_lib.default()} | {
        name: recipe for name, recipe in shipped.items() if recipe.task == config.task
    }
    # Of recipes that are equally near the one with the shortest name.
    return min(
        (Recipe(name, False, differences(config, recipe)) for name, recipe in candidates.items()),
        key=lambda one: (len(one.differences), len(one.name)),
    )


def differences(config: ConfigDict, other: ConfigDict) -> list[Difference]:
    here, there = dict(config_lib.flatten(config)), dict(config_lib.flatten(other))
    return [
        Difference(name, here.get(name), there.get(name))
        for name in sorted(here | there)
        if here.get(name) != there.get(name)
    ]


def shipped_recipes() -> Iterator[tuple[str, ConfigDict]]:
    """Each shipped recipe, and each of its variants that its docstring names."""
    for module in pkgutil.iter_modules(mvlm_jax.configs.__path__):
        if module.name.startswith("_"):
            continue
        recipe = importlib.import_module(f"mvlm_jax.configs.{module.name}")
        yield module.name, recipe.get_config()
        variants = re.findall(rf"\b{module.name}:(\w+)", recipe.__doc__ or "")
        for variant in dict.fromkeys(variants):
            yield f"{module.name}:{variant}", recipe.get_config(variant)


def _named(command: str) -> str:
    """What `--config` is in a command."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        match = re.fullmatch(r"--?config(?:=(.*))?", word)
        if match:
            return following if match[1] is None else match[1]
    return ""


def _as_flag(value: Any) -> str:
    """As the command line takes it."""
    if isinstance(value, list):
        return shlex.quote(repr(tuple(value)))
    return shlex.quote(str(value))
