"""The order of a source whose files are read one after the other, with examples shuffled within a window.

Like the global shuffle it is computed place by place: each place depends on the seed alone, so any is reached at once.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
from grain.experimental import index_shuffle
from jaxtyping import Int64

ROUNDS = 4  # of the cipher behind a shuffle: as many as Grain takes


@dataclasses.dataclass(frozen=True, eq=False)
class WindowedOrder:
    """In each pass the files come in another order; of the sequence that they make, each window is shuffled."""

    starts: Int64[np.ndarray, " F"]  # the first position of each file
    length: int  # positions
    window: int  # positions that are shuffled together, also across the borders of files

    def position(self, place: int, *, turn: int, seed: Callable[[str, int], int]) -> int:
        """What comes at a place of a pass.

        Args:
          turn: the number of the pass.
          seed: by stream and number.
        """
        number, within = divmod(place, self.window)
        first = number * self.window
        size = min(self.window, self.length - first)
        windows = -(-self.length // self.window)
        if size > 1:
            within = index_shuffle(within, size - 1, seed("windows", turn * windows + number), ROUNDS)
        ends, starts = _shuffled_files(self, seed("files", turn))
        file = int(np.searchsorted(ends, first + within, side="right"))
        return int(starts[file]) + first + within - (int(ends[file - 1]) if file else 0)


@functools.lru_cache(maxsize=16)
def _shuffled_files(order: WindowedOrder, seed: int) -> tuple[Int64[np.ndarray, " F"], Int64[np.ndarray, " F"]]:
    """(end in the sequence, start in the source) of each file, in the order of a pass."""
    count = len(order.starts)
    files = [index_shuffle(place, count - 1, seed, ROUNDS) if count > 1 else 0 for place in range(count)]
    sizes = np.diff(order.starts, append=order.length)
    return np.cumsum(sizes[files]), order.starts[files]


def interleaved(rank: int, counts: Sequence[int]) -> tuple[int, int]:
    """The part, and the element of it, that is the `rank`-th where parts of these sizes are spread over each other.

    Element j of a part of n stands at (j + 1/2) / n; of equal places the earlier part comes first.
    """
    for part, count in enumerate(counts):
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if _rank(part, middle, counts) < rank:
                low = middle + 1
            else:
                high = middle
        if low < count and _rank(part, low, counts) == rank:
            return part, low
    raise IndexError(f"{rank} of {sum(counts)}")


def _rank(part: int, element: int, counts: Sequence[int]) -> int:
    """How many elements stand before this one."""
    numerator, denominator = 2 * element + 1, 2 * counts[part]
    before = element
    for other, count in enumerate(counts):
        if other != part:
            # (2 i + 1) / (2 count) < numerator / denominator, or <= where the other part comes first.
            scaled = numerator * 2 * count
            limit = scaled // denominator if other < part else -(-scaled // denominator) - 1
            before += min(count, max(0, (limit + 1) // 2))
    return before
