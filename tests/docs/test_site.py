"""The documentation as a site: it builds without a network and without a warning, and asks for none when it is read."""

import logging
import re
import socket
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from tiny import ROOT

from mvlm_jax import cli
from mvlm_jax import config as config_lib
from mvlm_jax.tasks.registry import TASKS

FETCHED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder that a strict build writes; a warning, such as a broken link, ends it."""

    def refused(*_, **__):
        raise AssertionError("the build reached for the network")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, refused)
        patch.setattr(socket, "getaddrinfo", refused)
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        logging.getLogger("mkdocs").setLevel(logging.WARNING)  # a quieter one would not count warnings
        folder = tmp_path_factory.mktemp("site")
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
        assert config.strict
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
        config.plugins.on_shutdown()
    return folder


def ids(page: Path) -> set[str]:
    return set(re.findall(r'\bid="([^"]+)"', page.read_text()))


def test_every_page_of_the_documentation_is_there(site):
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert len(pages) > 25 and all((site / page).is_file() for page in pages)
    assert not (site / "hooks").exists()


def test_the_reference_holds_every_field_flag_and_method(site):
    fields = {name for name, _ in config_lib.flatten(config_lib.default())}
    assert fields <= ids(site / "reference" / "configuration.html")
    recipes = {file.stem for file in (ROOT / "configs").glob("[!_]*.py")}
    assert recipes <= ids(site / "reference" / "recipes.html")
    commands = (site / "reference" / "commands.html").read_text()
    assert {f"mvlm-{command}" for command in cli.COMMANDS} <= ids(site / "reference" / "commands.html")
    assert all(f"<code>--{flag}</code>" in commands for flag in ("stopped_status", "log_prefix", "push", "classify"))
    verbs = {verb for task in TASKS.values() for verb in task.verbs}
    named = {f"mvlm_jax.inference.Inference.{verb}" for verb in verbs}
    named |= {"mvlm_jax.load", "mvlm_jax.errors.UserError", "mvlm_jax.inference.ranked.Hit"}
    assert named <= ids(site / "reference" / "api.html")


def test_a_reader_of_the_site_needs_no_network(site):
    fetched = {path.name: FETCHED.findall(path.read_text()) for path in site.rglob("*.html")}
    assert len(fetched) > 25 and not any(fetched.values()), fetched
    # The theme fetches its interpreter of diagrams for a page that has one, and the facts of a linked repository.
    text = "".join(path.read_text() for path in site.rglob("*.html"))
    assert 'class="mermaid"' not in text and "md-source" not in text
