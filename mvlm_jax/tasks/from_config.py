"""The task that a config describes, with its data opened."""

import functools
from pathlib import Path

from ml_collections import ConfigDict

from mvlm_jax.data.mixtures import Mixture, open_mixture
from mvlm_jax.data.pipeline import TrainExamples, eval_split, train_batches
from mvlm_jax.data.sources import open_source, split_name
from mvlm_jax.data.text import Tokenizer, train_tokenizer
from mvlm_jax.errors import UserError
from mvlm_jax.interop.vocabulary import TOKENIZER_FILES, tokenizer_file
from mvlm_jax.tasks.pretrain import TOKENIZER_FILE, Pretrain
from mvlm_jax.training import hosts
from mvlm_jax.training.mesh import batch_sharding, make_mesh, process_rows
from mvlm_jax.training.task import Task


def make_task(config: ConfigDict, *, workdir: str | Path) -> Task:
    """
    Raises:
      UserError: a source or a tokenizer that is not there, or does not fit the config.
    """
    with hosts.together():
        tokenizer = open_tokenizer(config, workdir=workdir)
    # Each process that finds none trains its own, from the same captions.
    hosts.check_same(tokenizer=tokenizer.to_json())
    return Pretrain(
        config=config,
        tokenizer=tokenizer,
        batches=functools.partial(_batches, config, tokenizer),
        image_ids=functools.partial(_image_ids, config),
        eval_split=functools.partial(_eval_split, config, tokenizer),
        eval_name=split_name(config.data.eval),
    )


def describe_task(config: ConfigDict) -> Task:
    """The task without its data: it has shapes, parameters and a loss, but no batches and nothing to evaluate."""

    def missing(*_):
        raise NotImplementedError("a described task has no data")

    # The special tokens come first in every tokenizer that is trained, whatever it is trained on.
    tokenizer = train_tokenizer(["a caption"], kind=config.text.kind, vocab_size=config.text.vocab_size)
    return Pretrain(
        config=config, tokenizer=tokenizer, batches=missing, image_ids=missing, eval_split=missing, eval_name="none"
    )


def open_tokenizer(config: ConfigDict, *, workdir: str | Path | None) -> Tokenizer:
    """The run's own tokenizer where it has one, else the configured file, else the one beside the text weights that
    the run starts from, else one trained on the training captions.

    Raises:
      UserError: the file is missing, unreadable, or has more tokens than the embedding table has rows.
    """
    text, own = config.text, Path(workdir) / TOKENIZER_FILE if workdir else None
    if own and own.is_file():
        tokenizer = Tokenizer.load(own, kind=text.kind)
    elif text.tokenizer:
        tokenizer = Tokenizer.load(text.tokenizer, kind=text.kind)
    elif config.init_from.text:
        file = tokenizer_file(config.init_from.text)
        if file is None:
            raise UserError(
                f"config.init_from.text={config.init_from.text} brings no {' or '.join(TOKENIZER_FILES)}; "
                "name the tokenizer of these weights in config.text.tokenizer"
            )
        tokenizer = Tokenizer.load(file, kind=text.kind)
    else:
        tokenizer = train_tokenizer(_mixture(config).captions(), kind=text.kind, vocab_size=text.vocab_size)
    if tokenizer.vocab_size > text.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens but config.text.vocab_size={text.vocab_size}; "
            "the embedding table needs a row for each"
        )
    return tokenizer


def _mixture(config: ConfigDict) -> Mixture:
    data = config.data
    return open_mixture(data.train, data_dir=data.data_dir, fraction=data.fraction, fraction_seed=data.fraction_seed)


def _batches(config: ConfigDict, tokenizer: Tokenizer, start_step: int):
    data = config.data
    mesh = make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor)
    return train_batches(
        _mixture(config),
        tokenizer,
        image_size=config.image.size,
        max_length=config.text.max_length,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        rows=process_rows(config.batch_size, batch_sharding(mesh)),
        workers=data.workers,
        prefetch=data.prefetch,
        max_image_pixels=data.max_image_pixels,
        **data.augment,
    )


def _image_ids(config: ConfigDict, step: int) -> list[str]:
    data = config.data
    examples = TrainExamples(
        mixture=_mixture(config),
        seed=config.seed,
        image_size=config.image.size,
        max_image_pixels=data.max_image_pixels,
        **data.augment,
    )
    return [examples[index].image_id for index in range(step * config.batch_size, (step + 1) * config.batch_size)]


def _eval_split(config: ConfigDict, tokenizer: Tokenizer):
    return eval_split(
        open_source(config.data.eval, data_dir=config.data.data_dir),
        tokenizer,
        max_length=config.text.max_length,
        max_image_pixels=config.data.max_image_pixels,
        image_size=config.image.size,
    )
