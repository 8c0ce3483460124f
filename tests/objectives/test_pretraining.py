"""The work-saving losses against the plain ones, and what may not reach them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_model

from mvlm_jax.models.maskvlm import MaskVLM
from mvlm_jax.objectives import losses, matching
from mvlm_jax.objectives.masking import Masking
from mvlm_jax.objectives.pretraining import Pretraining, draw
from mvlm_jax.training.accumulation import whole_batch

PAD, MASK = 1, 4
SPECIAL = (0, 1, 2, 3, 4)
WEIGHTS = {"mim": 1.0, "mlm": 0.5, "itc": 2.0, "itm": 1.5}
BATCH, LENGTH, GROUP = 8, 12, 4


def make_model(**fields):
    small = {"text_encoder__vocab_size": 50, "model__projection": 16}
    normalisation = {"image__mean": (0.5, 0.4, 0.3), "image__std": (0.2, 0.3, 0.4)}
    return tiny_model(pad_id=PAD, **small, **normalisation, **fields)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    text = rng.integers(5, 50, (BATCH, LENGTH)).astype(np.int32)
    text[:, 0] = 0
    for row, length in enumerate(rng.integers(4, LENGTH + 1, BATCH)):
        text[row, length - 1 :] = PAD
        text[row, length - 1] = 2
    image = rng.integers(0, 256, (BATCH, 32, 32, 3)).astype(np.uint8)
    image_id = np.array([10, 11, 10, 13, 14, 15, 16, 16], np.int32)
    return {"image": jnp.asarray(image), "text": jnp.asarray(text), "image_id": jnp.asarray(image_id)}


@pytest.fixture(scope="module")
def pairs(batch):
    return draw(
        *jax.random.split(jax.random.key(7)),
        {**batch, "skipped": jnp.zeros(BATCH, jnp.int32)},
        masking=Masking(grid=4, cell=2, image_ratio=0.6, text_ratio=0.3, special_ids=SPECIAL, mask_id=MASK),
        group=GROUP,
    )


@pytest.fixture(scope="module")
def params(model, batch):
    return make_params(model, batch)


def make_params(model, batch):
    params = jax.jit(model.init)(jax.random.key(0), batch["image"], batch["text"])["params"]
    # Larger than the initial values, so that no part of the losses is too small to be compared.
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
    noisy = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), params)
    return {**noisy, "temperature": params["temperature"]}


def saving_form(model, params, pairs, **changes):
    objective = Pretraining(model, **({"condition_on": "unmasked", "group": GROUP, "weights": WEIGHTS} | changes))
    return whole_batch(objective, params, pairs)


def plain_form(model, params, pairs, *, condition_on, pixel_loss):
    """DESIGN's definitions read aloud: one call of each part for each use, every token computed, then picked."""

    apply = jax.jit(model.apply, static_argnames="method")  # each part is compiled once, however often it is used

    def call(method, *args):
        return apply({"params": params}, *args, method=method)

    def encode_image(patches, patch_mask):
        return call(MaskVLM.encode_image, patches, patch_mask[:, None])[:, 0]

    text, image_id = pairs.text, pairs.image_id
    text_mask = text != PAD
    patches = call(MaskVLM.patches, pairs.image)
    v = encode_image(patches, jnp.zeros_like(pairs.image_mask.patch_mask))
    v_masked = encode_image(patches, pairs.image_mask.patch_mask)
    w = call(MaskVLM.encode_text, text)
    w_masked = call(MaskVLM.encode_text, pairs.text_mask.text)
    shown_w = {"unmasked": w, "masked": w_masked, "none": None}[condition_on]
    shown_v = {"unmasked": v, "masked": v_masked, "none": None}[condition_on]

    every_patch = jnp.broadcast_to(jnp.arange(patches.shape[1]), patches.shape[:2])
    fused = call(MaskVLM.fuse_image, v_masked, shown_w, text_mask)
    pixels = call(MaskVLM.decode_image, fused, shown_w, text_mask, every_patch)
    hidden = pairs.image_mask.patch_mask[..., None]
    error = {"l1": jnp.abs, "l2": jnp.square}[pixel_loss](pixels - patches)
    mim = (error * hidden).sum() / (hidden.sum() * patches.shape[-1])

    logits = call(MaskVLM.classify_tokens, call(MaskVLM.fuse_text, w_masked, text_mask, shown_v))
    masked = pairs.text_mask.text != text
    mlm = (-jax.nn.log_softmax(logits)[jnp.arange(BATCH)[:, None], jnp.arange(LENGTH), text] * masked).sum()
    mlm = mlm / masked.sum()

    z_image, z_text = call(MaskVLM.project_image, v), call(MaskVLM.project_text, w, text_mask)
    temperature = call(MaskVLM.temperature)
    similarity = z_image @ z_text.T / temperature
    share = (image_id[:, None] == image_id) / (image_id[:, None] == image_id).sum(1, keepdims=True)
    itc = -(share * jax.nn.log_softmax(similarity)).sum(1) - (share * jax.nn.log_softmax(similarity.T)).sum(1)
    itc = itc.mean() / 2

    negatives = matching.hard_negatives(pairs.negative_noise, z_image, z_text, image_id, temperature)
    base = (jnp.arange(BATCH) // GROUP) * GROUP
    wrong_text, wrong_image = base + negatives.text.reshape(-1), base + negatives.image.reshape(-1)

    def verdict(v, w, text_mask):
        a = call(MaskVLM.fuse_image, v, w, text_mask)[:, 0]
        b = call(MaskVLM.fuse_text, w, text_mask, v)[:, 0]
        return jax.nn.log_softmax(call(MaskVLM.match, a, b))

    itm = -verdict(v, w, text_mask)[:, 1].sum()
    itm -= verdict(v, w[wrong_text], text_mask[wrong_text])[:, 0].sum()
    itm -= verdict(v[wrong_image], w, text_mask)[:, 0].sum()
    losses = {"mim": mim, "mlm": mlm, "itc": itc, "itm": itm / (3 * BATCH)}
    return sum(WEIGHTS[name] * loss for name, loss in losses.items()), losses


@pytest.mark.parametrize(
    "condition_on, token_head, pixel_loss",
    [
        ("unmasked", "dense", "l2"),
        pytest.param("masked", "tied", "l1", marks=pytest.mark.slow),
        pytest.param("none", "dense", "l1", marks=pytest.mark.slow),
    ],
)
def test_saving_work_changes_neither_losses_nor_gradients(batch, pairs, condition_on, token_head, pixel_loss):
    model = make_model(cross__layers=2, model__token_head=token_head)
    params = make_params(model, batch)
    fast = jax.jit(jax.value_and_grad(
        lambda p: saving_form(model, p, pairs, condition_on=condition_on, pixel_loss=pixel_loss), has_aux=True
    ))  # fmt: skip
    plain = jax.value_and_grad(
        lambda p: plain_form(model, p, pairs, condition_on=condition_on, pixel_loss=pixel_loss), has_aux=True
    )
    (total, metrics), gradient = fast(params)
    (reference_total, reference), reference_gradient = plain(params)
    np.testing.assert_allclose(total, reference_total, rtol=1e-5)
    for name, value in reference.items():
        np.testing.assert_allclose(metrics[name][0] / metrics[name][1], value, rtol=1e-5, err_msg=name)
    for path, value in jax.tree_util.tree_leaves_with_path(gradient):
        expected = np.asarray(reference_gradient)[()] if not path else _at(reference_gradient, path)
        scale = np.linalg.norm(expected)
        difference = np.linalg.norm(np.asarray(value) - expected)
        # Rounding leaves dust where a gradient is exactly zero in theory (a key's bias shifts every score alike).
        assert difference <= 1e-5 * scale + 1e-6, (jax.tree_util.keystr(path), difference, scale)


def _at(tree, path):
    for entry in path:
        tree = tree[entry.key]
    return np.asarray(tree)


def test_masked_pixels_get_no_gradient_from_mim(model, params, pairs):
    """MIM must not read what it is to rebuild: its prediction depends on no masked pixel."""

    def predicted(bound, v, w, text_mask):
        return bound.decode_image(bound.fuse_image(v, w, text_mask), w, text_mask, pairs.image_mask.slots)

    _assert_only_shown_pixels_matter(model, params, pairs, predicted)


def test_masked_pixels_get_no_gradient_from_mlm(model, params, pairs):
    """Shown the masked image, the words are guessed from what is left of it."""

    def predicted(bound, v, w, text_mask):
        return bound.classify_tokens(bound.fuse_text(w, text_mask, v, pairs.text_mask.slots))

    _assert_only_shown_pixels_matter(model, params, pairs, predicted)


def _assert_only_shown_pixels_matter(model, params, pairs, predicted):
    def total(patches):
        bound = model.bind({"params": params})
        v = bound.encode_image(patches, pairs.image_mask.patch_mask[:, None])[:, 0]
        w = bound.encode_text(pairs.text)
        return (predicted(bound, v, w, pairs.text != PAD) ** 2).sum()

    patches = model.bind({"params": params}).patches(pairs.image)
    gradient = np.asarray(jax.jit(jax.grad(total))(patches))
    hidden = np.asarray(pairs.image_mask.patch_mask)
    assert np.all(gradient[hidden] == 0)
    assert np.all(np.abs(gradient[~hidden]).max(axis=-1) > 0)


def test_no_gradient_reaches_predictions_of_unmasked_pixels(pairs):
    """The L1 is taken over masked patches only: a prediction elsewhere could be anything."""
    target = jnp.ones((BATCH, 16, 192))

    def loss(pixels):
        at_slots = jnp.take_along_axis(pixels, pairs.image_mask.slots[:, :, None], axis=1)
        wanted = jnp.take_along_axis(target, pairs.image_mask.slots[:, :, None], axis=1)
        total, count = losses.masked_image_loss(at_slots, wanted)
        return total.sum() / count.sum()

    gradient = np.asarray(jax.grad(loss)(jnp.zeros((BATCH, 16, 192))))
    hidden = np.asarray(pairs.image_mask.patch_mask)
    assert np.all(gradient[~hidden] == 0)
    np.testing.assert_allclose(gradient[hidden], -1 / (hidden.sum() * 192), rtol=1e-6)


def test_no_gradient_reaches_predictions_of_unmasked_tokens(pairs):
    def loss(logits):
        at_slots = jnp.take_along_axis(logits, pairs.text_mask.slots[:, :, None], axis=1)
        total, count = losses.masked_text_loss(at_slots, pairs.text_mask.targets, pairs.text_mask.weights)
        return total.sum() / count.sum()

    gradient = np.asarray(jax.grad(loss)(jnp.zeros((BATCH, LENGTH, 50))))
    hidden = np.asarray(pairs.text_mask.text != pairs.text)
    assert np.all(gradient[~hidden] == 0)
    assert np.all(np.abs(gradient[hidden]).max(axis=-1) > 0)


def test_with_no_condition_mim_gives_the_text_side_no_gradient(model, params, pairs):
    gradient = _gradient(model, params, pairs, condition_on="none", weights=_only("mim"))
    assert _largest(gradient["text_encoder"]) == 0
    assert _largest(gradient["text_cross_encoder"]) == 0
    assert _largest(gradient["image_cross_encoder"]["block_0"]["cross_attention"]) == 0
    assert _largest(gradient["image_encoder"]) > 0


def test_with_no_condition_mlm_gives_the_image_side_no_gradient(model, params, pairs):
    gradient = _gradient(model, params, pairs, condition_on="none", weights=_only("mlm"))
    assert _largest(gradient["image_encoder"]) == 0
    assert _largest(gradient["image_cross_encoder"]) == 0
    assert _largest(gradient["text_encoder"]) > 0


@pytest.mark.parametrize("loss, other", [("mim", "text_encoder"), ("mlm", "image_encoder")])
def test_by_default_each_reconstruction_trains_the_other_modality(model, params, pairs, loss, other):
    gradient = _gradient(model, params, pairs, condition_on="unmasked", weights=_only(loss))
    assert _largest(gradient[other]) > 0


def test_padding_changes_no_loss(model, params, pairs):
    def losses(pairs):
        _, sums = jax.jit(lambda p: saving_form(model, p, pairs))(params)
        return {name: float(total / count) for name, (total, count) in sums.items()}

    def padded(text):
        return jnp.concatenate([text, jnp.full((BATCH, 3), PAD, text.dtype)], axis=1)

    hidden = pairs.text_mask._replace(text=padded(pairs.text_mask.text))
    before, after = losses(pairs), losses(pairs._replace(text=padded(pairs.text), text_mask=hidden))
    assert before == pytest.approx(after, rel=1e-5)


def test_a_loss_of_weight_zero_is_not_computed(model, params, pairs):
    _, metrics = jax.eval_shape(lambda p: saving_form(model, p, pairs, weights=_only("mim")), params)
    assert set(metrics) == {"mim", "examples", "skipped_images"}


def test_groups_keep_negatives_at_home(model, params, pairs):
    """The similarity across groups cannot matter: swapping two whole groups swaps the negatives with them."""
    z = jax.random.normal(jax.random.key(3), (BATCH, 16))
    z = z / jnp.linalg.norm(z, axis=1, keepdims=True)
    noise, ids = pairs.negative_noise, pairs.image_id
    before = matching.hard_negatives(noise, z, z, ids, jnp.float32(0.1))
    changed = z.at[GROUP:].set(-z[GROUP:])
    after = matching.hard_negatives(noise, changed, changed, ids, jnp.float32(0.1))
    np.testing.assert_array_equal(before.text[0], after.text[0])
    np.testing.assert_array_equal(before.image[0], after.image[0])


def _only(name):
    return {"mim": 0.0, "mlm": 0.0, "itc": 0.0, "itm": 0.0, name: 1.0}


def _gradient(model, params, pairs, **changes):
    return jax.jit(jax.grad(lambda p: saving_form(model, p, pairs, **changes)[0]))(params)


def _largest(tree):
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))
