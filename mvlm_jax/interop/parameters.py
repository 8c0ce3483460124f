"""The parameters of a model as a flat dictionary, on the host."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float, PyTree
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mvlm_jax.errors import UserError
from mvlm_jax.tasks.model import model_inputs, task_model
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


def parameter_shapes(config: ConfigDict) -> PyTree[jax.ShapeDtypeStruct]:
    """Of the model that a config describes."""
    # No shape depends on the kernel, which this machine need not have.
    config = config.copy_and_resolve_references()
    config.model.attention = "xla"
    return jax.eval_shape(task_model(config, pad_id=0).init, jax.random.key(0), *model_inputs(config))["params"]


def restore_parameters(directory: Path, *, config: ConfigDict, step: int | None) -> tuple[Flat, int]:
    """Parameters of a checkpoint and its step, the latest one where `step` is None.

    They are read to the host, whatever devices the run was made on.

    Raises:
      UserError: no such checkpoint.
    """
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=host), parameter_shapes(config)
    )
    with Checkpoints.for_reading(directory) as checkpoints:
        if step is not None:
            params = checkpoints.restore_params(step, abstract)
        elif latest := checkpoints.restore_latest_params(abstract):
            step, params = latest
        else:
            raise UserError(f"{directory} has no finished checkpoint; train first")
    return {path: np.asarray(value) for path, value in flat(params).items()}, step


def read_parameters(file: Path, *, config: ConfigDict) -> PyTree[np.ndarray]:
    """Parameters that `safetensors.numpy.save_file` wrote from a flat dictionary.

    Raises:
      UserError: the file is missing, damaged, or not of the model that `config` describes.
    """
    try:
        read = load_file(file)
    except FileNotFoundError as error:
        raise UserError(f"there is no {file}; give a folder that mvlm weights export wrote") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged or cut short ({' '.join(str(error).split())}); export again") from error
    wanted = {path: leaf.shape for path, leaf in flat(parameter_shapes(config)).items()}
    different = sorted(set(wanted) ^ set(read)) or [path for path in sorted(wanted) if wanted[path] != read[path].shape]
    if different:
        raise UserError(
            f"{file} does not fit the config.json beside it in {len(different)} parameters, the first is "
            f"{different[0]}; keep the files of one export together"
        )
    return nested(read)
