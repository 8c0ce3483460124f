"""An exported folder becomes a model."""

from pathlib import Path
from typing import Any

import jax

from mvlm_jax import config as config_lib
from mvlm_jax.config import CHOICES
from mvlm_jax.data.text import Tokenizer
from mvlm_jax.errors import UserError
from mvlm_jax.inference.devices import find_device
from mvlm_jax.inference.images import described
from mvlm_jax.inference.model import Inference
from mvlm_jax.inference.texts import checked_number
from mvlm_jax.interop import hub
from mvlm_jax.interop.exporting import CONFIG, TOKENIZER, WEIGHTS
from mvlm_jax.interop.families import text_family
from mvlm_jax.interop.parameters import flat, nested, read_parameters
from mvlm_jax.tasks.model import resolve_compute
from mvlm_jax.tasks.registry import task_type, validate
from mvlm_jax.training.workdir import CHECKPOINTS

NOT_AN_EXPORT = "give a folder that mvlm weights export wrote"


def load(
    folder: str | Path, *, batch_size: int = 32, device: jax.Device | str | None = None, dtype: str | None = None
) -> Inference:
    """As `mvlm_jax.load`."""
    if not isinstance(folder, str | Path) or not str(folder) or "\0" in str(folder):
        raise UserError(f"folder is {described(folder)}; {NOT_AN_EXPORT}")
    checked_number(batch_size, name="batch_size", least=1)
    if dtype is not None and dtype not in CHOICES["dtype"]:
        raise UserError(f"dtype is {described(dtype)}; give one of {', '.join(map(str, CHOICES['dtype']))}")
    where = find_device(device)
    folder = hub.local_path(folder)
    if (folder / CHECKPOINTS).is_dir():
        raise UserError(f"{folder} is a run; export it with mvlm weights export --workdir={folder} --output=FOLDER")
    try:
        text = (folder / CONFIG).read_bytes()
    except OSError as error:
        raise UserError(f"{folder} has no {CONFIG}; {NOT_AN_EXPORT}") from error
    config = config_lib.from_json(text, source=folder / CONFIG)
    try:
        validate(config)
        task = task_type(config)
    except UserError as error:
        raise UserError(f"{folder} cannot be loaded: {error}") from error
    # What was fastest where it was trained may not exist here, and nothing is differentiated but heat maps.
    config.model.attention = config.model.layer_loop = "auto"
    config.model.remat = "none"
    config.dtype = dtype or config.dtype
    resolve_compute(config, backend=where.platform)
    tokenizer = Tokenizer.load(folder / TOKENIZER, kind=text_family(config.text_encoder.kind).tokenizer)
    params = read_parameters(folder / WEIGHTS)
    shapes = {path: leaf.shape for path, leaf in flat(task.parameter_shapes(config)).items()}
    different = sorted(set(shapes) ^ set(params)) or [
        path for path in sorted(shapes) if shapes[path] != params[path].shape
    ]
    if different:
        raise UserError(
            f"{folder / WEIGHTS} does not fit the config.json beside it in {len(different)} parameters, the first is "
            f"{different[0]}; keep the files of one export together"
        )
    opened: Any = task(config=config, tokenizer=tokenizer, **task.read_assets(folder))
    params = jax.device_put(nested(params), None if device is None else where)
    return Inference(task=opened, params=params, batch_size=batch_size)
