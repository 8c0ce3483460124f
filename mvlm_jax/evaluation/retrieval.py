"""Zero-shot retrieval over a split: by contrastive similarity, then re-ranked by the matching head."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree

from mvlm_jax.data.pipeline import EvalSplit
from mvlm_jax.evaluation.batching import fetch, index_batches, padded, place, shared_batch_size
from mvlm_jax.evaluation.recall import recalls, reranked, top_candidates
from mvlm_jax.models.maskvlm import MaskVLM


def evaluate_retrieval(
    model: MaskVLM, params: PyTree, split: EvalSplit, *, batch_size: int, rerank: int
) -> dict[str, Any]:
    """Recalls in percent, `images` and `captions`; with `rerank` > 0 each recall also as `…_rerank`.

    Args:
      rerank: candidates per query whose order the matching head decides.
    """
    batch_size = shared_batch_size(batch_size, params=params)
    v, z_image = encode_images(model, params, split, batch_size=batch_size)
    w, z_text = encode_texts(model, params, split.captions, batch_size=batch_size)
    scores = z_image.astype(np.float64) @ z_text.astype(np.float64).T
    results: dict[str, Any] = {"images": len(split), "captions": len(split.captions)}
    results |= recalls(scores, split.caption_image)
    if rerank:
        texts = top_candidates(scores, k=rerank)
        images = top_candidates(scores.T, k=rerank)
        matching = match_pairs(model, params, v, w, split.captions, _pairs(texts, images), batch_size=batch_size)
        to_text = reranked(scores, texts, _look_up(matching, np.arange(len(texts))[:, None], texts))
        to_image = reranked(scores.T, images, _look_up(matching, images, np.arange(len(images))[:, None])).T
        by_text, by_image = recalls(to_text, split.caption_image), recalls(to_image, split.caption_image)
        results |= {f"{name}_rerank": (by_text if name.startswith("tr") else by_image)[name] for name in by_text}
        results["rerank_candidates"] = rerank
    return results


def encode_images(
    model: MaskVLM, params: PyTree, split: EvalSplit, *, batch_size: int
) -> tuple[Float[np.ndarray, "I S D"], Float[np.ndarray, "I E"]]:
    """Features in the model's dtype and embeddings of every image, on the host."""
    features, embeddings = [], []
    for images, indices in split.image_batches(batch_size):
        v, z = fetch(_encode_images(model, params, place(padded(images, batch_size), params=params)))
        features.append(v[: len(indices)])
        embeddings.append(z[: len(indices)])
    return np.concatenate(features), np.concatenate(embeddings)


def encode_texts(
    model: MaskVLM, params: PyTree, text: Int[np.ndarray, "T L"], *, batch_size: int
) -> tuple[Float[np.ndarray, "T L D"], Float[np.ndarray, "T E"]]:
    """Features in the model's dtype and embeddings of every caption, on the host."""
    features, embeddings = [], []
    for indices in index_batches(len(text), batch_size):
        w, z = fetch(_encode_texts(model, params, place(padded(text[indices], batch_size), params=params)))
        features.append(w[: len(indices)])
        embeddings.append(z[: len(indices)])
    return np.concatenate(features), np.concatenate(embeddings)


def match_pairs(
    model: MaskVLM,
    params: PyTree,
    v: Float[np.ndarray, "I S D"],
    w: Float[np.ndarray, "T L D"],
    text: Int[np.ndarray, "T L"],
    pairs: Int[np.ndarray, "pairs 2"],
    *,
    batch_size: int,
) -> dict[tuple[int, int], float]:
    """Log-odds of a match for each (image, text) pair."""
    matching: dict[tuple[int, int], float] = {}
    for indices in index_batches(len(pairs), batch_size):
        image, caption = padded(pairs[indices], batch_size).T
        batch = place((v[image], w[caption], text[caption]), params=params)
        odds = fetch(_match(model, params, *batch))[: len(indices)]
        matching.update(zip(map(tuple, pairs[indices].tolist()), odds.tolist(), strict=True))
    return matching


def _pairs(texts: Int[np.ndarray, "I k"], images: Int[np.ndarray, "T j"]) -> Int[np.ndarray, "pairs 2"]:
    """Each (image, text) that either direction asks for, once."""
    by_image = np.stack([np.repeat(np.arange(len(texts)), texts.shape[1]), texts.ravel()], axis=1)
    by_text = np.stack([images.ravel(), np.repeat(np.arange(len(images)), images.shape[1])], axis=1)
    return np.unique(np.concatenate([by_image, by_text]), axis=0)


def _look_up(
    matching: dict[tuple[int, int], float], images: Int[np.ndarray, "..."], texts: Int[np.ndarray, "..."]
) -> Float[np.ndarray, "Q k"]:
    images, texts = np.broadcast_arrays(images, texts)
    found = [matching[pair] for pair in zip(images.ravel().tolist(), texts.ravel().tolist(), strict=True)]
    return np.array(found).reshape(images.shape)


@functools.partial(jax.jit, static_argnums=0)
def _encode_images(model, params, image):
    patches = model.apply({"params": params}, image, method="patches")
    nothing = jnp.zeros((image.shape[0], 1, patches.shape[1]), bool)
    v = model.apply({"params": params}, patches, nothing, method="encode_image")[:, 0]
    return v, model.apply({"params": params}, v, method="project_image")


@functools.partial(jax.jit, static_argnums=0)
def _encode_texts(model, params, text):
    w = model.apply({"params": params}, text, method="encode_text")
    return w, model.apply({"params": params}, w, method="project_text")


@functools.partial(jax.jit, static_argnums=0)
def _match(model, params, v, w, text):
    run = functools.partial(model.apply, {"params": params})
    text_mask = run(text, method="text_mask")
    first = slice(0, 1)
    fused_image = run(v, w, text_mask, first, method="fuse_image")[:, 0]
    fused_text = run(w, text_mask, v, first, method="fuse_text")[:, 0]
    logits = run(fused_image, fused_text, method="match")
    return logits[:, 1] - logits[:, 0]
