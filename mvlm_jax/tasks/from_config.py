"""The task that a config describes, with its data opened."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import jax
from ml_collections import ConfigDict

from mvlm_jax.data.background import in_background
from mvlm_jax.data.images import UnusableImage
from mvlm_jax.data.labelled import LabelledRow, LabelledSource, answer_list
from mvlm_jax.data.labelled_pipeline import (
    Classes,
    LabelledBatches,
    LabelledExamples,
    LabelledSplit,
    WeightedAnswers,
    training_texts,
)
from mvlm_jax.data.labelled_sources import open_labelled, parse_labelled
from mvlm_jax.data.mixtures import Mixture, open_mixture
from mvlm_jax.data.pipeline import TrainExamples, eval_split, train_batches
from mvlm_jax.data.sources import as_file_name, open_source, split_name
from mvlm_jax.data.text import Tokenizer, train_tokenizer
from mvlm_jax.errors import UserError
from mvlm_jax.files import user_path
from mvlm_jax.interop.families import text_family
from mvlm_jax.interop.vocabulary import TOKENIZER_FILES, tokenizer_file
from mvlm_jax.models.compute import check_attention
from mvlm_jax.tasks.classification import ClassificationTask
from mvlm_jax.tasks.configured import TOKENIZER_FILE
from mvlm_jax.tasks.entailment import Entailment
from mvlm_jax.tasks.model import compute_of, images_of
from mvlm_jax.tasks.nlvr2 import Nlvr2
from mvlm_jax.tasks.pretrain import Pretrain
from mvlm_jax.tasks.retrieval import Retrieval
from mvlm_jax.tasks.vqa import ANSWERS_FILE, Vqa
from mvlm_jax.training import hosts
from mvlm_jax.training.mesh import batch_sharding, make_mesh, process_rows
from mvlm_jax.training.task import Task

CLASSIFYING: dict[str, type[ClassificationTask]] = {"nlvr2": Nlvr2, "entailment": Entailment}
LABELLED: dict[str, Callable[..., Task]] = {"vqa": Vqa, **CLASSIFYING}


def make_task(config: ConfigDict, *, workdir: str | Path | None) -> Task:
    """
    Args:
      workdir: of the run whose tokenizer and answers are taken, where it has them; None: of no run.

    Raises:
      UserError: a source, a tokenizer or a list of answers that is not there, or does not fit the config; an attention
        kernel that this platform does not have.
    """
    check_attention(compute_of(config), platform=jax.default_backend())
    with hosts.together():
        tokenizer = open_tokenizer(config, workdir=workdir)
    # Each process that finds none trains its own, from the same captions.
    hosts.check_same(tokenizer=tokenizer.to_json())
    if config.task not in LABELLED:
        task = Retrieval if config.task == "retrieval" else Pretrain
        return task(
            config=config,
            tokenizer=tokenizer,
            batches=functools.partial(_batches, config, tokenizer),
            batch_ids=functools.partial(_image_ids, config),
            eval_split=functools.partial(_eval_split, config, tokenizer),
            eval_name=split_name(config.data.eval),
        )
    with hosts.together():
        answers = _answers(config, workdir=workdir) if config.task == "vqa" else {}
    hosts.check_same(answers=json.dumps(answers))
    return LABELLED[config.task](
        config=config,
        tokenizer=tokenizer,
        batches=functools.partial(_labelled_batches, config, tokenizer),
        batch_ids=functools.partial(_example_ids, config, tokenizer),
        eval_split=functools.partial(_labelled_split, config, tokenizer),
        eval_name=as_file_name(parse_labelled(config.data.eval)[2]),
        **answers,
    )


def describe_task(config: ConfigDict) -> Task:
    """The task without its data: it has shapes, parameters and a loss, but no batches and nothing to evaluate."""

    def missing(*_):
        raise NotImplementedError("a described task has no data")

    # The special tokens come first in every tokenizer that is trained, whatever it is trained on.
    tokenizer = train_tokenizer(
        ["a caption"], kind=text_family(config.text_encoder.kind).tokenizer, vocab_size=config.text_encoder.vocab_size
    )
    described: Callable[..., Task] = LABELLED.get(config.task, Retrieval if config.task == "retrieval" else Pretrain)
    return described(
        config=config,
        tokenizer=tokenizer,
        batches=missing,
        batch_ids=missing,
        eval_split=missing,
        eval_name="none",
        **({"answers": ("yes",)} if config.task == "vqa" else {}),
    )


def open_tokenizer(config: ConfigDict, *, workdir: str | Path | None) -> Tokenizer:
    """The run's own tokenizer where it has one, else the configured file, else the one beside the weights that the run
    starts from, else one trained on the texts of the training source.

    Raises:
      UserError: the file is missing, unreadable, or has more tokens than the embedding table has rows; or the run has
        checkpoints, but its tokenizer has gone.
    """
    kind = text_family(config.text_encoder.kind).tokenizer
    text, own = config.text, Path(workdir) / TOKENIZER_FILE if workdir else None
    if own and own.is_file():
        tokenizer = Tokenizer.load(own, kind=kind)
    elif own and any(own.parent.glob("checkpoints/[0-9]*")):
        # Parameters mean nothing with another vocabulary.
        raise UserError(f"{workdir} has checkpoints but no {TOKENIZER_FILE}; put the one of this run back")
    elif text.tokenizer:
        tokenizer = Tokenizer.load(text.tokenizer, kind=kind)
    elif config.init_from.checkpoint:
        origin = user_path(config.init_from.checkpoint)
        if not (origin / TOKENIZER_FILE).is_file():
            raise UserError(
                f"config.init_from.checkpoint={origin} is neither the workdir of a run nor a folder that mvlm weights "
                f"export wrote: there is no {TOKENIZER_FILE} in it"
            )
        tokenizer = Tokenizer.load(origin / TOKENIZER_FILE, kind=kind)
    elif config.init_from.text:
        file = tokenizer_file(config.init_from.text)
        if file is None:
            raise UserError(
                f"config.init_from.text={config.init_from.text} brings no {' or '.join(TOKENIZER_FILES)}; "
                "name the tokenizer of these weights in config.text.tokenizer"
            )
        tokenizer = Tokenizer.load(file, kind=kind)
    else:
        tokenizer = train_tokenizer(
            _training_texts(config),
            kind=kind,
            vocab_size=config.text_encoder.vocab_size,
        )
    if tokenizer.vocab_size > config.text_encoder.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens but config.text_encoder.vocab_size="
            f"{config.text_encoder.vocab_size}; the embedding table needs a row for each"
        )
    return tokenizer


def _mixture(config: ConfigDict) -> Mixture:
    data = config.data
    return open_mixture(
        data.train,
        data_dir=data.data_dir,
        fraction=data.fraction,
        fraction_seed=data.fraction_seed,
        opener=open_labelled if config.task in LABELLED else open_source,
    )


def _rows(config: ConfigDict) -> tuple[int, ...]:
    """Those of a batch that this process reads."""
    mesh = make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor)
    return tuple(map(int, process_rows(config.batch_size, batch_sharding(mesh))))


def _batches(config: ConfigDict, tokenizer: Tokenizer, start_step: int):
    data = config.data
    return train_batches(
        _mixture(config),
        tokenizer,
        image_size=config.image.size,
        max_length=config.text.max_length,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        rows=_rows(config),
        workers=data.workers,
        prefetch=data.prefetch,
        max_image_pixels=data.max_image_pixels,
        **data.augment,
    )


def _image_ids(config: ConfigDict, step: int) -> list[str]:
    examples = TrainExamples(mixture=_mixture(config), **_made_as(config))
    return [examples[index].image_id for index in _of_step(config, step)]


def _example_ids(config: ConfigDict, tokenizer: Tokenizer, step: int) -> list[str]:
    examples = _labelled_examples(config, tokenizer)
    return [examples[index].example_id for index in _of_step(config, step)]


def _of_step(config: ConfigDict, step: int) -> range:
    return range(step * config.batch_size, (step + 1) * config.batch_size)


def _made_as(config: ConfigDict) -> dict[str, Any]:
    return {
        "seed": config.seed,
        "image_size": config.image.size,
        "max_image_pixels": config.data.max_image_pixels,
        **config.data.augment,
    }


def _eval_split(config: ConfigDict, tokenizer: Tokenizer):
    with hosts.together():
        split = eval_split(
            open_source(config.data.eval, data_dir=config.data.data_dir),
            tokenizer,
            max_length=config.text.max_length,
            max_image_pixels=config.data.max_image_pixels,
            image_size=config.image.size,
            host_bytes=config.eval.host_bytes,
        )
    # Where a host lacks an image, its devices would work on rows of other images than those of the others.
    hosts.check_same(**{"evaluation split": repr([split.image_ids, split.caption_image.tolist()])})
    return split


def _training_texts(config: ConfigDict) -> Iterator[str]:
    return training_texts(_labelled_rows(config)) if config.task in LABELLED else _mixture(config).captions()


def _labelled_rows(config: ConfigDict) -> Iterator[LabelledRow]:
    """Of the training source, as far as the run sees it and can read it."""
    for source, record in _mixture(config).records():
        try:
            yield cast(LabelledSource, source).row(record)
        except UnusableImage:
            continue


def _answers(config: ConfigDict, *, workdir: str | Path | None) -> dict[str, tuple[str, ...]]:
    """The run's own list where it has one, else that of the training questions."""
    own = Path(workdir) / ANSWERS_FILE if workdir else None
    if own and own.is_file():
        return {"answers": tuple(json.loads(own.read_text()))}
    found = answer_list(_labelled_rows(config), size=config.vqa.answer_list)
    if not found:
        raise UserError(f"config.data.train={config.data.train} holds no answers; train on a split that has some")
    return {"answers": tuple(found)}


def _labelled_examples(config: ConfigDict, tokenizer: Tokenizer) -> LabelledExamples:
    options = config.vqa
    targets = (
        WeightedAnswers(tokenizer, slots=options.answers_per_question, length=options.answer_length)
        if config.task == "vqa"
        else Classes(CLASSIFYING[config.task].labels)
    )
    return LabelledExamples(mixture=_mixture(config), targets=targets, images=images_of(config), **_made_as(config))


def _labelled_batches(config: ConfigDict, tokenizer: Tokenizer, start_step: int):
    steps = LabelledBatches(
        _labelled_examples(config, tokenizer),
        tokenizer,
        max_length=config.text.max_length,
        batch_size=config.batch_size,
        rows=_rows(config),
    )
    return in_background(steps, start_step=start_step, workers=config.data.workers, prefetch=config.data.prefetch)


def _labelled_split(config: ConfigDict, tokenizer: Tokenizer) -> LabelledSplit:
    with hosts.together():
        source = open_labelled(config.data.eval, data_dir=config.data.data_dir)
    return LabelledSplit(
        source=source,
        tokenizer=tokenizer,
        images=images_of(config),
        image_size=config.image.size,
        max_length=config.text.max_length,
        max_image_pixels=config.data.max_image_pixels,
    )
