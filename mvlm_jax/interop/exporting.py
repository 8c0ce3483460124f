"""A trained model as a folder that others can use."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from mvlm_jax import config as config_lib
from mvlm_jax.data.text import Tokenizer
from mvlm_jax.errors import UserError
from mvlm_jax.files import atomically, read_json
from mvlm_jax.interop.families import image_family, text_family
from mvlm_jax.interop.image_family import image_format
from mvlm_jax.interop.model_card import About, model_card
from mvlm_jax.interop.parameters import restore_parameters, within
from mvlm_jax.stores import mirror
from mvlm_jax.training import workdir as workdir_lib

WEIGHTS, CONFIG, TOKENIZER, CARD = "model.safetensors", "config.json", "tokenizer.json", "README.md"


def export_run(
    workdir: str | Path,
    *,
    output: str | Path,
    step: int | None,
    assets: Sequence[str],
    about: About,
    averaged: bool = False,
) -> int:
    """Writes the model of a checkpoint to a new folder and returns its step, the latest one where `step` is None.

    Args:
      assets: files of the run, beside its config and checkpoints, that the model is useless without.
      averaged: whether the moving average of the parameters is exported.

    Raises:
      UserError: no such run, checkpoint or average, or `output` exists.
    """
    directory = mirror.local_path(workdir)
    config = workdir_lib.read_config(directory)
    if averaged and not config.optimizer.ema:
        raise UserError(
            f"--ema: the run in {directory} kept no average of its parameters; it was trained with "
            "config.optimizer.ema=0.0"
        )
    with new_folder(output) as folder:
        params, step = restore_parameters(directory / workdir_lib.CHECKPOINTS, step=step, averaged=averaged)
        tokenizer = Tokenizer.load(directory / TOKENIZER, kind=text_family(config.text_encoder.kind).tokenizer)
        params = {path: np.asarray(value, np.float32, order="C") for path, value in params.items()}
        (folder / CONFIG).write_text(config_lib.to_json(config))
        save_file(params, folder / WEIGHTS, metadata={"format": "mvlm_jax", "step": str(step)})
        # The library lets nobody but the owner read what it writes.
        shutil.copymode(folder / CONFIG, folder / WEIGHTS)
        for name in assets:
            shutil.copy(directory / name, folder / name)
        write_encoders(folder, params, config=config, tokenizer=tokenizer)
        kept = directory / workdir_lib.WEIGHTS
        card = model_card(
            config,
            about,
            step=step,
            parameters=sum(value.size for value in params.values()),
            evaluations={
                stem: evaluation
                for stem, evaluation in workdir_lib.read_evaluations(directory, step=step).items()
                if evaluation.ema == averaged
            },
            weights=read_json(kept) if kept.is_file() else None,
            averaged=averaged,
        )
        (folder / CARD).write_text(card, encoding="utf-8")
    return step


def write_encoders(
    folder: Path, params: Mapping[str, Float[np.ndarray, "..."]], *, config: ConfigDict, tokenizer: Tokenizer | None
) -> None:
    """`image_encoder/` and `text_encoder/` in transformers' naming, of those that `params` holds.

    Args:
      tokenizer: needed where the text encoder is among them.
    """
    image, text = config.image_encoder, config.text_encoder
    if own := within("image_encoder", params):
        image_family(image.kind).write(folder / "image_encoder", own, encoder=image, image=image_format(config))
    if own := within("text_encoder", params):
        assert tokenizer is not None
        text_family(text.kind).write(folder / "text_encoder", own, encoder=text, tokenizer=tokenizer)


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill, moved to `path` when all is written; what fails leaves nothing behind.

    Raises:
      UserError: `path` exists or cannot be written.
    """
    target = mirror.local_path(path).absolute()
    copy = mirror.mirror_of(target)
    try:
        exists = copy.exists() if copy is not None and copy.directory == target else target.exists()
    except OSError as error:
        raise UserError(f"--output={path} cannot be written: {error.strerror}") from error
    if exists:
        raise UserError(f"--output={path} exists already; give a folder that does not")
    try:
        with atomically(target) as folder:
            folder.mkdir(parents=True)
            yield folder
    except OSError as error:
        raise UserError(f"--output={path} cannot be written: {error}") from error
