"""The weights of an earlier run of this package, for a run of another task or at another image size."""

import re
from collections.abc import Collection, Mapping
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
HEADS = ("answer_decoder", "classification_head")
POSITIONS = "image_encoder/position_embedding"
# Fields of the config that decide what the parameters mean without showing in their shapes.
SAME = ("model.heads", "text.kind", "image.patch", "image.mean", "image.std", "image.epsilon")


def import_checkpoint(path: str, *, shapes: PyTree[jax.ShapeDtypeStruct], config: ConfigDict) -> Imported:
    """Every parameter that the model at `path` has too: a workdir, of which the latest checkpoint is read, or a folder
    that `mvlm weights export` wrote.

    The positions of patches are resized where the image size differs. An answer decoder that the checkpoint lacks
    starts from its text cross encoder. Parts that only the task has, such as a new head, keep their initial values;
    parts that only the checkpoint has are not used. All this is reported by name.

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
    blocks = _decoder_blocks(wanted, source)
    if blocks:
        order = ", ".join(map(str, blocks))
        report.notes.append(f"the blocks of answer_decoder start from those of text_cross_encoder: {order}")
    origins = {name: _origin(name, blocks=blocks) for name in wanted}
    params: Flat = {}
    for name, shape in wanted.items():
        if origins[name] not in source:
            if name.partition("/")[0] not in HEADS:
                raise UserError(f"config.init_from.checkpoint={path} has no parameter {name}, which the model needs")
            report.initial.append(name)
            continue
        value = np.asarray(source[origins[name]], np.float32)
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
    report.tensors = len({origins[name] for name in params})
    report.parameters = sum(value.size for value in params.values())
    unused = sorted(set(source) - set(origins.values()))
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


def _decoder_blocks(wanted: Collection[str], source: Collection[str]) -> list[int]:
    """The block of the checkpoint's text cross encoder that each block of the answer decoder starts from.

    Both are made of the same parts, and one has learned to tell words from an image (as in ALBEF, arXiv 2107.07651,
    whose decoder starts from its multimodal encoder). A deeper decoder takes each block several times, in their order.
    """
    layers, there = _depth("answer_decoder", wanted), _depth("text_cross_encoder", source)
    if _depth("answer_decoder", source):
        return []
    return [index * there // layers for index in range(layers)]


def _depth(part: str, names: Collection[str]) -> int:
    return len({match[0] for name in names if (match := re.match(rf"{part}/block_\d+/", name))})


def _origin(name: str, *, blocks: list[int]) -> str:
    """The name in the checkpoint of what the model's parameter of this name starts from."""
    if not blocks:
        return name
    name = re.sub(
        r"^answer_decoder/block_(\d+)/", lambda found: f"text_cross_encoder/block_{blocks[int(found[1])]}/", name
    )
    return re.sub(r"^answer_decoder/final_norm/", "text_cross_encoder/final_norm/", name)


def _check_same(origin: ConfigDict, config: ConfigDict, *, path: str) -> None:
    there, here = dict(config_lib.flatten(origin)), dict(config_lib.flatten(config))
    for name in SAME:
        if there[name] != here[name]:
            raise UserError(
                f"config.init_from.checkpoint={path} was trained with config.{name}={there[name]!r}, not "
                f"{here[name]!r}; its parameters mean something else here"
            )
