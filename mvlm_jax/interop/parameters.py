"""The parameters of a model as a flat dictionary, on the host."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float, PyTree
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mvlm_jax.errors import UserError
from mvlm_jax.training.checkpoints import Checkpoints

Flat = dict[str, Float[np.ndarray, "..."]]


def flat(params: PyTree) -> dict:
    """By "/"-joined path."""
    return flatten_dict(params, sep="/")


def nested(params: Mapping) -> dict:
    """Inverse of `flat`."""
    return unflatten_dict(dict(params), sep="/")


def part_of(path: str) -> str:
    """The part of the model that has the parameter."""
    return path.partition("/")[0]


def parts_without(params: Iterable[str], *, among: Iterable[str]) -> list[str]:
    """The parts of the parameters `among` which there are none of `params`; all by path."""
    return sorted(set(map(part_of, among)) - set(map(part_of, params)))


def restore_parameters(directory: Path, *, step: int | None) -> tuple[Flat, int]:
    """Parameters of a checkpoint and its step, the latest one where `step` is None.

    Raises:
      UserError: no such checkpoint.
    """
    with Checkpoints.for_reading(directory) as checkpoints:
        step, params = checkpoints.restore_params(step)
    return {path: np.asarray(value) for path, value in flat(params).items()}, step


def read_parameters(file: Path, *, shapes: PyTree[jax.ShapeDtypeStruct]) -> PyTree[np.ndarray]:
    """Parameters that `safetensors.numpy.save_file` wrote from a flat dictionary.

    Raises:
      UserError: the file is missing, damaged, or not of `shapes`.
    """
    try:
        read = load_file(file)
    except FileNotFoundError as error:
        raise UserError(f"there is no {file}; give a folder that mvlm weights export wrote") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged or cut short ({' '.join(str(error).split())}); export again") from error
    wanted = {path: leaf.shape for path, leaf in flat(shapes).items()}
    different = sorted(set(wanted) ^ set(read)) or [path for path in sorted(wanted) if wanted[path] != read[path].shape]
    if different:
        raise UserError(
            f"{file} does not fit the config.json beside it in {len(different)} parameters, the first is "
            f"{different[0]}; keep the files of one export together"
        )
    return nested(read)
