"""Learning rates that fall from an encoder's last layer to its embeddings."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from mvlm_jax.training.rules import match_rules


def layer_scales(params: PyTree, *, rules: Sequence[tuple[str, str]], decay: float) -> PyTree:
    """What each parameter's learning rate is multiplied with.

    It is decay^(L - 1 - i) for layer i of the L layers of an encoder, counted from 0, and decay^L for what comes before
    them. What comes behind, and all that belongs to no encoder, keeps its rate.

    Args:
      params: parameters or their shapes.
      rules: where a parameter lies: `before` the layers of its encoder, in the `layers` (which are its leading axis),
        or `behind` them. An encoder is the first part of a path.
    """
    shapes = {path: leaf.shape for path, leaf in flatten_dict(params, sep="/").items()}
    places = flatten_dict(match_rules(rules, params), sep="/")
    depths = {_part(path): shape[0] for path, shape in shapes.items() if places[path] == "layers"}
    scales: dict[str, Any] = {}
    for path, shape in shapes.items():
        if places[path] == "layers":
            of_layers = decay ** np.arange(shape[0])[::-1]
            scales[path] = of_layers.reshape(-1, *[1] * (len(shape) - 1)).astype(np.float32)
        else:
            scales[path] = math.pow(decay, depths.get(_part(path), 0)) if places[path] == "before" else 1.0
    return unflatten_dict(scales, sep="/")


def scale_updates(scales: PyTree) -> optax.GradientTransformation:
    """Multiplies updates, the weight decay within them too."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda update, scale: update * scale, updates, scales))


def _part(path: str) -> str:
    return path.partition("/")[0]
