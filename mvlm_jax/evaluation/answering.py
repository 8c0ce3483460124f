"""Answers from the answer decoder: the likeliest of a list, or the one that it writes."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, UInt8

from mvlm_jax.models.downstream import AnsweringModel
from mvlm_jax.objectives.losses import token_log_likelihoods

TOKENS_AT_ONCE = 8192  # of candidates that a device scores together: bounds the memory that their logits take


@functools.partial(jax.jit, static_argnums=0, static_argnames=("candidates", "parts"))
def rank_answers(
    model: AnsweringModel,
    params: PyTree,
    image: UInt8[Array, "B n H W 3"],
    text: Int[Array, "B L"],
    answers: Int[Array, "M T"],
    *,
    candidates: int,
    parts: int = 1,
) -> Int[Array, " B"]:
    """The index of the likeliest answer of the list.

    The `candidates` whose first token is likeliest are scored in full, by the sum of the log-likelihoods of all their
    tokens, end included.

    Args:
      parts: equal ones into which devices divide the batch; each device scores its own questions.
    """
    bound = model.bind({"params": params})
    context, context_mask = bound.read(image, text)
    start = jnp.broadcast_to(answers[:1, :1], (image.shape[0], 1, 1))
    first = jax.nn.log_softmax(bound.next_tokens(start, context, context_mask)[:, 0, 0])
    count = min(candidates, answers.shape[0])
    _, best = jax.lax.top_k(first[:, answers[:, 1]], count)

    def score(questions):
        context, context_mask, best = questions
        written = answers[best]
        logits = bound.next_tokens(written[:, :, :-1], context, context_mask)
        total = token_log_likelihoods(logits, written[:, :, 1:], pad_id=model.pad_id).sum(axis=-1)
        return jnp.take_along_axis(best, total.argmax(axis=-1)[:, None], axis=-1)[:, 0]

    at_once = max(1, TOKENS_AT_ONCE // (count * answers.shape[1]))
    rounds = _rounds(image.shape[0] // parts, at_once=at_once)
    # Each round takes questions from every part: a slice of the batch would hold the questions of one device only.
    in_rounds = jax.tree.map(
        lambda x: x.reshape(-1, rounds, *x.shape[1:]).swapaxes(0, 1), (context, context_mask, best)
    )
    return jax.lax.map(score, in_rounds).swapaxes(0, 1).reshape(-1)


def _rounds(questions: int, *, at_once: int) -> int:
    """The fewest equal rounds of at most `at_once` questions."""
    equal = (rounds for rounds in range(1, questions + 1) if questions % rounds == 0)
    return next(rounds for rounds in equal if questions // rounds <= at_once)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("start_id", "end_id", "forbidden"))
def write_answers(
    model: AnsweringModel,
    params: PyTree,
    image: UInt8[Array, "B n H W 3"],
    text: Int[Array, "B L"],
    *,
    start_id: int,
    end_id: int,
    forbidden: tuple[int, ...],
) -> Int[Array, "B T"]:
    """The likeliest next token, again and again, up to the end; `T` is the model's longest answer.

    Args:
      forbidden: tokens that are no part of an answer.
    """
    bound = model.bind({"params": params})
    context, context_mask = bound.read(image, text)
    batch, length = image.shape[0], model.answer_length
    written = jnp.full((batch, length), model.pad_id, jnp.int32).at[:, 0].set(start_id)

    def unfinished(carry):
        place, _, done = carry
        return (place < length) & ~done.all()

    def write(carry):
        place, written, done = carry
        logits = bound.next_tokens(written[:, None, :-1], context, context_mask)[:, 0]
        now = jax.lax.dynamic_index_in_dim(logits, place - 1, axis=1, keepdims=False)
        token = now.at[:, jnp.asarray(forbidden)].set(-jnp.inf).argmax(axis=-1)
        token = jnp.where(done, model.pad_id, token).astype(jnp.int32)
        written = jax.lax.dynamic_update_index_in_dim(written, token, place, axis=1)
        return place + 1, written, done | (token == end_id)

    return jax.lax.while_loop(unfinished, write, (jnp.int32(1), written, jnp.zeros(batch, bool)))[1]
