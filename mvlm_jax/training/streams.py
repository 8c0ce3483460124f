"""The random keys of a run."""

import zlib

import flax.struct
import jax
from jaxtyping import Array, Int, Key, UInt32


@flax.struct.dataclass
class Streams:
    """The independent random streams of one step; the same seed, name and step give the same key everywhere."""

    seed: int | UInt32[Array, ""] = flax.struct.field(pytree_node=False)  # an array: an argument of what is traced
    step: Int[Array, ""]  # the number of updates made before this one

    def key(self, name: str) -> Key[Array, ""]:
        # Not hash(): Python salts the hash of a string in every process.
        stream = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(name.encode()))
        return jax.random.fold_in(stream, self.step)
