"""The answer decoder, ranking and writing, against the plain way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMALLER, recipe

from mvlm_jax.aot import hlo
from mvlm_jax.evaluation import answering
from mvlm_jax.evaluation.answering import rank_answers, write_answers
from mvlm_jax.evaluation.batching import compute
from mvlm_jax.models.downstream import AnsweringModel
from mvlm_jax.tasks.model import maskvlm_fields
from mvlm_jax.training.mesh import batch_sharding, make_mesh

PAD, START, END = 1, 0, 2
LENGTH, VOCABULARY = 6, 50
GRID = (32 // 8) ** 2 + 1  # tokens of an image
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


@pytest.fixture(scope="module")
def model():
    config = recipe("demo")
    config.update_from_flattened_dict(SMALLER | {"text_encoder.vocab_size": VOCABULARY})
    return AnsweringModel(**maskvlm_fields(config, pad_id=PAD), answer_layers=2, answer_length=LENGTH)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 1, 32, 32, 3)).astype(np.uint8)
    text = rng.integers(5, VOCABULARY, (5, 8)).astype(np.int32)
    text[:, 6:] = PAD
    return jnp.asarray(image), jnp.asarray(text)


@pytest.fixture(scope="module")
def params(model, inputs):
    params = jax.jit(model.init)(jax.random.key(0), *inputs, jnp.zeros((5, 2, 3), jnp.int32))["params"]
    # At their initial values all answers are about as likely as each other, whatever the question.
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + rng.standard_normal(x.shape, np.float32) if x.ndim > 1 else x, params)


def answer_rows(count, *, seed=0):
    rng = np.random.default_rng(seed)
    rows = np.full((count, LENGTH), PAD, np.int32)
    for row in rows:
        tokens = rng.integers(5, 12, rng.integers(1, LENGTH - 1))
        row[: len(tokens) + 2] = [START, *tokens, END]
    return np.unique(rows, axis=0)


@functools.partial(jax.jit, static_argnums=0)
def token_scores(model, params, image, text, answers):
    """log p of each token of each answer to one question, the padding's included."""
    bound = model.bind({"params": params})
    logits = bound.next_tokens(answers[None, :, :-1], *bound.read(image[None], text[None]))[0]
    return jnp.take_along_axis(jax.nn.log_softmax(logits), answers[:, 1:, None], axis=-1)[..., 0]


def log_likelihoods(model, params, image, text, answers):
    """Of whole answers, and of their first tokens."""
    scores = np.asarray(token_scores(model, params, image, text, jnp.asarray(answers)), np.float64)
    lengths = (answers != PAD).sum(axis=1) - 1
    return np.array([row[:length].sum() for row, length in zip(scores, lengths)]), scores[:, 0]


def test_answers_are_scored_by_the_token_classifier(model, params, inputs):
    context = compute(model, params, *inputs, method=AnsweringModel.read)
    answers = jnp.asarray(answer_rows(8)[None, :4, :-1].repeat(5, axis=0))
    classifier = params["token_classifier"]
    raised = params | {"token_classifier": classifier | {"bias": classifier["bias"].at[7].add(1.0)}}
    before, after = (
        compute(model, values, answers, *context, method=AnsweringModel.next_tokens) for values in (params, raised)
    )
    np.testing.assert_allclose(after - before, jnp.broadcast_to(jax.nn.one_hot(7, VOCABULARY), before.shape), atol=1e-5)


def test_answers_do_not_see_what_follows_nor_each_other(model, params, inputs):
    answers = jnp.asarray(answer_rows(8)[None, :4, :-1].repeat(5, axis=0))
    before = compute(model, params, *inputs, answers)
    changed = answers.at[:, 1, 3:].set(7).at[:, 2].set(9)
    after = compute(model, params, *inputs, changed)
    np.testing.assert_array_equal(before[:, 0], after[:, 0])
    np.testing.assert_array_equal(before[:, 3], after[:, 3])
    np.testing.assert_allclose(before[:, 1, :3], after[:, 1, :3], atol=1e-6)
    assert not np.allclose(before[:, 1, 3], after[:, 1, 3], atol=1e-3)


def test_the_decoder_reads_both_streams_and_no_padding(model, params, inputs):
    image, text = inputs
    answers = jnp.asarray(answer_rows(4)[None, :1, :-1].repeat(5, axis=0))
    next_tokens = functools.partial(compute, model, params, method=AnsweringModel.next_tokens)
    before = compute(model, params, image, text, answers)
    context, mask = compute(model, params, image, text, method=AnsweringModel.read)
    np.testing.assert_array_equal(mask, [[True] * (GRID + 6) + [False] * 2] * 5)
    hidden = context.at[:, GRID + 6 :].set(99.0)
    np.testing.assert_allclose(next_tokens(answers, hidden, mask), before, atol=1e-5)
    for part in (slice(0, GRID), slice(GRID, GRID + 6)):
        other = context.at[:, part].set(0.0)
        assert not np.allclose(next_tokens(answers, other, mask), before, atol=1e-3)


def test_ranking_all_finds_the_likeliest_answer(model, params, inputs):
    answers = answer_rows(40)
    ranked = rank_answers(model, params, *inputs, jnp.asarray(answers), candidates=1000)
    for question in range(5):
        image, text = inputs[0][question], inputs[1][question]
        scores, _ = log_likelihoods(model, params, image, text, answers)
        assert int(ranked[question]) == int(np.argmax(scores))
    assert len(set(np.asarray(ranked).tolist())) > 1


def test_candidates_are_those_with_the_likeliest_first_token(model, params, inputs):
    answers = answer_rows(40)
    ranked = rank_answers(model, params, *inputs, jnp.asarray(answers), candidates=6)
    for question in range(5):
        image, text = inputs[0][question], inputs[1][question]
        scores, first = log_likelihoods(model, params, image, text, answers)
        best = np.argsort(-first, kind="stable")[:6]
        assert int(ranked[question]) == best[np.argmax(scores[best])]


@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")
def test_each_device_ranks_for_its_own_questions_in_rounds(model, params, inputs, monkeypatch):
    answers = jnp.asarray(answer_rows(40))
    ranked = np.asarray(rank_answers(model, params, *inputs, answers, candidates=6))
    image, text = (jnp.tile(x, (10,) + (1,) * (x.ndim - 1))[:48] for x in inputs)
    # Room for two and a half questions: the six of a device take three rounds.
    monkeypatch.setattr(answering, "TOKENS_AT_ONCE", 5 * 6 * LENGTH // 2)
    mesh = make_mesh(data=4, fsdp=2, tensor=1)
    placed = jax.device_put((image, text), batch_sharding(mesh))
    compiled = rank_answers.lower(model, params, *placed, answers, candidates=6, parts=8).compile()
    np.testing.assert_array_equal(compiled(params, *placed, answers), np.tile(ranked, 10)[:48])
    program = hlo.read(compiled.as_text())
    instructions = [one for each in program.computations.values() for one in each.instructions.values()]
    [loop] = (one for one in instructions if one.opcode == "while")
    context = [shape.dims for shape in loop.shapes if shape.dims[2:] == (GRID + 8, 16)]
    assert context == [(3, 2, GRID + 8, 16)]
    shared = [shape.elements for one in instructions if one.opcode in COLLECTIVES for shape in one.shapes]
    assert max(shared, default=0) <= 48 * len(answers)  # the likelihoods of first tokens, at most


def test_written_answers_are_the_greedy_ones(model, params, inputs):
    forbidden = (START, PAD, 3)
    written = write_answers(model, params, *inputs, start_id=START, end_id=END, forbidden=forbidden)
    assert written.shape == (5, LENGTH)
    for question in range(5):
        context = compute(model, params, *(x[question : question + 1] for x in inputs), method=AnsweringModel.read)
        tokens = [START]
        while len(tokens) < LENGTH and tokens[-1] != END:
            # What stands behind the last token is not seen.
            beginning = jnp.asarray([[(tokens + [7] * LENGTH)[: LENGTH - 1]]], jnp.int32)
            logits = compute(model, params, beginning, *context, method=AnsweringModel.next_tokens)
            logits = np.array(logits[0, 0, len(tokens) - 1])
            logits[list(forbidden)] = -np.inf
            tokens.append(int(logits.argmax()))
        np.testing.assert_array_equal(written[question], tokens + [PAD] * (LENGTH - len(tokens)))
