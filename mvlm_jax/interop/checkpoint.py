"""The weights of an earlier run of this package, for a run of another task or at another image size."""

import math
import re
from collections.abc import Collection
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from mvlm_jax import config as config_lib
from mvlm_jax.errors import UserError
from mvlm_jax.interop import hub
from mvlm_jax.interop.exporting import WEIGHTS
from mvlm_jax.interop.families import image_family
from mvlm_jax.interop.parameters import Flat, flat, part_of, read_parameters, restore_parameters
from mvlm_jax.interop.report import Report, start_weights
from mvlm_jax.stores.mirror import shown
from mvlm_jax.training import workdir as workdir_lib
from mvlm_jax.training.task import StartWeights

# Parts that must come with the checkpoint where the model has them; others are heads of a task, which may be new.
REQUIRED = (
    "image_encoder", "text_encoder", "image_to_cross", "text_to_cross", "image_cross_encoder", "text_cross_encoder",
    "image_decoder", "pixel_head", "image_projection", "text_projection", "matching_head", "temperature",
)  # fmt: skip
POSITIONS = "image_encoder/position_embedding"
FITTING = "give the run's values in config.image_encoder, config.text_encoder, config.cross and config.model"
# Fields of the config that decide what the parameters mean without showing in their shapes.
SAME = (
    "image_encoder.heads",
    "text_encoder.heads",
    "cross.heads",
    "image_encoder.kind",
    "text_encoder.kind",
    "image_encoder.patch",
    "image.mean",
    "image.std",
    "image_encoder.epsilon",
    "image_encoder.activation",
    "image_encoder.registers",
)
# Likewise, where the model has the part: what it reads.
SAME_FOR = {"image_encoder.pooling": "image_projection", "text_encoder.pooling": "text_projection"}


def import_checkpoint(path: str, *, shapes: PyTree[jax.ShapeDtypeStruct], config: ConfigDict) -> StartWeights:
    """Every parameter that the model at `path` has too: a workdir, of which the latest checkpoint is read, or a folder
    that `mvlm weights export` wrote, or the name on the Hub that it was pushed to.

    The positions of patches are resized where the image size differs. An answer decoder that the checkpoint lacks
    starts from its text cross encoder. Parts that only the task has, such as a new head, keep their initial values;
    parts that only the checkpoint has are not used. All this is reported by name.

    Raises:
      UserError: nothing to read there, or parameters that do not fit.
    """
    directory = hub.local_path(path)
    source, origin, step = _read(directory)
    wanted = {name: tuple(leaf.shape) for name, leaf in flat(shapes).items()}
    _check_same(origin, config, parts=set(map(part_of, wanted)), path=path)
    report = Report(
        encoder="checkpoint",
        source=f"{path}, step {step}" if step is not None else path,
        files=[shown(directory)],
        naming="mvlm_jax",
        revision=hub.commit_of(path),
    )
    origins, report.notes = _origins(wanted, source)
    parts = set(map(part_of, source))
    params: Flat = {}
    for name, shape in wanted.items():
        if origins[name] not in source:
            if part_of(name) in REQUIRED or part_of(name) in parts:
                hint = f"; {FITTING}" if part_of(name) in parts else ""
                raise UserError(
                    f"config.init_from.checkpoint={path} has no parameter {name}, which the model needs{hint}"
                )
            report.initial.append(name)
            continue
        value = np.asarray(source[origins[name]], np.float32)
        if name == POSITIONS and value.shape != shape:
            family = image_family(config.image_encoder.kind)
            value = family.resize_positions(value, rows=shape[1], encoder=config.image_encoder)
            report.resized.append(f"{name} {source[name].shape} -> {value.shape}")
        if value.shape != shape:
            if part_of(name) not in REQUIRED:
                report.initial.append(name)
                report.not_used.setdefault("of another shape than this task's", []).append(name)
                continue
            raise UserError(
                f"config.init_from.checkpoint={path} has {name} with the shape {value.shape}, the model {shape}; "
                + FITTING
            )
        params[name] = value
    report.tensors = len({origins[name] for name in params})
    report.parameters = sum(value.size for value in params.values())
    unused = sorted(set(source) - set(origins.values()))
    if unused:
        report.not_used["this task has no such part"] = unused
    return start_weights(params, [report], shapes=wanted)


def _read(directory: Path) -> tuple[Flat, ConfigDict, int | None]:
    exported, checkpoints = directory / WEIGHTS, directory / workdir_lib.CHECKPOINTS
    if not (exported.is_file() or checkpoints.is_dir()):
        raise UserError(
            f"config.init_from.checkpoint={directory} is neither the workdir of a run nor a folder that "
            "mvlm weights export wrote"
        )
    origin = workdir_lib.read_config(directory)
    if exported.is_file():
        return read_parameters(exported), origin, None
    params, step = restore_parameters(checkpoints, step=None)
    return params, origin, step


def _origins(wanted: Collection[str], source: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """The name in the checkpoint of what each parameter starts from, and notes for the report.

    Only an answer decoder may start from another part: where the checkpoint has none, from the text cross encoder,
    which is made of the same parts and has learned to tell words from an image (ALBEF, arXiv 2107.07651, starts its
    decoder from its multimodal encoder). Where depths differ, blocks are taken more than once or left out, evenly and
    in their order; the last one comes last.
    """
    part = "answer_decoder" if _depth("answer_decoder", source) else "text_cross_encoder"
    layers, there = _depth("answer_decoder", wanted), _depth(part, source)
    blocks = [math.ceil((index + 1) * there / layers) - 1 for index in range(layers)]
    origins = {name: name for name in wanted}
    for name in wanted:
        if found := re.match(r"answer_decoder/block_(\d+)/(.*)", name):
            origins[name] = f"{part}/block_{blocks[int(found[1])]}/{found[2]}"
        elif name.startswith("answer_decoder/final_norm/"):
            origins[name] = name.replace("answer_decoder", part)
    if all(name == there for name, there in origins.items()):
        return origins, []
    return origins, [f"the blocks of answer_decoder start from those of {part}: {', '.join(map(str, blocks))}"]


def _depth(part: str, names: Collection[str]) -> int:
    return len({found[0] for name in names if (found := re.match(rf"{part}/block_\d+/", name))})


def _check_same(origin: ConfigDict, config: ConfigDict, *, parts: Collection[str], path: str) -> None:
    there, here = dict(config_lib.flatten(origin)), dict(config_lib.flatten(config))
    for name in (*SAME, *(name for name, part in SAME_FOR.items() if part in parts)):
        if there[name] != here[name]:
            raise UserError(
                f"config.init_from.checkpoint={path} was trained with config.{name}={there[name]!r}, not "
                f"{here[name]!r}; its parameters mean something else here"
            )
