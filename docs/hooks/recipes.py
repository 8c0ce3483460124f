"""Fills the page of the recipes from configs/: what each says of itself, and the fields that it changes."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mvlm_jax import config as config_lib
from mvlm_jax import configs

PAGE, MARK = "reference/recipes.md", "<!-- recipes -->"
NAMED_PAGE = re.compile(r"\bdocs/([\w/]+\.md)\b")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str | None:
    return markdown.replace(MARK, "\n".join(described())) if page.file.src_uri == PAGE else None


def described() -> Iterator[str]:
    """The lines of the page."""
    for name in names():
        module = importlib.import_module(f"mvlm_jax.configs.{name}")
        yield from [f"## {name}", "", paragraphs(module.__doc__ or ""), ""]
        yield from ["| field | default | here |", "|---|---|---|"]
        default = dict(config_lib.flatten(config_lib.default()))
        for field, value in config_lib.flatten(module.get_config()):
            if value != default[field]:
                yield f"| [`{field}`](configuration.md#{field}) | `{shown(default[field])}` | `{shown(value)}` |"
        yield ""


def names() -> list[str]:
    return sorted(path.stem for path in Path(configs.__file__).parent.glob("[!_]*.py"))


def paragraphs(text: str) -> str:
    """A docstring as Markdown: paragraphs of commands are to be copied, and pages that are named are linked."""
    parts = text.strip().split("\n\n")
    return "\n\n".join(
        re.sub("^", "    ", part, flags=re.MULTILINE)
        if part.startswith("mvlm ")
        else NAMED_PAGE.sub(r"[\1](../\1)", part).replace("<", "&lt;")
        for part in parts
    )


def shown(value: Any) -> str:
    return str(tuple(value)) if isinstance(value, list) else repr(value).replace("|", "\\|")
