import pytest
from tiny import recipe

from mvlm_jax import config as config_lib
from mvlm_jax.errors import UserError


@pytest.mark.parametrize(
    "name, arguments",
    [("demo", ()), ("flickr8k", ()), ("flickr8k", ("small",)), ("pretrain_4m", ()), ("pretrain_4m", ("large",))],
)
def test_every_recipe_is_valid_and_survives_json(name, arguments):
    config = recipe(name, *arguments)
    config_lib.validate(config)
    again = config_lib.from_json(config_lib.to_json(config))
    assert config_lib.differences(config, again, changeable=()) == ""


def test_the_paper_recipe_has_the_papers_numbers():
    config = recipe("pretrain_4m")
    assert (config.batch_size, config.image.size, config.image.patch) == (512, 224, 16)
    assert (config.model.width, config.model.heads, config.model.layers) == (768, 12, 12)
    assert (config.model.cross_layers, config.model.decoder_layers) == (3, 3)
    assert (config.mask.image_ratio, config.mask.text_ratio, config.matching.group) == (0.6, 0.3, 32)
    optimizer = config.optimizer
    assert (optimizer.peak, optimizer.final, optimizer.encoder_peak) == (3e-4, 3e-5, 1e-5)
    assert optimizer.weight_decay == 0.05
    assert optimizer.warmup_steps * 10 == config.steps


def test_unknown_fields_and_wrong_types_are_refused():
    config = config_lib.default()
    with pytest.raises(AttributeError):
        config.stepz = 1
    with pytest.raises(TypeError):
        config.steps = "many"


@pytest.mark.parametrize(("name", "value"), [("fraction", 0.0), ("fraction", 1.5), ("fraction_seed", -1)])
def test_part_of_the_data_that_there_is_not_is_refused(name, value):
    config = config_lib.default()
    config.data[name] = value
    with pytest.raises(UserError, match=f"^config.data.{name}={value} must lie "):
        config_lib.validate(config)


def test_a_config_file_of_another_version_is_refused():
    text = config_lib.to_json(config_lib.default()).replace('"seed"', '"sead"')
    with pytest.raises(UserError, match="sead"):
        config_lib.from_json(text)


def test_where_a_run_may_go_on_with_other_values():
    old, new = config_lib.default(), config_lib.default()
    new.mesh.fsdp, new.log_every, new.data.workers = 2, 5, 3
    assert config_lib.differences(old, new, changeable=config_lib.CHANGEABLE_ON_RESUME) == ""
    new.seed = 9
    found = config_lib.differences(old, new, changeable=config_lib.CHANGEABLE_ON_RESUME)
    assert found == "config.seed is 0 there and 9 here"
