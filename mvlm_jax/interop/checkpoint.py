"""The weights of an earlier run of this package, for a run of another task or at another image size."""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, PyTree
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mvlm_jax import config as config_lib
from mvlm_jax.errors import UserError
from mvlm_jax.interop.exporting import CONFIG, WEIGHTS
from mvlm_jax.interop.parameters import Flat, flat, restore_parameters
from mvlm_jax.interop.positions import grid_side, resize_positions
from mvlm_jax.interop.report import Report
from mvlm_jax.interop.start import Imported
from mvlm_jax.training import workdir as workdir_lib

# What a downstream task puts on top; everything else must come with the checkpoint.
HEADS = ("answer_decoder", "answer_head", "classification_head")
POSITIONS = "image_encoder/position_embedding"
# Fields of the config that decide what the parameters mean without showing in their shapes.
SAME = ("model.heads", "text.kind", "image.patch", "image.mean", "image.std", "image.epsilon")


def import_checkpoint(path: str, *, shapes: PyTree[jax.ShapeDtypeStruct], config: ConfigDict) -> Imported:
    """Every parameter that the model at `path` has too: a workdir, of which the latest checkpoint is read, or a folder
    that `mvlm weights export` wrote.

    The positions of patches are resized where the image size differs. Parts that only the task has, such as a new
    head, keep their initial values; parts that only the checkpoint has are not used. Both are reported by name.

    Raises:
      UserError: nothing to read there, or parameters that do not fit.
    """
    directory = Path(path).expanduser()
    source, origin, step = _read(directory)
    _check_same(origin, config, path=path)
    wanted = {name: tuple(leaf.shape) for name, leaf in flat(shapes).items()}
    report = Report(
        encoder="checkpoint",
        source=f"{path}, step {step}" if step is not None else path,
        files=[str(directory)],
        naming="mvlm_jax",
        prefix="",
        tensors=0,
        parameters=0,
    )
    params: Flat = {}
    for name, shape in wanted.items():
        if name not in source:
            if name.partition("/")[0] not in HEADS:
                raise UserError(f"config.init_from.checkpoint={path} has no parameter {name}, which the model needs")
            report.initial.append(name)
            continue
        value = np.asarray(source[name], np.float32)
        if name == POSITIONS and value.shape != shape:
            value = resize_positions(value, side=grid_side(shape[1]))
            report.resized.append(f"{name} {source[name].shape} -> {value.shape}")
        if value.shape != shape:
            if name.partition("/")[0] in HEADS:
                report.initial.append(name)
                report.not_used.setdefault("of another shape than this task's", []).append(name)
                continue
            raise UserError(
                f"config.init_from.checkpoint={path} has {name} with the shape {value.shape}, the model {shape}; "
                "give the run's values in config.model, config.text and config.image"
            )
        params[name] = value
    report.tensors, report.parameters = len(params), sum(value.size for value in params.values())
    unused = sorted(set(source) - set(wanted))
    if unused:
        report.not_used["this task has no such part"] = unused
    touched = {name.partition("/")[0] for name in params}
    return Imported(params, [report], initial=sorted({name.partition("/")[0] for name in wanted} - touched))


def _read(directory: Path) -> tuple[Mapping[str, Float[np.ndarray, "..."]], ConfigDict, int | None]:
    if (directory / WEIGHTS).is_file():
        try:
            return load_file(directory / WEIGHTS), config_lib.from_json((directory / CONFIG).read_text()), None
        except (SafetensorError, OSError) as error:
            raise UserError(f"{directory / WEIGHTS} cannot be read ({' '.join(str(error).split())})") from error
    if not (directory / workdir_lib.CHECKPOINTS).is_dir():
        raise UserError(
            f"config.init_from.checkpoint={directory} is neither the workdir of a run nor a folder that "
            "mvlm weights export wrote"
        )
    origin = workdir_lib.read_config(directory)
    params, step = restore_parameters(directory / workdir_lib.CHECKPOINTS, config=origin, step=None)
    return params, origin, step


def _check_same(origin: ConfigDict, config: ConfigDict, *, path: str) -> None:
    there, here = dict(config_lib.flatten(origin)), dict(config_lib.flatten(config))
    for name in SAME:
        if there[name] != here[name]:
            raise UserError(
                f"config.init_from.checkpoint={path} was trained with config.{name}={there[name]!r}, not "
                f"{here[name]!r}; its parameters mean something else here"
            )
