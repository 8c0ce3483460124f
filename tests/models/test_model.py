import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_model

from mvlm_jax import config as config_lib
from mvlm_jax.interop.families import IMAGE_FAMILIES, text_family
from mvlm_jax.models.compute import Compute
from mvlm_jax.models.flops import pretraining_step_flops
from mvlm_jax.models.heads import clip_temperature
from mvlm_jax.models.image_encoder import patchify
from mvlm_jax.models.layers import CrossBlock, select_rows
from mvlm_jax.models.parameter_rules import DECAY_RULES, OPTIMIZER_RULES, SHARDING_RULES
from mvlm_jax.training.rules import match_rules


def make_model(**fields):
    return tiny_model(pad_id=0, **{"text_encoder__kind": "bert", "text_encoder__vocab_size": 40, **fields})


def shapes(model):
    image, text = jnp.zeros((1, 32, 32, 3), jnp.uint8), jnp.zeros((1, 8), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), image, text)["params"]


def text_encoder(kind, *, layers, compute=Compute()):  # noqa: B008
    config = config_lib.default().text_encoder
    config.update({"vocab_size": 40, "positions": 16, "width": 8, "heads": 2, "layers": layers, "mlp_ratio": 2})
    return text_family(kind).build(config, compute=compute)


def test_patches_are_row_major_and_flattened_by_row_column_channel():
    pixels = jnp.arange(4 * 4 * 3, dtype=jnp.float32).reshape(1, 4, 4, 3)
    patches = np.asarray(patchify(pixels, patch=2))
    assert patches.shape == (1, 4, 12)
    np.testing.assert_array_equal(patches[0, 1], np.asarray(pixels)[0, :2, 2:].reshape(-1))
    np.testing.assert_array_equal(patches[0, 2], np.asarray(pixels)[0, 2:, :2].reshape(-1))


def test_pixels_are_normalised_as_the_config_says():
    model = make_model(image__mean=(0.5, 0.25, 0.0), image__std=(0.5, 0.25, 1.0))
    image = jnp.full((1, 32, 32, 3), 255, jnp.uint8)
    patches = model.bind({"params": {"temperature": jnp.float32(0.07)}}).patches(image)
    np.testing.assert_allclose(patches[0, 0, :3], [1, 3, 1], rtol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("token_head", ["dense", "tied"])
@pytest.mark.parametrize("rules", [SHARDING_RULES, OPTIMIZER_RULES, DECAY_RULES])
def test_every_parameter_is_covered_by_the_rules(kind, token_head, rules):
    match_rules(rules, shapes(make_model(text_encoder__kind=kind, model__token_head=token_head)))


@pytest.mark.parametrize("kind", IMAGE_FAMILIES)
@pytest.mark.parametrize("rules", [SHARDING_RULES, OPTIMIZER_RULES, DECAY_RULES])
def test_every_parameter_of_an_image_encoder_is_covered_by_the_rules(kind, rules):
    registers = 4 if kind == "dinov2" else 0
    ruled = match_rules(rules, shapes(make_model(image_encoder__kind=kind, image_encoder__registers=registers)))
    if rules is DECAY_RULES:
        decays = flax.traverse_util.flatten_dict(ruled, sep="/")
        decaying = {
            path.split("/")[-1] for path, value in decays.items() if value and path.startswith("image_encoder/")
        }
        assert decaying == {"kernel"}


@pytest.mark.parametrize(("kind", "registers", "tokens"), [("dinov2", 4, 21), ("clip", 0, 17), ("siglip", 0, 16)])
def test_every_image_encoder_gives_one_token_more_than_patches(kind, registers, tokens):
    model = make_model(image_encoder__kind=kind, image_encoder__registers=registers)
    assert model.image.patches == 16
    patches, masks = jnp.zeros((2, 16, 192)), jnp.zeros((2, 3, 16), bool).at[:, 1].set(True)
    features, variables = jax.eval_shape(
        lambda: model.image_encoder.init_with_output(jax.random.key(0), patches, masks)
    )
    assert features.shape == (2, 3, 17, 16)
    options = {"losses": ("mim",), "batch_size": 4, "max_length": 8, "masked_patches": 12, "text_slots": 2}
    one, two = (
        pretraining_step_flops(model.clone(image_encoder=model.image_encoder.clone(layers=n)), **options)
        for n in (1, 2)
    )
    # An encoder layer for two views: 2 x 3 x B x (4 + 2 x ratio + 2 S/D) S D^2 multiply-adds, forwards and backwards.
    ratio = model.image_encoder.mlp_ratio
    assert two - one == 2 * 2 * 3 * 4 * (4 + 2 * ratio + 2 * tokens / 16) * tokens * 16**2


def test_biases_norms_positions_and_single_tokens_do_not_decay():
    decays = flax.traverse_util.flatten_dict(match_rules(DECAY_RULES, shapes(make_model())), sep="/")
    kept = {path for path, decay in decays.items() if not decay}
    assert {path for path in decays if path.endswith(("bias", "scale"))} <= kept
    assert {"temperature", "image_encoder/mask_token", "image_encoder/cls_token"} <= kept
    assert {"image_encoder/position_embedding", "text_encoder/position_embedding/embedding"} <= kept
    assert decays["text_encoder/token_embedding/embedding"] and decays["pixel_head/kernel"]


def test_each_encoder_learns_at_a_rate_of_its_own():
    groups = flax.traverse_util.flatten_dict(match_rules(OPTIMIZER_RULES, shapes(make_model())), sep="/")
    for part in ("image_encoder", "text_encoder"):
        assert {path.split("/")[0] for path, group in groups.items() if group == part} == {part}
    assert groups["image_encoder/mask_token"] == "rest"
    assert {path.split("/")[0] for path, group in groups.items() if group == "rest"} >= {"image_decoder", "temperature"}


def test_roberta_numbers_positions_from_two_and_bert_from_zero():
    for kind, rows in (("roberta", 18), ("bert", 16)):
        assert (
            shapes(make_model(text_encoder__kind=kind))["text_encoder"]["position_embedding"]["embedding"].shape[0]
            == rows
        )
    encoder = text_encoder("roberta", layers=1)
    text, mask = jnp.array([[0, 5, 6, 2]]), jnp.ones((1, 4), bool)
    variables, run = jax.jit(encoder.init)(jax.random.key(0), text, mask), jax.jit(encoder.apply)
    before = run(variables, text, mask)
    table = variables["params"]["position_embedding"]["embedding"]
    variables["params"]["position_embedding"]["embedding"] = table.at[:2].set(99.0)
    np.testing.assert_array_equal(run(variables, text, mask), before)


@pytest.mark.parametrize("remat", ["inputs", "dots", "full"])
def test_remat_changes_no_gradient(remat):
    text = jnp.array([[1, 5, 6, 2, 0, 0]])

    def gradient(policy):
        encoder = text_encoder("bert", layers=2, compute=Compute(remat=policy))
        variables = jax.jit(encoder.init)(jax.random.key(0), text, text != 0)
        return jax.jit(jax.grad(lambda v: (encoder.apply(v, text, text != 0) ** 3).sum()))(variables)

    expected = jax.tree.leaves(gradient("none"))
    # Terms of this size cancel in small elements, and are rounded in another order.
    largest = max(float(abs(plain).max()) for plain in expected)
    for plain, saved in zip(expected, jax.tree.leaves(gradient(remat))):
        np.testing.assert_allclose(saved, plain, rtol=1e-5, atol=1e-6 * largest)


@pytest.mark.parametrize("rows", [slice(0, 1), jnp.array([[3, 1], [0, 4]])])
def test_rows_of_a_block_are_those_of_the_whole_block(rows):
    block = CrossBlock(heads=2, mlp_ratio=2, epsilon=1e-6, compute=Compute())
    x, context = jax.random.normal(jax.random.key(0), (2, 5, 8)), jax.random.normal(jax.random.key(1), (2, 3, 8))
    mask, context_mask = jnp.array([[True] * 5, [True] * 4 + [False]]), jnp.array([[True] * 3, [True, True, False]])
    inputs = (x, mask, context, context_mask)
    variables = jax.jit(block.init)(jax.random.key(2), *inputs)
    whole = jax.jit(block.apply)(variables, *inputs)
    some = jax.jit(lambda *arguments: block.apply(*arguments, rows))(variables, *inputs)
    np.testing.assert_allclose(some, select_rows(whole, rows), rtol=1e-5, atol=1e-6)


def test_temperature_is_clipped_and_can_come_back():
    for raw, expected in ((0.07, 0.07), (5.0, 0.5), (-1.0, 0.001)):
        value, gradient = jax.value_and_grad(clip_temperature)(jnp.float32(raw))
        assert float(value) == pytest.approx(expected) and float(gradient) == 1


def test_flops_grow_as_the_layers_do():
    """One encoder layer more costs 2 x 3 x B x (12 + 2 S/D) S D^2 multiply-adds at ratio 4, for S tokens, two views."""
    options = {"losses": ("mim",), "batch_size": 4, "max_length": 8, "masked_patches": 12, "text_slots": 2}
    for part, tokens in (("image_encoder", 17), ("text_encoder", 8)):
        fields = {f"{part}__mlp_ratio": 4}
        one, two = (pretraining_step_flops(make_model(**fields, **{f"{part}__layers": n}), **options) for n in (1, 2))
        layer = 2 * (12 * tokens * 16 * 16 + 2 * tokens * tokens * 16)
        assert two - one == pytest.approx(3 * 4 * 2 * layer)
