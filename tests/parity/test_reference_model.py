"""The PyTorch reference in `benchmarks`: the same losses, gradients and updates as ours. Run by `make parity`."""

import dataclasses
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import torch_maskvlm as reference  # noqa: E402
import torch_pretraining  # noqa: E402
from tiny import tiny_model  # noqa: E402

from mvlm_jax.models.parameter_rules import DECAY_RULES, OPTIMIZER_RULES  # noqa: E402
from mvlm_jax.objectives import matching  # noqa: E402
from mvlm_jax.objectives.masking import Masking  # noqa: E402
from mvlm_jax.objectives.pretraining import Pretraining, draw  # noqa: E402
from mvlm_jax.training.accumulation import whole_batch  # noqa: E402
from mvlm_jax.training.optimizer import learning_rates, make_optimizer  # noqa: E402

SAME = reference.Part(width=48, heads=4, layers=3, mlp_ratio=3)
# Encoders of other widths, depths and heads than the cross encoders and than each other.
OTHER = {"image_encoder": reference.Part(40, 2, 2, 2), "text_encoder": reference.Part(24, 6, 4, 4)}
SIZES = reference.Sizes(
    image_size=64, patch=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), vocab_size=211, positions=24,
    image_encoder=SAME, text_encoder=SAME, cross=dataclasses.replace(SAME, layers=2), decoder_layers=2, projection=32,
)  # fmt: skip
BATCH, LENGTH, GROUP, GRID = 12, 18, 4, 8
SPECIAL, MASK = (0, 1, 2, 3, 4), 4
LOSSES = ("mim", "mlm", "itc", "itm")
LOSS_TOLERANCE = 1e-5  # relative
# Of the norm of a parameter's gradient. A softmax does not feel the bias of its keys, so what both frameworks find
# there is rounding, held under FLOOR of the norm of the whole gradient.
GRADIENT_TOLERANCE, FLOOR = 1e-4, 1e-6
RATES = {
    "steps": 50,
    "warmup_steps": 2,
    "ends": {"rest": (3e-3, 3e-4), "image_encoder": (1e-3, 1e-4), "text_encoder": (2e-3, 2e-4)},
}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    text = rng.integers(5, SIZES.vocab_size, (BATCH, LENGTH)).astype(np.int32)
    text[:, 0] = 0
    for row, length in zip(text, (18, 3, 9, 12, 18, 5, 7, 2, 16, 11, 4, 13)):
        row[length - 1] = 2
        row[length:] = SIZES.pad_id
    image = rng.integers(0, 256, (BATCH, 64, 64, 3)).astype(np.uint8)
    # One image twice in a group, one in two groups, and a group of one image only, which has no legal negative.
    image_id = np.array([0, 1, 0, 2, 3, 4, 5, 1, 6, 6, 6, 6], np.int32)
    return image, text, image_id


def our_model(sizes):
    fields = {
        f"{part}__{name}": value
        for part in ("image_encoder", "text_encoder", "cross")
        for name, value in dataclasses.asdict(getattr(sizes, part)).items()
    }
    return tiny_model(
        pad_id=sizes.pad_id, image__size=sizes.image_size, image__mean=sizes.mean, image__std=sizes.std,
        image_encoder__patch=sizes.patch, text_encoder__kind=sizes.text_kind,
        text_encoder__vocab_size=sizes.vocab_size, text_encoder__positions=sizes.positions,
        cross__decoder_layers=sizes.decoder_layers, model__projection=sizes.projection,
        image_encoder__pooling=sizes.image_pooling, text_encoder__pooling=sizes.text_pooling,
        model__token_head=sizes.token_head, **fields,
    )  # fmt: skip


def make_params(model, batch):
    """Biases and norms that are not all zero or one, as those of a trained model are not."""
    params = jax.jit(model.init)(jax.random.key(0), *batch[:2])["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [leaf + 0.02 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)]
    return jax.tree.unflatten(tree, leaves)


class Pair:
    """Ours and the reference with the same parameters, and the same draws for both."""

    def __init__(self, batch, *, kind, token_head="dense", parts=None):
        self.batch = batch
        sizes = dataclasses.replace(SIZES, text_kind=kind, token_head=token_head, **(parts or {}))
        self.ours = our_model(sizes)
        self.params = make_params(self.ours, batch)
        self.reference = reference.MaskVLM(sizes)
        reference.load_from_jax(self.reference, self.params)
        self.pairs = draw(
            jax.random.key(2),
            jax.random.key(3),
            dict(zip(("image", "text", "image_id", "skipped"), map(jnp.asarray, (*batch, np.zeros(BATCH, np.int32))))),
            masking=Masking(grid=GRID, cell=2, image_ratio=0.6, text_ratio=0.3, special_ids=SPECIAL, mask_id=MASK),
            group=GROUP,
        )

    @functools.cached_property
    def negatives(self):
        image, text, image_id = (jnp.asarray(x) for x in self.batch)
        ours = self.ours.bind({"params": self.params})
        z_image, z_text = ours.embed_image(image), ours.embed_text(text)
        places = matching.hard_negatives(self.pairs.negative_noise, z_image, z_text, image_id, ours.temperature())
        start = np.arange(0, BATCH, GROUP)[:, None]
        assert not np.asarray(places.valid)[2].any() and np.asarray(places.valid)[:2].all()
        return torch_pretraining.Negatives(
            *(torch.from_numpy(np.array(x + start).reshape(-1)) for x in places[:2]),
            torch.from_numpy(np.array(places.valid).reshape(-1)),
        )

    def our_losses(self, condition_on):
        """The four losses and the gradient of their sum, by the reference's paths."""

        def total(params):
            objective = Pretraining(
                self.ours, condition_on=condition_on, group=GROUP, weights=dict.fromkeys(LOSSES, 1.0)
            )
            loss, sums = whole_batch(objective, params, self.pairs)
            return loss, {name: sums[name][0] / sums[name][1] for name in LOSSES}

        (_, losses), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(self.params)
        return {name: float(loss) for name, loss in losses.items()}, gradient

    def reference_losses(self, condition_on):
        image, text, image_id = (torch.from_numpy(x) for x in self.batch)
        drawn = (*self.pairs.image_mask, *self.pairs.text_mask)
        masks = torch_pretraining.Masks(*(torch.from_numpy(np.array(x)) for x in drawn))
        masks = masks._replace(
            patch_slots=masks.patch_slots.long(),
            token_slots=masks.token_slots.long(),
            token_targets=masks.token_targets.long(),
        )
        losses = torch_pretraining.pretraining_losses(
            self.reference, image, text, image_id, masks,
            group=GROUP, condition_on=condition_on, negatives=self.negatives,
        )  # fmt: skip
        self.reference.zero_grad()
        sum(losses.values()).backward()
        return {name: loss.item() for name, loss in losses.items()}

    def to_reference(self, tree):
        """A tree of ours in the reference's names and layouts."""
        flat, paths = reference.unstacked(tree), reference.jax_paths(self.reference)
        return {
            name: reference.as_torch(flat[paths[name]], parameter, path=paths[name])
            for name, parameter in self.reference.named_parameters()
        }


@pytest.fixture(scope="module")
def roberta(batch):
    return Pair(batch, kind="roberta")


def assert_same_losses_and_gradients(pair, condition_on):
    expected, gradient = pair.our_losses(condition_on)
    found = pair.reference_losses(condition_on)
    for name in LOSSES:
        print(
            f"\n{name}: {expected[name]:.6f}, relative difference {abs(found[name] / expected[name] - 1):.1e}", end=""
        )
        assert found[name] == pytest.approx(expected[name], rel=LOSS_TOLERANCE), name

    floor = FLOOR * float(optax.tree.norm(gradient))
    worst = (0.0, "")
    for name, ours in pair.to_reference(gradient).items():
        theirs = dict(pair.reference.named_parameters())[name].grad
        # Without a context nothing reaches the cross-attention of the image decoder.
        theirs = torch.zeros_like(ours) if theirs is None else theirs
        norm, difference = ours.norm().item(), (theirs - ours).norm().item()
        if name.endswith("key.bias"):
            assert difference <= floor, name
        elif condition_on == "none" and name.startswith("image_decoder") and ".cross_" in name:
            assert norm == 0 and difference == 0, name
        else:
            assert norm > 0, name
            worst = max(worst, (difference / norm, name))
    print(f"\nlargest relative difference of a gradient: {worst[0]:.1e} ({worst[1]})")
    assert worst[0] <= GRADIENT_TOLERANCE, worst[1]


@pytest.mark.parametrize("condition_on", ["unmasked", "masked", "none"])
def test_losses_and_gradients_with_roberta(roberta, condition_on):
    assert_same_losses_and_gradients(roberta, condition_on)


def test_embeddings_and_matches(roberta):
    image, text, _ = roberta.batch
    ours = roberta.ours.bind({"params": roberta.params})
    theirs, pixels, tokens = roberta.reference, torch.from_numpy(image), torch.from_numpy(text)
    with torch.inference_mode():
        v, w = theirs.encode_whole_image(pixels), theirs.encode_text(tokens, tokens != SIZES.pad_id)
        found = theirs.embed_image(pixels), theirs.embed_text(tokens), theirs.match_features(v, w, tokens)
    image, text = jnp.asarray(image), jnp.asarray(text)
    for value, expected in zip(found, (ours.embed_image(image), ours.embed_text(text), ours.pair_logits(image, text))):
        np.testing.assert_allclose(value.numpy(), expected, atol=1e-5)


def test_losses_and_gradients_with_bert(batch):
    assert_same_losses_and_gradients(Pair(batch, kind="bert", token_head="tied"), "unmasked")


@pytest.mark.parametrize("token_head", ["dense", "tied"])
def test_losses_and_gradients_where_the_parts_differ_in_width(batch, token_head):
    pair = Pair(batch, kind="bert", token_head=token_head, parts=OTHER)
    assert {"image_to_cross", "text_to_cross"} <= set(pair.params)
    assert_same_losses_and_gradients(pair, "unmasked")


def test_losses_and_gradients_with_the_mean_of_the_tokens(batch):
    assert_same_losses_and_gradients(
        Pair(batch, kind="bert", parts={"image_pooling": "mean", "text_pooling": "mean"}), "unmasked"
    )


def make_optimizers(pair):
    schedules = learning_rates(**RATES)
    ours = make_optimizer(
        pair.params, schedules=schedules, rules=OPTIMIZER_RULES, decay_rules=DECAY_RULES,
        weight_decay=0.05, b1=0.9, b2=0.98, clip_norm=0.0,
    )  # fmt: skip
    return ours, torch_pretraining.make_optimizer(pair.reference, weight_decay=0.05, betas=(0.9, 0.98))


def reference_rates(update):
    common = {"steps": RATES["steps"], "warmup_steps": RATES["warmup_steps"]}
    return {
        group: torch_pretraining.learning_rate(update, **common, peak=peak, final=final)
        for group, (peak, final) in RATES["ends"].items()
    }


@pytest.mark.parametrize("parts", [None, OTHER])
def test_the_same_gradients_give_the_same_updates(batch, parts):
    pair = Pair(batch, kind="bert", parts=parts)
    ours, theirs = make_optimizers(pair)
    params, state = pair.params, ours.init(pair.params)
    parameters = dict(pair.reference.named_parameters())
    update = jax.jit(ours.update)
    for step in range(1, 5):  # through the warm-up into the cosine
        rng = np.random.default_rng(step)
        gradient = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)  # noqa: B023
        for name, value in pair.to_reference(gradient).items():
            parameters[name].grad = value
        torch_pretraining.set_learning_rates(theirs, reference_rates(step))
        theirs.step()
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        for name, value in pair.to_reference(params).items():
            # A wrong group or a missing decay is off by 1e-5 at least.
            torch.testing.assert_close(parameters[name].data, value, rtol=1e-6, atol=5e-7, msg=lambda m: f"{name}: {m}")  # noqa: B023


def test_a_whole_step_gives_the_same_parameters(batch):
    pair = Pair(batch, kind="roberta")
    ours, theirs = make_optimizers(pair)
    _, gradient = pair.our_losses("unmasked")
    updates, _ = ours.update(gradient, ours.init(pair.params), pair.params)
    updated = pair.to_reference(optax.apply_updates(pair.params, updates))
    pair.reference_losses("unmasked")
    torch_pretraining.set_learning_rates(theirs, reference_rates(1))
    theirs.step()
    # Adam's first update is the sign of the gradient, times the learning rate: where the gradient is rounding, so is
    # its sign.
    for name, of_name in pair.to_reference(gradient).items():
        if name.endswith("key.bias"):
            continue
        parameter = dict(pair.reference.named_parameters())[name]
        decided = (of_name.abs() > 1e-2 * of_name.square().mean().sqrt()) | (of_name == 0)
        assert decided.float().mean() > 0.5, name  # embeddings of which few examples hold a row have many near zero
        difference = (parameter.data - updated[name])[decided]
        assert difference.abs().max() < 1e-3 * reference_rates(1)["image_encoder"], name


def test_loading_names_what_does_not_correspond(roberta):
    params = jax.tree.map(np.asarray, roberta.params)
    before = {name: value.clone() for name, value in roberta.reference.state_dict().items()}
    head = {"kernel": params["matching_head"]["kernel"].T, "bias": params["matching_head"]["bias"]}
    deeper = jax.tree.map(lambda x: np.concatenate([x, x[:1]]), params["text_encoder"]["layers"])
    for wrong, named in (
        ({name: value for name, value in params.items() if name != "pixel_head"}, "pixel_head/kernel"),
        (params | {"old_head": {"kernel": np.zeros((2, 2))}}, "old_head/kernel"),
        (
            params | {"text_encoder": params["text_encoder"] | {"layers": deeper}},
            "text_encoder/layers/3/attention/key/bias",
        ),
        (params | {"matching_head": head}, r"matching_head/kernel has shape \(2, 48\)"),
    ):
        with pytest.raises(ValueError, match=named):
            reference.load_from_jax(roberta.reference, wrong)
    for name, value in roberta.reference.state_dict().items():
        assert torch.equal(value, before[name]), name
