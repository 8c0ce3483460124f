"""Encoders of other widths, depths and heads than each other and than what is built on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMALLER, recipe, sizes, tiny_model

from mvlm_jax import config as config_lib
from mvlm_jax.aot.ahead import compile_step, describe_step
from mvlm_jax.aot.costs import matrix_flops
from mvlm_jax.interop.parameters import flat
from mvlm_jax.models.downstream import AnsweringModel
from mvlm_jax.models.flops import fused_step_flops, pretraining_step_flops
from mvlm_jax.models.parameter_rules import DECAY_RULES, OPTIMIZER_RULES
from mvlm_jax.tasks import registry
from mvlm_jax.tasks.model import maskvlm_fields
from mvlm_jax.tasks.registry import describe_task
from mvlm_jax.training.mesh import make_mesh, shard_batch
from mvlm_jax.training.program import make_program
from mvlm_jax.training.rules import match_rules

DINO_SMALL = {"width": 384, "heads": 6, "layers": 12}
MINILM = {"width": 384, "heads": 12, "layers": 6}
VIT_BASE = {"width": 768, "heads": 12, "layers": 12}
TINY = {
    "image_encoder": {"width": 24, "heads": 2, "layers": 2},
    "text_encoder": {"width": 8, "heads": 4, "layers": 1},
}


def published(*, image, text, cross):
    config = config_lib.default()
    config.text_encoder.kind, config.text_encoder.vocab_size = "bert", 30522
    config.image_encoder.update(image)
    config.text_encoder.update(text)
    config.cross.update(cross)
    config.batch_size = 64
    registry.validate(config)
    return config


def step_shapes(config):
    """Of the parameters after a step, which is traced as a whole: gradient, optimizer, rules."""
    return {path: leaf.shape for path, leaf in flat(traced(config).params).items()}


def traced(config):
    step = describe_step(config, jax.devices()[:1])
    with jax.set_mesh(step.mesh):
        return jax.eval_shape(step.program.step, step.program.state, step.batch)[0]


@pytest.mark.slow
def test_two_published_encoders_of_one_width_build_as_they_are():
    shapes = step_shapes(published(image=DINO_SMALL, text=MINILM, cross={"width": 384, "heads": 6}))
    assert shapes["image_encoder/layers/block/attention/query/kernel"] == (12, 384, 6, 64)
    assert shapes["text_encoder/layers/block/attention/query/kernel"] == (6, 384, 12, 32)
    assert shapes["text_cross_encoder/block_2/cross_attention/key/kernel"] == (384, 6, 64)
    assert not any("to_cross" in path for path in shapes)


@pytest.mark.slow
def test_a_dense_layer_leads_to_the_width_of_the_cross_encoders_only_where_it_differs():
    config = published(image=VIT_BASE, text=MINILM, cross={"width": 768, "heads": 12})
    params = traced(config).params
    shapes = {path: leaf.shape for path, leaf in flat(params).items()}
    assert shapes["image_encoder/layers/block/mlp/up/kernel"] == (12, 768, 3072)
    assert shapes["text_encoder/layers/block/mlp/up/kernel"] == (6, 384, 1536)
    assert {path: shape for path, shape in shapes.items() if "to_cross" in path} == {
        "text_to_cross/kernel": (384, 768),
        "text_to_cross/bias": (768,),
    }
    assert shapes["token_classifier/kernel"] == (768, 30522)
    groups, decays = (flat(match_rules(rules, params)) for rules in (OPTIMIZER_RULES, DECAY_RULES))
    assert (groups["text_to_cross/kernel"], groups["text_to_cross/bias"]) == ("rest", "rest")
    assert (decays["text_to_cross/kernel"], decays["text_to_cross/bias"]) == (True, False)


@pytest.mark.slow
def test_tied_words_and_answers_are_of_the_text_encoders_width():
    config = published(image=VIT_BASE, text=MINILM, cross={"width": 768, "heads": 12})
    config.task, config.model.token_head = "vqa", "tied"
    shapes = step_shapes(config)
    assert shapes["token_classifier/dense/kernel"] == (768, 384)
    assert shapes["answer_decoder/token_projection/kernel"] == (384, 768)
    assert shapes["answer_decoder/position_embedding"] == (9, 768)


def test_features_of_both_encoders_have_the_width_of_the_cross_encoders():
    model = tiny_model(pad_id=0, **{f"{part}__width": own["width"] for part, own in TINY.items()})
    image, text = jnp.ones((2, 32, 32, 3), jnp.uint8), jnp.array([[1, 5, 6, 2, 0]] * 2)
    params = jax.jit(model.init)(jax.random.key(0), image, text)["params"]
    bound = model.bind({"params": params})
    patches = bound.patches(image)
    v, w = bound.encode_image(patches, jnp.zeros((2, 3, 16), bool)), bound.encode_text(text)
    assert (v.shape, w.shape, model.width) == ((2, 3, 17, 16), (2, 5, 16), 16)
    plain = bound.image_encoder(patches, jnp.zeros((2, 3, 16), bool))
    dense = params["image_to_cross"]
    np.testing.assert_allclose(v, plain @ dense["kernel"] + dense["bias"], atol=1e-5)


# Multiply-adds by hand, for 4 pairs, 17 image tokens of 192 pixels, 8 text tokens, 2 layers, ratio 2 and a cross width
# of 16. A layer takes 8 S D D + 2 S S D; an image is embedded once and encoded twice, a text is encoded twice. A
# backward pass takes twice as much; that of the patch embedding as much, since pixels need no gradient.
PATCHES_OF_24, PATCHES_OF_16 = 16 * 192 * 24, 16 * 192 * 16
IMAGE_OF_24, IMAGE_OF_16 = 2 * (2 * 92_208 + 17 * 24 * 16), 2 * 2 * 44_064
TEXT_OF_8, TEXT_OF_16 = 2 * 5_120 + 8 * 8 * 16, 2 * 18_432
OPTIONS = {"batch_size": 4, "max_length": 8}


LOSSES = ("mim", "mlm", "itc", "itm")


def flops_of(losses=LOSSES, *, patches_trained=True, **fields):
    model = tiny_model(pad_id=0, text_encoder__vocab_size=40, **fields)
    options = OPTIONS | {"patches_trained": patches_trained}
    return pretraining_step_flops(model, losses=losses, masked_patches=12, text_slots=2, **options)


def test_only_losses_that_are_computed_are_counted():
    encoders = flops_of(())
    # One view of 17 image tokens, embedded from 16 patches, and one of 8 text tokens.
    assert encoders == 4 * 2 * (2 * PATCHES_OF_16 + 3 * (2 * 44_064 + TEXT_OF_16))
    # 16 -> 256 numbers for an image and for a text, and 4 products of 256 for each pair.
    assert flops_of(("itc",)) - encoders == 3 * 4 * 2 * (2 * 16 * 256 + 4 * 256)
    whole = 4 * 2 * (2 * PATCHES_OF_16 + 3 * 2 * (2 * 44_064 + TEXT_OF_16))
    assert flops_of(LOSSES) - flops_of(("mim", "mlm")) == flops_of(("itc", "itm")) - encoders
    assert flops_of(("mim",)) > whole and flops_of(("mlm",)) > whole


def test_operations_are_counted_by_the_width_of_each_part():
    plain = flops_of()
    wider = 4 * 2 * (2 * (PATCHES_OF_24 - PATCHES_OF_16) + 3 * (IMAGE_OF_24 - IMAGE_OF_16))
    assert flops_of(image_encoder__width=24) - plain == wider == 5_328_384
    assert plain - flops_of(text_encoder__width=8) == 3 * 4 * 2 * 2 * (TEXT_OF_16 - TEXT_OF_8) == 1_228_800
    # Two masked words: 2 x (16 x 16 + 16 x 40) of the tied head against 2 x (16 x 8 + 8 x 40).
    tied = (flops_of(model__token_head="tied", **fields) for fields in ({}, {"text_encoder__width": 8}))
    assert next(tied) - next(tied) == 1_228_800 + 3 * 4 * 2 * 896


def test_frozen_layers_have_no_backward_pass():
    plain = flops_of()
    # A layer of 16: 8 x 17 x 16 x 16 + 2 x 17 x 17 x 16 = 44,064 multiply-adds; the patches are embedded once.
    one, both = (flops_of(image_encoder__trained_layers=layers) for layers in (1, 0))
    assert plain - one == 4 * 2 * (PATCHES_OF_16 + 2 * 2 * 44_064)
    assert plain - both == 4 * 2 * (PATCHES_OF_16 + 2 * IMAGE_OF_16)
    # All layers are trained, and what lies before them is not.
    assert plain - flops_of(patches_trained=False) == 4 * 2 * PATCHES_OF_16
    assert flops_of(patches_trained=False, image_encoder__trained_layers=0) == both
    assert plain - flops_of(text_encoder__trained_layers=0) == 2 * 4 * 2 * 2 * TEXT_OF_16


def test_operations_of_answers_include_the_way_to_the_width_of_their_decoder():
    options = OPTIONS | {"images": 1, "every_token": True, "decoded": 6, "decoder_layers": 2}
    plain, narrow = (
        fused_step_flops(tiny_model(pad_id=0, **fields), **options) for fields in ({}, {"text_encoder__width": 8})
    )
    assert plain - narrow == 3 * 4 * 2 * (TEXT_OF_16 - TEXT_OF_8 - 6 * 8 * 16)


def test_an_answering_model_reads_words_of_another_width():
    config = recipe("demo")
    config.update_from_flattened_dict(SMALLER | {"text_encoder.width": 8, "model.token_head": "tied"})
    model = AnsweringModel(**maskvlm_fields(config, pad_id=1), answer_layers=1, answer_length=5)
    image, text, answers = jnp.zeros((1, 1, 32, 32, 3), jnp.uint8), jnp.ones((1, 6), int), jnp.ones((1, 2, 4), int)
    logits, variables = jax.jit(model.init_with_output)(jax.random.key(0), image, text, answers)
    assert logits.shape == (1, 2, 4, 400) and np.isfinite(logits).all()
    assert flat(variables["params"])["answer_decoder/token_projection/kernel"].shape == (8, 16)


@pytest.mark.slow
def test_the_compiled_step_computes_what_is_counted():
    config = recipe("pretrain_4m")
    config.update_from_flattened_dict(
        {"dtype": "float32", "image.size": 96, "text_encoder.vocab_size": 1003, "text.max_length": 16}
        | sizes(heads=4, layers=2) | {"image_encoder.width": 192, "text_encoder.width": 64, "cross.width": 128}
        | {"cross.layers": 1, "cross.decoder_layers": 1, "matching.group": 4, "batch_size": 8}
    )  # fmt: skip
    step = compile_step(config, jax.devices()[:1])
    # A little less is computed than is counted: pixels need no gradient.
    assert matrix_flops(step.program) == pytest.approx(step.task.flops_per_step, rel=0.03)


# A run


def run(*, devices, mesh=(1, 1, 1), steps=2, **fields):
    """Losses of the first steps over noise, the same for every mesh."""
    config = recipe("demo")
    config.update_from_flattened_dict(SMALLER | {"batch_size": 16, "dtype": "float32"} | fields)
    for part, own in TINY.items():
        config[part].update(own)
    task = describe_task(config)
    mesh = make_mesh(**dict(zip(("data", "fsdp", "tensor"), mesh)), devices=devices)
    program = make_program(task=task, config=config, mesh=mesh)
    rng = np.random.default_rng(0)
    batch = {name: np.zeros(spec.shape, spec.dtype) for name, spec in task.batch_shapes.items()}
    batch["image"] = rng.integers(0, 256, batch["image"].shape).astype(np.uint8)
    batch["text"] = rng.integers(5, 200, batch["text"].shape).astype(np.int32)
    batch["image_id"] = np.arange(16, dtype=np.int32)
    state, losses = program.init(), []
    with jax.set_mesh(mesh):
        for _ in range(steps):
            state, metrics = program.step(state, shard_batch(batch, program.batch_sharding))
            losses.append(float(metrics["loss"]))
    return losses, state.params


@pytest.fixture(scope="module")
def on_one_device():
    return run(devices=jax.devices()[:1])


def test_every_part_learns(on_one_device):
    losses, params = on_one_device
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert params["image_to_cross"]["kernel"].shape == (24, 16)
    assert params["text_to_cross"]["kernel"].shape == (8, 16)
    assert np.abs(params["text_to_cross"]["bias"]).min() > 0  # it starts at zero


@pytest.mark.slow
def test_microbatches_train_the_same_run(on_one_device):
    np.testing.assert_allclose(run(devices=jax.devices()[:1], accumulate=2)[0], on_one_device[0], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")
def test_a_mesh_of_all_axes_trains_the_same_run(on_one_device):
    losses, params = run(devices=jax.devices(), mesh=(2, 2, 2))
    np.testing.assert_allclose(losses, on_one_device[0], rtol=1e-5)
    kernel = params["image_to_cross"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(12, 16)}
