"""Images that are the same, or nearly so, among millions."""

import itertools

import numpy as np
from jaxtyping import Bool, Int, UInt8, UInt32, UInt64

# Of 256 signs. Scaling, JPEG of quality 10 and WebP change at most 16 of them in photographs, a hundredth cut off each
# border 29; of 8 million pairs of different photographs none is nearer than 80.
MOST_SIGNS = 32
# Drawings on plain ground can agree in all signs and differ in their colours. Once brightness and contrast are made
# equal, no cell may differ by more levels of 256, nor all together by more than their correlation tells. The same
# changes make up to 18 levels and a correlation of 0.99; more light, with the brightest parts cut off, 0.96.
MOST_LEVELS, LEAST_CORRELATION = 24, 0.95
# A hash of little structure is no evidence: a few shapes on plain ground decide all of its signs, which agree between
# pictures that do not. So fewer signs may differ where less than half of the cells stand out from the commonest colour,
# and below these numbers of positive signs and of such cells nothing is concluded.
LEAST_SIGNS, LEAST_CELLS, ENOUGH_CELLS, GROUND_LEVELS = 32, 8, 32, 8
# Two images that agree in 3 of the 8 bytes of the lowest frequencies are compared: all that differ in at most 5 of
# these 64 signs do, and most of the others that are near enough.
BYTES, AGREEING = 8, 3
NEIGHBOURS = 32  # compared with each image in a bucket, so that no bucket costs the square of its size
BLOCK = 2**16  # pairs whose colours are compared at once


def same_files(digests: UInt64[np.ndarray, "E 2"]) -> Int[np.ndarray, " E"]:
    """A number for each file, the same for those with the same bytes."""
    return np.unique(digests, axis=0, return_inverse=True)[1].reshape(-1)


def near_pairs(
    shapes: UInt64[np.ndarray, "E 4"], colours: UInt8[np.ndarray, "E C"]
) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, " P"], Int[np.ndarray, " P"]]:
    """(first, second, differing signs) of pictures that are nearly the same, first < second.

    Costs n log n; `shapes` and `colours` are a fingerprint's.
    """
    empty = np.zeros(0, np.int64)
    if len(shapes) < 2:
        return empty, empty, empty
    limits = _most_signs(shapes, colours)
    octets = np.ascontiguousarray(shapes[:, 0]).view(np.uint8).reshape(-1, BYTES).astype(np.uint32)
    pairs = np.zeros(0, np.int64)
    for one, two, three in itertools.combinations(range(BYTES), AGREEING):
        keys = octets[:, one] << 16 | octets[:, two] << 8 | octets[:, three]
        pairs = np.union1d(pairs, _near_in_buckets(keys, shapes, colours, limits, known=pairs))
    first, second = np.divmod(pairs, len(shapes))
    return first, second, _differing_signs(shapes[first], shapes[second])


def _near_in_buckets(
    keys: UInt32[np.ndarray, " E"],
    shapes: UInt64[np.ndarray, "E 4"],
    colours: UInt8[np.ndarray, "E C"],
    limits: Int[np.ndarray, " E"],
    *,
    known: Int[np.ndarray, " K"],
) -> Int[np.ndarray, " P"]:
    """first * E + second of each pair that is not among the `known` ones, which are sorted"""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    blocks = []
    places = np.arange(len(keys))
    for offset in range(1, NEIGHBOURS + 1):
        places = places[places < len(keys) - offset]
        places = places[keys[places] == keys[places + offset]]
        if not len(places):
            break
        first, second = order[places], order[places + offset]  # ascending: the sort is stable
        near = _differing_signs(shapes[first], shapes[second]) <= np.minimum(limits[first], limits[second])
        pairs = first[near] * len(keys) + second[near]
        pairs = pairs[~_are_in(pairs, known)]
        for block in np.array_split(pairs, len(pairs) // BLOCK + 1):
            one, other = np.divmod(block, len(keys))
            blocks.append(block[_have_the_same_colours(colours[one], colours[other])])
    return np.concatenate(blocks) if blocks else np.zeros(0, np.int64)


def _most_signs(shapes: UInt64[np.ndarray, "E 4"], colours: UInt8[np.ndarray, "E C"]) -> Int[np.ndarray, " E"]:
    """In how many signs a copy of each picture may differ from it; -1 where the hash says too little."""
    limits = np.empty(len(shapes), np.int64)
    for block in np.array_split(np.arange(len(shapes)), len(shapes) // BLOCK + 1):
        cells = colours[block].reshape(len(block), -1, 3).astype(np.int16)
        ground = np.median(cells, axis=1, keepdims=True)
        standing_out = (np.abs(cells - ground).max(axis=2) > GROUND_LEVELS).sum(axis=1)
        limits[block] = MOST_SIGNS * np.minimum(standing_out, ENOUGH_CELLS) // ENOUGH_CELLS
        limits[block[standing_out < LEAST_CELLS]] = -1
    limits[np.bitwise_count(shapes).sum(axis=1) < LEAST_SIGNS] = -1
    return limits


def _are_in(numbers: Int[np.ndarray, " P"], known: Int[np.ndarray, " K"]) -> Bool[np.ndarray, " P"]:
    if not len(known):
        return np.zeros(len(numbers), bool)
    places = np.searchsorted(known, numbers)
    return known[np.minimum(places, len(known) - 1)] == numbers


def _have_the_same_colours(
    colours: UInt8[np.ndarray, "P C"], others: UInt8[np.ndarray, "P C"]
) -> Bool[np.ndarray, " P"]:
    ones, twos = colours.astype(np.float32), others.astype(np.float32)
    ones -= ones.mean(axis=1, keepdims=True)
    twos -= twos.mean(axis=1, keepdims=True)
    squares = (ones * ones).sum(axis=1, keepdims=True)
    products = (ones * twos).sum(axis=1, keepdims=True)
    contrast = products / np.maximum(squares, 1)
    correlation = products / np.sqrt(np.maximum(squares * (twos * twos).sum(axis=1, keepdims=True), 1))
    levels = np.abs(twos - contrast * ones).max(axis=1, initial=0)
    return (levels <= MOST_LEVELS) & (correlation[:, 0] >= LEAST_CORRELATION)


def _differing_signs(shapes: UInt64[np.ndarray, "P 4"], others: UInt64[np.ndarray, "P 4"]) -> Int[np.ndarray, " P"]:
    return np.bitwise_count(shapes ^ others).sum(axis=1, dtype=np.int64)
