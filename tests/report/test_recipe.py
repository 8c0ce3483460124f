"""The recipe that a run came from, as a command that makes its config again."""

import shlex

from absl import flags
from tiny import SMALLER

from mvlm_jax import config as config_lib
from mvlm_jax.cli import commands
from mvlm_jax.configs import demo, flickr8k
from mvlm_jax.report.recipe import recipe_of


def test_the_flags_of_a_recipe_make_the_config_again():
    config = demo.get_config()
    config.update_from_flattened_dict(
        SMALLER | {"data.data_dir": "a b/it's", "optimizer.frozen": ("image_encoder/.*",)}
    )
    config.eval.sweep = (1, 2)
    recipe = recipe_of(config)
    assert (recipe.name, recipe.is_recorded) == ("demo", False)
    words = shlex.split(" ".join([f"--config={recipe.name}", *recipe.flags()]))
    values = flags.FlagValues()
    commands.define_config(values, words)
    assert values(["mvlm", *words]) == ["mvlm"]
    assert config_lib.to_json(values.config) == config_lib.to_json(config)


def test_a_recipe_that_the_command_names_is_taken_however_far_it_is():
    config = demo.get_config()
    named = recipe_of(config, commands=["mvlm train --config=flickr8k:small --workdir=x"])
    assert (named.name, named.is_recorded) == ("flickr8k:small", True)
    assert ("steps", 600) in [(one.name, one.value) for one in named.differences]
    # A command without a recipe that there is tells nothing.
    assert not recipe_of(config, commands=["demo.py --workdir=runs/demo", "mvlm train --config=mine.py 'x"]).is_recorded


def test_the_nearest_recipe_may_be_a_variant_or_none():
    assert recipe_of(flickr8k.get_config("small"))[:1] == ("flickr8k:small",)
    assert recipe_of(config_lib.default()).differences == []
    assert recipe_of(config_lib.default()).name == ""
