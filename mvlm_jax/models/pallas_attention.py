"""Attention for TPUs, as a Pallas kernel that holds all tokens of an example in the vector memory.

Sequences of images and captions are short: for one head the scores of all queries and keys fit there. So nothing is
computed in blocks of keys, as in flash attention, and the backward pass needs the inputs alone: it computes the softmax
again from them. Heads stay side by side in the features, as the dense layers write and read them, so nothing is
transposed.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

LANES = 128  # of a TPU's vector registers
# What the blocks of one program may take in the vector memory, twice over (the next are fetched meanwhile); a v5e
# has 16 MiB for a kernel by default.
BLOCK_BYTES = 4 * 2**20
# Of the scores of one head, several times over in the backward pass.
MOST_SCORES = 640 * 640
_MASK = 3  # the place of the mask among the arguments of a kernel
_ILLEGAL = -0.7 * float(jnp.finfo(jnp.float32).max)  # as `jax.nn.dot_product_attention` has it


def takes(*, queries: int, keys: int, heads: int, width: int) -> bool:
    """Whether the kernel can compute this attention.

    Args:
      width: of a head.
    """
    return _group(heads * width, width=width) <= 2 * LANES and queries * keys <= MOST_SCORES


def attention(
    query: Float[Array, "B R N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    mask: Bool[Array, "B S"] | None,
) -> Float[Array, "B R N H"]:
    """softmax(query key / sqrt(H)) value, the softmax in float32; for sizes that it `takes`.

    On a CPU the kernel is interpreted, which is slow: for tests.

    Args:
      mask: true where a key may be attended to.
    """
    batch, keys, _, width = key.shape
    if mask is None:
        mask = jnp.ones((batch, keys), bool)
    by_head = query.shape
    query, key, value = (x.reshape(*x.shape[:2], -1) for x in (query, key, value))
    return _attention(query, key, value, mask.astype(jnp.int32)[:, None], width).reshape(by_head)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(
    query: Float[Array, "B R D"], key: Float[Array, "B S D"], value: Float[Array, "B S D"], mask: Int[Array, "B 1 S"],
    width: int,
) -> Float[Array, "B R D"]:  # fmt: skip
    return _forward(query, key, value, mask, width)[0]


def _forward(query, key, value, mask, width):
    (attended,) = _FORWARD.on_each_device(query, key, value, mask, width=width)
    return attended, (query, key, value, mask)


def _backward(width, kept, gradient):
    return *_BACKWARD.on_each_device(*kept, gradient, width=width), None


_attention.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A function of (query, key, value, mask, ...) with an array for each of `results`."""

    body: Callable[..., None]
    results: tuple[int, ...]  # the arguments whose shapes the results have
    products: int  # matrix products with an axis of queries and one of keys, for each head

    def on_each_device(self, *arrays: Array, width: int) -> tuple[Array, ...]:
        """Each device computes its own examples and heads: XLA cannot partition a kernel."""
        mesh = jax.sharding.get_abstract_mesh()
        call = functools.partial(self.call, width=width)

        def run(*arrays: Array) -> tuple[Array, ...]:
            return jax.lax.platform_dependent(*arrays, cpu=functools.partial(call, interpret=True), tpu=call)

        if mesh.manual_axes:
            # Inside another `shard_map` JAX can neither interpret a kernel nor choose by the platform.
            if mesh.abstract_device is None or mesh.abstract_device.platform != "tpu":
                return self.plain(*arrays, width=width)
            run = call

        axes = tuple(axis for axis in mesh.axis_names if axis not in mesh.manual_axes)
        if not axes:
            return run(*arrays)
        batch, _, features = arrays[0].shape
        # What cannot be cut into equal parts is computed by every device.
        examples = tuple(axis for axis in axes if axis != "tensor")
        if batch % math.prod(mesh.shape[axis] for axis in examples):
            examples = ()
        heads = "tensor" if "tensor" in axes and features // width % mesh.shape["tensor"] == 0 else None
        specs = [PartitionSpec(examples, None, None if place == _MASK else heads) for place in range(len(arrays))]
        results = jax.shard_map(
            run,
            in_specs=tuple(specs),
            out_specs=tuple(specs[place] for place in self.results),
            axis_names=set(axes),
            check_vma=False,
        )(*arrays)
        # Without the check these axes are forgotten. What the examples give differs along all of them.
        manual = tuple(mesh.manual_axes)
        return tuple(jax.lax.pcast(x, manual, to="varying") for x in results) if manual else results

    def plain(self, query: Array, key: Array, value: Array, mask: Array, *gradient: Array, width: int) -> tuple:
        """The same without a kernel."""

        def attend(*features: Array) -> Array:
            query, key, value = (x.reshape(*x.shape[:2], -1, width) for x in features)
            attended = jax.nn.dot_product_attention(query, key, value, mask=mask[:, None] != 0)
            return attended.reshape(features[0].shape)

        attended, vjp = jax.vjp(attend, query, key, value)
        return vjp(*gradient) if gradient else (attended,)

    def call(self, *arrays: Array, width: int, interpret: bool = False) -> tuple[Array, ...]:
        batch, queries, features = arrays[0].shape
        keys, group = arrays[1].shape[1], _group(features, width=width)
        of_lane = sum(x.shape[1] * x.dtype.itemsize for x in (*arrays, *(arrays[place] for place in self.results)))
        examples, lanes = _block(batch, features, group=group, of_lane=of_lane)
        specs = [pl.BlockSpec((examples, x.shape[1], lanes), lambda batch, lane: (batch, 0, lane)) for x in arrays]
        specs[_MASK] = pl.BlockSpec((examples, 1, keys), lambda batch, lane: (batch, 0, 0))
        out = [jax.ShapeDtypeStruct(arrays[place].shape, arrays[place].dtype) for place in self.results]
        moved: list[Array | jax.ShapeDtypeStruct] = [*arrays, *out]
        return tuple(
            pl.pallas_call(
                functools.partial(self.body, width=width, group=group),
                grid=(batch // examples, features // lanes),
                in_specs=specs,
                out_specs=[specs[place] for place in self.results],
                out_shape=out,
                interpret=interpret,
                compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
                cost_estimate=pl.CostEstimate(
                    flops=2 * self.products * batch * queries * keys * features,
                    transcendentals=batch * queries * keys * features // width,
                    bytes_accessed=sum(x.size * x.dtype.itemsize for x in moved),
                ),
            )(*arrays)
        )


def _group(features: int, *, width: int) -> int:
    """Lanes that hold whole heads and fill whole registers; all of them where there are no such."""
    whole = features % LANES == 0 and (LANES % width == 0 or width % LANES == 0)
    return max(width, LANES) if whole else features


def _block(batch: int, features: int, *, group: int, of_lane: int) -> tuple[int, int]:
    """(examples, lanes) of a block: as many lanes as there is room for, in whole groups, then as many examples."""
    widths = [lanes for lanes in range(group, features + 1, group) if features % lanes == 0]
    lanes = max([lanes for lanes in widths if lanes * of_lane <= BLOCK_BYTES], default=group)
    counts = [count for count in (8, 4, 2) if batch % count == 0 and count * lanes * of_lane <= BLOCK_BYTES // 4]
    return max(counts, default=1), lanes


def _forward_kernel(query, key, value, mask, out, *, width, group):
    for example, at, q, k, v, legal in _groups(query, key, value, mask, group=group):
        attended = jnp.zeros(q.shape, jnp.float32)
        for own in _heads(width, group):
            weights = _weights(_only(q, own), k, legal, width=width)
            attended = jnp.where(own, _dot(weights.astype(v.dtype), v), attended)
        out[example, :, at] = attended.astype(out.dtype)


def _backward_kernel(*arrays, width, group):
    query, key, value, mask, gradient, of_query, of_key, of_value = arrays
    for example, at, q, k, v, legal in _groups(query, key, value, mask, group=group):
        g = gradient[example, :, at]
        dq, dk, dv = (jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
        for own in _heads(width, group):
            # Of the other heads there are zeros in one of the two factors, or what they give is not taken.
            own_q, own_g = _only(q, own), _only(g, own)
            weights = _weights(own_q, k, legal, width=width)
            dv += _dot(weights.astype(g.dtype), own_g, left=0)
            of_weights = _dot(own_g, v, right=1)
            along = (weights * of_weights).sum(axis=1, keepdims=True)
            of_scores = jnp.where(legal, weights * (of_weights - along) / math.sqrt(width), 0.0).astype(q.dtype)
            dq = jnp.where(own, _dot(of_scores, k), dq)
            dk += _dot(of_scores, own_q, left=0)
        of_query[example, :, at] = dq.astype(of_query.dtype)
        of_key[example, :, at] = dk.astype(of_key.dtype)
        of_value[example, :, at] = dv.astype(of_value.dtype)


def _groups(query, key, value, mask, *, group):
    """(example, lanes, query, key, value, legal) of each group of heads that fills whole registers."""
    for example in range(query.shape[0]):
        legal = mask[example] != 0
        for place in range(query.shape[2] // group):
            at = pl.ds(place * group, group)
            yield example, at, *(x[example, :, at] for x in (query, key, value)), legal


def _heads(width, group):
    """For each head of a group: which lanes are its own."""
    head = jax.lax.broadcasted_iota(jnp.int32, (1, group), 1) // width
    return [head == index for index in range(group // width)]


def _only(x, own):
    # In float32, which the vector units of every TPU know.
    return jnp.where(own, x.astype(jnp.float32), 0.0).astype(x.dtype)


def _weights(q, k, legal, *, width):
    """Float32 attention weights of one head."""
    scores = _dot(q, k, right=1) / math.sqrt(width)
    scores = jnp.where(legal, scores, _ILLEGAL)
    exponentials = jnp.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _dot(x, y, *, left: int = 1, right: int = 0):
    """The product that sums over these axes, in float32."""
    return jax.lax.dot_general(x, y, (((left,), (right,)), ((), ())), preferred_element_type=jnp.float32)


_FORWARD = Kernel(_forward_kernel, results=(0,), products=2)
_BACKWARD = Kernel(_backward_kernel, results=(0, 1, 2), products=5)
