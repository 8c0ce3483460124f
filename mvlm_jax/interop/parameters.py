"""The parameters of a model as a flat dictionary, on the host."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float, PyTree
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mvlm_jax.errors import UserError
from mvlm_jax.training.checkpoints import Checkpoints

Flat = dict[str, Float[np.ndarray, "..."]]
T = TypeVar("T")


def flat(params: PyTree) -> dict:
    """By "/"-joined path."""
    return flatten_dict(params, sep="/")


def nested(params: Mapping) -> dict:
    """Inverse of `flat`."""
    return unflatten_dict(dict(params), sep="/")


def part_of(path: str) -> str:
    """The part of the model that has the parameter."""
    return path.partition("/")[0]


def within(part: str, params: Mapping[str, T]) -> dict[str, T]:
    """What a part of the model has of `params`, by path within the part."""
    prefix = f"{part}/"
    return {path.removeprefix(prefix): value for path, value in params.items() if path.startswith(prefix)}


def restore_parameters(directory: Path, *, step: int | None, averaged: bool = False) -> tuple[Flat, int]:
    """Parameters of a checkpoint, or their moving average, and its step, the latest one where `step` is None.

    Raises:
      UserError: no such checkpoint.
    """
    with Checkpoints.for_reading(directory) as checkpoints:
        step, params = checkpoints.restore_params(step, averaged=averaged)
    return {path: np.asarray(value) for path, value in flat(params).items()}, step


def read_parameters(file: Path) -> Flat:
    """Parameters that `safetensors.numpy.save_file` wrote.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        return load_file(file)
    except FileNotFoundError as error:
        raise UserError(f"there is no {file}; give a folder that mvlm weights export wrote") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged or cut short ({' '.join(str(error).split())}); export again") from error
