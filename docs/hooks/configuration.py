"""Fills the page of the configuration from mvlm_jax/config.py: each field with its type, default and comment."""

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import Any

from mvlm_jax import config as config_lib
from mvlm_jax.config_migration import PARTS

PAGE, MARK = "reference/configuration.md", "<!-- fields -->"
SIZE = re.compile(r"([\w.]+): (.*)")  # a comment in `model_size`: a name, and what it says


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str | None:
    return markdown.replace(MARK, tables()) if page.file.src_uri == PAGE else None


def tables() -> str:
    """A table for each section, those of the whole run first."""
    text, docs = [], field_docs(Path(config_lib.__file__).read_text())
    sections: dict[str, list[tuple[str, Any]]] = {}
    for name, value in in_declared_order(docs):
        sections.setdefault(name.rpartition(".")[0], []).append((name, value))
    for section, fields in sections.items():
        heading = f"`config.{section}`" if section else "The whole run"
        text += [f"## {heading}", "", *([sentence(docs[section]), ""] if docs.get(section) else [])]
        text += ["| field | type, default | what it is | values | may change |", "|---|---|---|---|---|"]
        text += [row(name, value, docs[name]) for name, value in fields]
        text.append("")
    return "\n".join(text)


def in_declared_order(docs: dict[str, str]) -> list[tuple[str, Any]]:
    """(dotted name, value) of every field; sections and fields as config.py has them."""
    order = {name: place for place, name in enumerate(docs)}
    fields = config_lib.flatten(config_lib.default())
    return sorted(fields, key=lambda field: (order.get(field[0].rpartition(".")[0], -1), order[field[0]]))


def row(name: str, value: Any, doc: str) -> str:
    default = str(tuple(value)) if isinstance(value, list) else repr(value) if value != "" else '""'
    cells = [
        f"`{name}`{{ #{name} }}",
        f"{type_of(value)}, `{default}`",
        escaped(doc),
        escaped(legal(name)),
        ", ".join(changes(name)),
    ]
    return f"| {' | '.join(cells)} |"


def type_of(value: Any) -> str:
    return "tuple" if isinstance(value, list) else type(value).__name__


def legal(name: str) -> str:
    """What `validate` of config.py demands of the field alone."""
    if name in config_lib.CHOICES:
        return ", ".join(f"`{value}`" for value in config_lib.CHOICES[name])
    return "; ".join(rule for names, _, rule in config_lib.LIMITS if name in names.split())


def changes(name: str) -> list[str]:
    """When another value than that of the first start is accepted."""
    when = {"resume": config_lib.CHANGEABLE_ON_RESUME, "evaluation": config_lib.CHANGEABLE_IN_EVALUATION}
    return [what for what, prefixes in when.items() if name.startswith(prefixes)]


def field_docs(source: str) -> dict[str, str]:
    """The comment above and beside each field and section of `default`, by dotted name, in the order of the file.

    Fields that `model_size` declares have theirs there, as "name: what it is"; a name with its part wins.
    """
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    comments, alone = comments_of(source)
    docs: dict[str, str] = {}
    for statement in functions["default"].body:
        match statement:
            case ast.Assign(targets=[ast.Attribute() as target]) if name := dotted(target):
                line, above = statement.lineno - 1, []
                while line in alone:
                    above.insert(0, comments[line])
                    line -= 1
                beside = [comments[at] for at in (statement.end_lineno,) if at in comments]
                docs[name] = " ".join(above + beside)
    sizes = functions["model_size"]
    lines = [comments[at] for at in sorted(alone) if sizes.lineno < at <= (sizes.end_lineno or 0)]
    stated = dict(found.groups() for found in map(SIZE.fullmatch, lines) if found)
    for part, values in config_lib.model_size("base").items():
        for name in values:
            docs[f"{part}.{name}"] = stated.get(f"{part}.{name}") or stated.get(name, "")
    assert set(PARTS) <= {name.partition(".")[0] for name in docs}
    return docs


def comments_of(source: str) -> tuple[dict[int, str], set[int]]:
    """The text of the comment on each line, and the lines that hold nothing else."""
    comments, alone = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ").strip()
            if token.line.lstrip().startswith("#"):
                alone.add(token.start[0])
    return comments, {line for line in alone if not comments[line].startswith("fmt:")}


def dotted(target: ast.expr) -> str:
    """The name of a field of `config`; empty for another target."""
    names = []
    while isinstance(target, ast.Attribute):
        names.insert(0, target.attr)
        target = target.value
    return ".".join(names) if isinstance(target, ast.Name) and target.id == "config" else ""


def sentence(text: str) -> str:
    return escaped(text[:1].upper() + text[1:]).rstrip(".") + "."


def escaped(text: str) -> str:
    """As it is read, outside code too."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else _plain(part) for part in parts)


def _plain(text: str) -> str:
    return re.sub(r"([|*\[_])", r"\\\1", text).replace("<", "&lt;")
