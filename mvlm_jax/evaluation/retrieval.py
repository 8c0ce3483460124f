"""Retrieval over a split: by contrastive similarity, then re-ranked by the matching head.

Memory does not grow with images times captions. Scores exist for a block of queries at a time, image features for a
batch of images. Text features are kept where they fit, and encoded again for each pair where they do not.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Float32, Int, PyTree

from mvlm_jax.data.pipeline import EvalSplit
from mvlm_jax.evaluation import ranking
from mvlm_jax.evaluation.batching import compute, fetch, index_batches, padded, place, shared_batch_size
from mvlm_jax.models.maskvlm import MaskVLM

LEVELS = (1, 5, 10)


class Ranks(NamedTuple):
    """Of each query, how many wrong candidates stand before its best right one."""

    text: Int[np.ndarray, " I"]  # of texts, for each image
    image: Int[np.ndarray, " T"]  # of images, for each caption


def evaluate_retrieval(
    model: MaskVLM,
    params: PyTree,
    split: EvalSplit,
    *,
    batch_size: int,
    rerank: int,
    rerank_by: str,
    sweep: Sequence[int] = (),
    host_bytes: int,
) -> dict[str, Any]:
    """Recalls in percent, `images` and `captions`; with `rerank` > 0 each recall also as `…_rerank`.

    `tr_r<k>`: an image finds one of its own captions; `ir_r<k>`: a caption finds its image; `r_mean`: the mean of the
    six. The arguments are those of `rank_split`.
    """
    ranks = rank_split(
        model, params, split, batch_size=batch_size, rerank=rerank, rerank_by=rerank_by, sweep=sweep,
        host_bytes=host_bytes,
    )  # fmt: skip
    results = {"images": len(split), "captions": len(split.captions)} | recalls(ranks)
    return results | ({"rerank_candidates": rerank, "rerank_by": rerank_by} if rerank or sweep else {})


def rank_split(
    model: MaskVLM,
    params: PyTree,
    split: EvalSplit,
    *,
    batch_size: int,
    rerank: int,
    rerank_by: str,
    sweep: Sequence[int] = (),
    host_bytes: int,
) -> dict[str, Ranks]:
    """The ranks by contrast under the empty name, re-ranked ones under `_rerank` and `_rerank_<k>`.

    A wrong candidate with the same score counts as ranked before the right one, so that ties never help. A score that
    is not a number never helps either.

    Args:
      rerank: candidates per query whose order the matching head decides.
      rerank_by: `itm`: by its log-odds of a match alone; `itm+itc`: see `plus_similarity`.
      sweep: smaller numbers of candidates, with recalls of their own as `…_rerank_<k>`.
      host_bytes: about what scores, and text features, may take of the host's memory.
    """
    batch_size = shared_batch_size(batch_size, params=params)
    z_image = encode_images(model, params, split, batch_size=batch_size)
    z_text, w = encode_texts(model, params, split.captions, batch_size=batch_size, host_bytes=host_bytes)
    images = np.arange(len(split))
    search = functools.partial(ranking.rank, k=max(rerank, *sweep, 1), host_bytes=host_bytes)
    to_text = search(z_image, z_text, images, split.caption_image)
    to_image = search(z_text, z_image, split.caption_image, images)
    ranks = {"": Ranks(to_text.rank, to_image.rank)}
    if rerank or sweep:
        pairs = Pairs(to_text.candidates, to_image.candidates, captions=len(split.captions))
        scores = match_pairs(model, params, split, pairs, w, batch_size=batch_size)
        if rerank_by == "itm+itc":
            temperature = float(fetch(compute(model, params, method=MaskVLM.temperature)))
            scores = plus_similarity(scores, pairs, z_image, z_text, temperature=temperature, host_bytes=host_bytes)
        of_text, of_image = pairs.of_images(scores), pairs.of_captions(scores)
        for k in sorted({rerank, *sweep} - {0}):
            both = ranking.reranked(to_text, of_text, k=k), ranking.reranked(to_image, of_image, k=k)
            ranks["_rerank" if k == rerank else f"_rerank_{k}"] = Ranks(*both)
    return ranks


def recalls(ranks: Mapping[str, Ranks]) -> dict[str, Any]:
    """The recalls of `evaluate_retrieval`."""
    results: dict[str, Any] = {}
    for suffix, (text, image) in ranks.items():
        of = {f"tr_r{k}{suffix}": ranking.recall(text, at=k) for k in LEVELS}
        of |= {f"ir_r{k}{suffix}": ranking.recall(image, at=k) for k in LEVELS}
        results |= of | {f"r_mean{suffix}": float(np.mean(list(of.values())))}
    return results


class Pairs:
    """The (image, caption) pairs that either direction re-ranks, each once, ordered by image."""

    def __init__(self, texts: Int[np.ndarray, "I k"], images: Int[np.ndarray, "T j"], *, captions: int) -> None:
        self._texts, self._images, self._captions = texts, images, captions
        self._keys = np.unique(np.concatenate([self._of_images().ravel(), self._of_captions().ravel()]))

    def __len__(self) -> int:
        return len(self._keys)

    def with_images(self, first: int, last: int) -> tuple[slice, Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
        """Of the images first … last: the place of their pairs among all, and image and caption of each."""
        start, stop = np.searchsorted(self._keys, [first * self._captions, (last + 1) * self._captions])
        where = slice(int(start), int(stop))
        return where, *self.part(where)

    def part(self, where: slice) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
        """Image and caption of the pairs in these places."""
        return np.divmod(self._keys[where], self._captions)

    def of_images(self, scores: Float32[np.ndarray, " pairs"]) -> Float32[np.ndarray, "I k"]:
        """The values of the candidates of each image, from the values of all pairs."""
        return scores[np.searchsorted(self._keys, self._of_images())]

    def of_captions(self, scores: Float32[np.ndarray, " pairs"]) -> Float32[np.ndarray, "T j"]:
        return scores[np.searchsorted(self._keys, self._of_captions())]

    def _of_images(self) -> Int[np.ndarray, "I k"]:
        return np.arange(len(self._texts), dtype=np.int64)[:, None] * self._captions + self._texts

    def _of_captions(self) -> Int[np.ndarray, "T j"]:
        return self._images.astype(np.int64) * self._captions + np.arange(self._captions)[:, None]


def plus_similarity(
    log_odds: Float32[np.ndarray, " pairs"],
    pairs: Pairs,
    z_image: Float[np.ndarray, "I E"],
    z_text: Float[np.ndarray, "T E"],
    *,
    temperature: float,
    host_bytes: int,
) -> Float32[np.ndarray, " pairs"]:
    """The log-odds of a match plus cosine / temperature: two log-likelihood ratios, both in nats.

    The sum is what training makes of the two heads. Contrast learns cosine / temperature as the logarithm of
    p(text | image) / p(text), up to a constant of the query. The negatives of matching are drawn in proportion to
    exp(cosine / temperature), so that its log-odds learn only what a pair has beyond its similarity. BLIP adds the
    logit of a match and the cosine, which it does not divide by the temperature.

    Args:
      temperature: the model's own.
      host_bytes: of the embeddings of the pairs that are compared at once.
    """
    scores = np.empty_like(log_odds)
    # Of each pair: both embeddings in float64, and their products.
    for where in ranking.blocks(len(pairs), bytes_each=3 * 8 * z_image.shape[1], host_bytes=host_bytes):
        image, caption = pairs.part(where)
        cosine = (z_image[image].astype(np.float64) * z_text[caption]).sum(axis=1)
        scores[where] = log_odds[where] + cosine / temperature
    return scores


def encode_images(model: MaskVLM, params: PyTree, split: EvalSplit, *, batch_size: int) -> Float[np.ndarray, "I E"]:
    """Embeddings of every image, on the host."""
    embeddings = []
    for images, indices in split.image_batches(batch_size):
        batch = place(padded(images, batch_size), params=params)
        z = compute(model, params, batch, method=MaskVLM.embed_image)
        embeddings.append(fetch(z)[: len(indices)])
    return np.concatenate(embeddings)


def encode_texts(
    model: MaskVLM, params: PyTree, text: Int[np.ndarray, "T L"], *, batch_size: int, host_bytes: int
) -> tuple[Float[np.ndarray, "T E"], Float[np.ndarray, "T L D"] | None]:
    """Embeddings of every caption, and its features where all of them fit into `host_bytes`; on the host."""
    embeddings, features = [], None
    for indices in index_batches(len(text), batch_size):
        w, z = _encode_texts(model, params, place(padded(text[indices], batch_size), params=params))
        embeddings.append(fetch(z)[: len(indices)])
        if w.nbytes // len(w) * len(text) <= host_bytes:
            # Filled batch by batch: parts that were joined at the end would be there twice.
            features = np.empty((len(text), *w.shape[1:]), w.dtype) if features is None else features
            features[indices] = fetch(w)[: len(indices)]
    return np.concatenate(embeddings), features


def match_pairs(
    model: MaskVLM,
    params: PyTree,
    split: EvalSplit,
    pairs: Pairs,
    w: Float[np.ndarray, "T L D"] | None,
    *,
    batch_size: int,
) -> Float32[np.ndarray, " pairs"]:
    """Log-odds of a match for each pair, spread over the devices.

    Args:
      w: features of the captions; None: they are encoded when they are needed.
    """
    matching = np.zeros(len(pairs), np.float32)
    for images, indices in split.image_batches(batch_size):
        batch = place(padded(images, batch_size), params=params)
        v = compute(model, params, batch, method=MaskVLM.encode_whole_image)
        where, image, caption = pairs.with_images(int(indices[0]), int(indices[-1]))
        odds = matching[where]  # a view
        for chunk in index_batches(len(image), batch_size):
            captions = padded(caption[chunk], batch_size)
            slots = padded(image[chunk] - indices[0], batch_size).astype(np.int32)
            slots, text = place((slots, split.captions[captions]), params=params)
            features = _encode_texts(model, params, text)[0] if w is None else place(w[captions], params=params)
            log_odds = compute(model, params, v, slots, features, text, method=_match)
            odds[chunk] = fetch(log_odds)[: len(chunk)]
    return matching


@functools.partial(jax.jit, static_argnums=0)
def _encode_texts(model, params, text):
    bound = model.bind({"params": params})
    w = bound.encode_text(text)
    return w, bound.project_text(w, bound.text_mask(text))


def _match(model, v, slots, w, text):
    """Of each text with the image in its slot of `v`."""
    logits = model.match_features(v[slots], w, model.text_mask(text))
    return logits[:, 1] - logits[:, 0]
