"""Percentile intervals of ratios of sums, by resampling whole images."""

import numpy as np
from jaxtyping import Float


def ratio_interval(
    total: Float[np.ndarray, " I"],
    count: Float[np.ndarray, " I"],
    *,
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> list[float]:
    """[sum(total) / sum(count), low, high].

    The unit that is drawn with replacement is the image, since its captions and masks are not independent. For the
    difference of two paired measurements pass the difference of their totals.
    """
    rng = np.random.default_rng(seed)
    images = len(total)
    weights = rng.multinomial(images, np.full(images, 1 / images), size=resamples).astype(np.float64)
    counts = weights @ count
    # Resamples that drew nothing countable have no ratio.
    ratios = (weights @ total)[counts > 0] / counts[counts > 0]
    tail = 50 * (1 - level)
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return [float(np.divide(total.sum(), count.sum())), float(low), float(high)]
