"""How the arms of an ablation are compared. This plan was written before any result was seen.

Question: does masked cross-modal reconstruction teach alignment, and most of all with little data?

Primary measure: the mean of text and image retrieval's R@1 over the evaluation split, in percent. Where both arms of a
comparison have a trained matching head it is taken after re-ranking, as the paper's is; else by contrast. R@5, R@10 and
the reconstruction gains are shown in tables and not tested.

Comparisons, at each fraction of the training data, of those arms that were run (`COMPARISONS`): what reconstruction
adds to contrast and matching, alone and together; whether it must be cross-modal; whether masking one side at a time is
better than both; what matching adds. One more (`LIMITED_DATA`): whether what maskvlm adds to itc_itm is larger at the
smallest fraction than at the largest. All arms and fractions get the same steps.

Seeds: at least five for drawn scenes; on Flickr8k as many as the time allows, at least two. Their number follows from
the clock alone. Seeds are paired: at one seed all arms see the same batches and masks, and begin with the same
parameters. A comparison uses the seeds that all its arms have finished.

Interval and p-value: a bootstrap on two levels. Each resample draws seeds with replacement and images with replacement,
an image with its captions. The same images are drawn for every seed, because every seed is evaluated on the same ones;
and for every arm. Few seeds make percentile intervals too short, so the part of the deviation that comes from seeds is
widened by sqrt(n / (n - 1)) * t / z, the quantiles at 97.5% (Hesterberg's expanded percentile interval). The interval
is that of 95%; the p-value is twice the smaller share of resamples on one side of zero. One seed gives neither.

Correction: Holm's, over all comparisons of a table. A difference is called one where the corrected p-value is below
0.05. Whatever comes out is reported.
"""

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtri, stdtrit

COMPARISONS = (
    ("maskvlm", "itc_itm"),
    ("maskvlm", "mlm_mim_independent"),
    ("maskvlm", "both_masked"),
    ("mlm", "itc_itm"),
    ("mim", "itc_itm"),
    ("itc_itm", "itc"),
)
LIMITED_DATA = COMPARISONS[0]
RESAMPLES = 10_000
TAIL = 0.025  # of an interval, on each side
CHUNK = 1000  # resamples at once


class Queries(NamedTuple):
    """The ranks of one run: of each query, how many wrong candidates stand before its best right one."""

    text: Int[np.ndarray, " I"]  # of texts, for each image
    image: Int[np.ndarray, " T"]  # of images, for each caption; captions in the order of their images
    captions: Int[np.ndarray, " I"]  # of each image, at least one

    def recalls(self, *, at: int) -> tuple[float, float]:
        """(TR, IR) in percent."""
        return 100 * float(np.mean(self.text < at)), 100 * float(np.mean(self.image < at))


Runs = Mapping[int, Queries]  # by seed, all of one arm and one fraction
Terms = Sequence[tuple[int, Runs]]  # of a sum; each with its sign


class Estimate(NamedTuple):
    """A sum of mean R@1s, in percentage points."""

    value: float
    low: float  # nan, as high and p, where there is one seed
    high: float
    p: float  # two-sided, of the value being zero
    of_seeds: Mapping[int, float]  # the value of each


def estimate(terms: Terms, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The signed sum of what the terms reach, over the seeds that all of them have.

    Raises:
      ValueError: they share no seed, or were evaluated on other images.
    """
    seeds = sorted(set.intersection(*(set(runs) for _, runs in terms)))
    if not seeds:
        raise ValueError("the runs to compare have no seed in common")
    ordered = [(sign, [runs[number] for number in seeds]) for sign, runs in terms]
    captions = ordered[0][1][0].captions
    if any(not np.array_equal(run.captions, captions) for _, runs in ordered for run in runs):
        raise ValueError("the runs to compare were not evaluated on the same images")
    hits = [(sign, *_hits(runs)) for sign, runs in ordered]
    whole = np.ones((1, len(captions)))
    of_seeds = _sums(hits, captions, whole)[0]
    value, count = float(of_seeds.mean()), len(seeds)
    named = dict(zip(seeds, of_seeds.tolist()))
    if count < 2:
        return Estimate(value, math.nan, math.nan, math.nan, named)
    rng, parts = np.random.default_rng(seed), []
    widened = math.sqrt(count / (count - 1)) * stdtrit(count - 1, 1 - TAIL) / ndtri(1 - TAIL)
    for start in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - start)
        images = rng.multinomial(len(captions), np.full(len(captions), 1 / len(captions)), size=size)
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=size) / count
        by_images = _sums(hits, captions, images.astype(np.float64)) - of_seeds
        parts.append(value + widened * (drawn @ of_seeds - value) + (drawn * by_images).sum(axis=1))
    values = np.concatenate(parts)
    low, high = np.quantile(values, [TAIL, 1 - TAIL])
    return Estimate(value, float(low), float(high), _p_value(values), named)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p-value as it must stand below a level for all such to hold together at that level; nan stays nan."""
    order = [place for place in np.argsort(p_values) if not math.isnan(p_values[place])]
    corrected, largest = [math.nan] * len(p_values), 0.0
    for passed, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - passed) * p_values[place]))
        corrected[place] = largest
    return corrected


def encoded(numbers: Int[np.ndarray, " n"]) -> str:
    """Numbers from 0 to 2^32 - 1 as a short text."""
    return base64.b64encode(zlib.compress(np.asarray(numbers).astype("<u4").tobytes())).decode()


def decoded(text: str) -> Int[np.ndarray, " n"]:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u4").astype(np.int64)


def _hits(runs: Sequence[Queries]) -> tuple[Float[np.ndarray, "S I"], Float[np.ndarray, "S I"]]:
    """Of each run and image: whether the image finds a caption first, and how many of its captions find it first."""
    starts = np.cumsum(runs[0].captions) - runs[0].captions
    text = np.stack([run.text < 1 for run in runs]).astype(np.float64)
    image = np.stack([np.add.reduceat((run.image < 1).astype(np.float64), starts) for run in runs])
    return text, image


def _sums(
    hits: Sequence[tuple[int, Float[np.ndarray, "S I"], Float[np.ndarray, "S I"]]],
    captions: Int[np.ndarray, " I"],
    weights: Float[np.ndarray, "R I"],
) -> Float[np.ndarray, "R S"]:
    """The signed sum of the mean R@1, in each resample of the images and of each seed."""
    images, texts = weights.sum(axis=1, keepdims=True), (weights @ captions)[:, None]
    parts = [sign * 50 * (weights @ text.T / images + weights @ image.T / texts) for sign, text, image in hits]
    return np.sum(parts, axis=0)


def _p_value(values: Float[np.ndarray, " R"]) -> float:
    one_side = min(np.sum(values <= 0), np.sum(values >= 0))
    return min(1.0, 2 * (1 + float(one_side)) / (1 + len(values)))
