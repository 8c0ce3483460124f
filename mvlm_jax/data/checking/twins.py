"""Images that are the same, or nearly so, among millions."""

import itertools

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt32, UInt64

# Of 256 signs. Scaling, JPEG of quality 10 and WebP change at most 24 of them, a hundredth cut off each border 30; no
# two of 24 million pairs of different photographs are nearer than 70.
MOST_SIGNS = 32
# Of 256, between any two cells of equal place once brightness and contrast are made equal: drawings on plain ground
# can agree in all signs and differ in their colours. The same changes make up to 18.
MOST_LEVELS = 24
# Two images that agree in 3 of the 8 bytes of the lowest frequencies are compared: all that differ in at most 5 of
# these 64 signs do, and most of the others that are near enough.
BYTES, AGREEING = 8, 3
NEIGHBOURS = 64  # compared with each image in a bucket, so that no bucket costs the square of its size


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
    octets = np.ascontiguousarray(shapes[:, 0]).view(np.uint8).reshape(-1, BYTES).astype(np.uint32)
    found = [np.zeros((0, 2), np.int64)]
    for one, two, three in itertools.combinations(range(BYTES), AGREEING):
        keys = octets[:, one] << 16 | octets[:, two] << 8 | octets[:, three]
        found.append(_near_in_buckets(keys, shapes, colours))
    pairs = np.unique(np.concatenate(found), axis=0)
    first, second = pairs[:, 0], pairs[:, 1]
    return first, second, _differing_signs(shapes[first], shapes[second])


def _near_in_buckets(
    keys: UInt32[np.ndarray, " E"],
    shapes: UInt64[np.ndarray, "E 4"],
    colours: UInt8[np.ndarray, "E C"],
) -> Int[np.ndarray, "P 2"]:
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    found = []
    places = np.arange(len(keys))
    for offset in range(1, NEIGHBOURS + 1):
        places = places[places < len(keys) - offset]
        places = places[keys[places] == keys[places + offset]]
        if not len(places):
            break
        first, second = order[places], order[places + offset]  # ascending: the sort is stable
        near = _are_near(shapes[first], shapes[second], colours[first], colours[second])
        found.append(np.stack([first[near], second[near]], axis=1))
    return np.concatenate(found) if found else np.zeros((0, 2), np.int64)


def _are_near(
    shapes: UInt64[np.ndarray, "P 4"],
    others: UInt64[np.ndarray, "P 4"],
    colours: UInt8[np.ndarray, "P C"],
    other_colours: UInt8[np.ndarray, "P C"],
) -> Bool[np.ndarray, " P"]:
    near = _differing_signs(shapes, others) <= MOST_SIGNS
    near[near] = _differing_levels(colours[near], other_colours[near]) <= MOST_LEVELS
    return near


def _differing_levels(colours: UInt8[np.ndarray, "P C"], others: UInt8[np.ndarray, "P C"]) -> Float[np.ndarray, " P"]:
    """The largest one between cells, with the best fitting brightness and contrast."""
    levels, targets = colours.astype(np.float32), others.astype(np.float32)
    levels -= levels.mean(axis=1, keepdims=True)
    targets -= targets.mean(axis=1, keepdims=True)
    products = (levels * targets).sum(axis=1, keepdims=True)
    contrast = products / np.maximum((levels * levels).sum(axis=1, keepdims=True), 1)
    return np.abs(targets - contrast * levels).max(axis=1, initial=0)


def _differing_signs(shapes: UInt64[np.ndarray, "P 4"], others: UInt64[np.ndarray, "P 4"]) -> Int[np.ndarray, " P"]:
    return np.bitwise_count(shapes ^ others).sum(axis=1, dtype=np.int64)
