"""Fills the page of the commands from their own parsers: what `--help` says, and the type and default of each flag."""

import contextlib
import importlib
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

from absl import flags

from mvlm_jax import cli
from mvlm_jax.cli import commands, launch, weights

PAGE, MARK = "reference/commands.md", "<!-- commands -->"
# Those that have commands of their own in the place of flags; one platform and verb stands for what all share.
NESTED = {
    "weights": [(action,) for action in weights.ACTIONS],
    "launch": [(platform, "create") for platform in launch.PLATFORMS],
}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str | None:
    return markdown.replace(MARK, "\n".join(described())) if page.file.src_uri == PAGE else None


def described() -> Iterator[str]:
    """The lines of the page."""
    for command in cli.COMMANDS:
        yield from [f"## mvlm {command}", "", *paragraphs(importlib.import_module(f"mvlm_jax.cli.{command}").__doc__)]
        for words in NESTED.get(command, [()]):
            if words:
                yield from [f"### mvlm {' '.join([command, *words])}", ""]
            if command == "launch":
                verbs = importlib.import_module(f"mvlm_jax.launching.{words[0]}").VERBS
                others = ", ".join(f"`{verb}`" for verb in verbs if verb != "create")
                yield from [f"{others} take the same flags, without `--config` but for `run`.", ""]
            yield from table(parser_of([command, *words]))


def parser_of(words: Sequence[str]) -> flags.FlagValues:
    """The flags of a command, as the command itself defines them for `--help`."""
    found, run = [], commands.run

    def recorded(*, define_flags, **others):
        def define(values, argv):
            define_flags(values, argv)
            found.append(values)

        return run(define_flags=define, **others)

    with mock.patch.object(commands, "run", recorded), contextlib.redirect_stdout(io.StringIO()):
        assert cli.main([*words, "--help"]) == 0
    [values] = found
    return values


def table(values: flags.FlagValues) -> Iterator[str]:
    yield from ["| flag | value | default | what it is |", "|---|---|---|---|"]
    for name in sorted(values):
        flag = values[name]
        needed = any("must have a value" in (validator.message or "") for validator in flag.validators)
        default = "required" if needed else "" if flag.default in (None, "", []) else f"`{flag.default}`"
        kind = flag.parser.syntactic_help or flag.flag_type()
        cells = [f"`--{name}`", kind, default, escaped(" ".join(flag.help.split()))]
        yield f"| {' | '.join(cells)} |"
    yield ""


def paragraphs(text: str | None) -> list[str]:
    """A docstring as Markdown: what is indented in it is to be copied."""
    lines: list[str] = []
    for line in (text or "").strip().splitlines():
        indented = line.startswith("  ")
        if indented and lines and lines[-1] and not lines[-1].startswith("    "):
            lines.append("")
        lines.append(f"    {line.strip()}" if indented else escaped(line))
    return [*lines, ""]


def escaped(text: str) -> str:
    """As it is read, outside code."""
    return re.sub(r"([|*\[_])", r"\\\1", text).replace("<", "&lt;")
