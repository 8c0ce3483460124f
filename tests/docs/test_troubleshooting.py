"""Every line that the page of errors quotes is one that the program has."""

import ast
import re

import pytest
from tiny import ROOT

QUOTED = re.compile(r"^```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
LEAST = 20  # letters of a message, without what is put into it, that tell it from others


def message(node: ast.expr) -> str | None:
    """A pattern of what a string in the code becomes; None for another expression."""
    match node:
        case ast.Constant(value=str(text)):
            return re.sub(r"%(?:[sdr]|\.\d[fg])", ".+", re.escape(text))
        case ast.JoinedStr(values=parts):
            return "".join(re.escape(part.value) if isinstance(part, ast.Constant) else ".*" for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right) if message(left) is not None:
            return f"{message(left)}{message(right) or '.*'}"
    return None


@pytest.fixture(scope="module")
def patterns():
    found = set()
    for path in (ROOT / "mvlm_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            text = message(node) if isinstance(node, ast.expr) else None
            if text is not None and len(re.sub(r"\.[*+]|\\", "", text)) >= LEAST:
                found.add(text)
    return [re.compile(text) for text in found]


LINES = QUOTED.findall((ROOT / "docs" / "troubleshooting.md").read_text())


def test_the_page_quotes_lines():
    assert len(LINES) > 30


@pytest.mark.parametrize("line", [line.strip() for line in LINES])
def test_a_quoted_line_is_one_of_the_program(line, patterns):
    assert any(pattern.fullmatch(line) for pattern in patterns)


def test_a_line_that_the_program_does_not_have_is_found_out(patterns):
    assert not any(pattern.fullmatch("config.batch_size=100 must be twice as large") for pattern in patterns)
