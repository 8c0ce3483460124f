"""What names a page of the documentation from outside: code, recipes, launchers and the pages beside the README."""

import re

from tiny import ROOT

FOLDERS = ("mvlm_jax", "configs", "tests", "benchmarks", "launch")
NAMED = re.compile(r"\bdocs/[\w/]+\.(?:md|png)\b")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#([\w-]+))?\)")


def anchors(text: str) -> set[str]:
    """Of the headings of a page, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def test_the_pages_that_code_names_are_there():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".sh")]
    named = {name for path in files for name in NAMED.findall(path.read_text())}
    assert "docs/launch/gke.md" in named
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_the_links_of_the_pages_beside_the_readme_lead_somewhere():
    links = [(path.name, *found) for path in ROOT.glob("*.md") for found in LINK.findall(path.read_text())]
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link[1]).exists()] == []
    broken = [link for link in links if link[2] and link[2] not in anchors((ROOT / link[1]).read_text())]
    assert broken == []


def test_a_heading_with_code_and_marks_has_the_anchor_that_links_use():
    assert anchors("# One\n## Drawn shapes: `make demo`\n") == {"one", "drawn-shapes-make-demo"}
