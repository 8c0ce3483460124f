"""What is read from the code for the reference, and what is put right in a page."""

from types import SimpleNamespace

from hooks import hook
from tiny import ROOT

from mvlm_jax import config as config_lib

CONFIG = """
def default():
    config = ConfigDict()

    config.seed = 0  # what is random
    # Either of two:
    # first or second.
    config.order = "first"
    config.image = ConfigDict()  # how images are read
    config.image.size = 8
    # Not of a field.
    for part in ():
        pass


def model_size(name):
    # width: of a token
    # cross.width: of the cross encoders
    return {}
"""


def test_a_field_says_what_the_comments_above_and_beside_it_say():
    docs = hook("configuration").field_docs(CONFIG)
    assert docs["seed"] == "what is random"
    assert docs["order"] == "Either of two: first or second."
    assert docs["image"] == "how images are read"
    assert docs["image.size"] == ""
    assert (docs["image_encoder.width"], docs["cross.width"]) == ("of a token", "of the cross encoders")


def test_every_field_of_the_config_has_a_comment():
    docs = hook("configuration").field_docs((ROOT / "mvlm_jax" / "config.py").read_text())
    assert [name for name, _ in config_lib.flatten(config_lib.default()) if not docs.get(name)] == []


def test_a_field_has_its_type_default_limits_and_when_it_may_change():
    row = hook("configuration").row
    assert row("mesh.data", -1, "parts of the batch") == (
        "| `mesh.data`{ #mesh.data } | int, `-1` | parts of the batch |  | resume, evaluation |"
    )
    assert "| `l1`, `l2` |  |" in row("loss.pixels", "l1", "a | b") and r"a \| b" in row("loss.pixels", "l1", "a | b")


def test_a_flag_has_its_kind_default_and_whether_it_is_required():
    commands = hook("commands")
    lines = list(commands.table(commands.parser_of(["search"])))
    [top] = [line for line in lines if line.startswith("| `--top`")]
    assert top == "| `--top` | a positive integer | `10` | Images for each query. |"
    [model] = [line for line in lines if line.startswith("| `--model`")]
    assert "| a path | required |" in model
    assert any(line.startswith("| `--log_prefix` | ") for line in lines)
    assert commands.paragraphs("Trains.\n\nExample:\n  mvlm train <x>") == (
        ["Trains.", "", "Example:", "", "    mvlm train <x>", ""]
    )


def test_a_recipe_has_its_commands_links_and_the_fields_that_it_changes():
    recipes = hook("recipes")
    assert recipes.paragraphs("Small.\n\nmvlm train --a\n  --b\n\nSee docs/launch/gke.md.\n") == (
        "Small.\n\n    mvlm train --a\n      --b\n\nSee [launch/gke.md](../launch/gke.md)."
    )
    lines = "\n".join(recipes.described()).partition("## demo\n")[2].partition("\n## ")[0].splitlines()
    assert "| [`batch_size`](configuration.md#batch_size) | `512` | `64` |" in lines
    assert not any("`seed`" in line for line in lines)


def test_links_that_leave_the_documentation_become_text_and_bars_are_bars():
    page = SimpleNamespace(file=SimpleNamespace(src_uri="launch/index.md"))
    config = SimpleNamespace(docs_dir=str(ROOT / "docs"))
    text = "see [`make`](../../Makefile), [here](tpu.md#data) and [gone](../../no_such_file)\n| `a \\| b` | c \\| d |"
    shown = hook("github_markdown").on_page_markdown(text, page=page, config=config)
    assert shown == "see `make`, [here](tpu.md#data) and [gone](../../no_such_file)\n| `a | b` | c \\| d |"
