"""Turns a collection of captioned images into the ArrayRecord files that runs read, with a manifest.

    mvlm prepare --dataset=shapes --data_dir=data
    mvlm prepare --dataset=flickr8k --source=downloads/flickr8k --data_dir=data
    mvlm prepare --dataset=mine --source=json:pairs.json --data_dir=data
    mvlm prepare --dataset=mine --source=train=table:train.csv --source=val=table:val.csv --data_dir=data

Images that cannot be used are left out and counted by reason in the manifest. What is interrupted leaves nothing that
looks finished; the same command continues it.

With --check nothing is prepared: every example is looked at, and check.html and check.json say what is wrong with the
images, the captions and the ids, and which images are in two splits or in an evaluation set. Status 1 where --policy
stops at what was found.

    mvlm prepare --check --dataset=mine --source=json:pairs.json --against=coco=json:dataset_coco.json?split=test

With --preview a page shows what a step of a run sees: its images as augmented, its captions, and the masks.

    mvlm prepare --preview --config=configs/demo.py --config.data.data_dir=data --step=100
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from mvlm_jax import config as config_lib
from mvlm_jax.cli import commands
from mvlm_jax.data.builders import fetched, flickr8k, karpathy, pairs4m, shapes, shapes_tasks, visual_genome
from mvlm_jax.data.codecs import PairCodec
from mvlm_jax.data.collection import Collection
from mvlm_jax.data.formats.texts import decoded
from mvlm_jax.data.images import UnusableImage
from mvlm_jax.data.paths import local_path
from mvlm_jax.data.sources import OPENERS, Source, open_source, resolved_data_dir, source_files
from mvlm_jax.data.text import Tokenizer, train_tokenizer
from mvlm_jax.data.writing.dataset import MANIFEST, read_manifest, write_dataset
from mvlm_jax.data.writing.shards import ImageChecks
from mvlm_jax.doctor.checkup import Limits, examine
from mvlm_jax.doctor.faults import GROUPS, parse_policy
from mvlm_jax.errors import RunError, UserError
from mvlm_jax.files import user_path, write_text
from mvlm_jax.interop.families import text_family
from mvlm_jax.report import dataset as report
from mvlm_jax.report.batch import preview_page
from mvlm_jax.tasks.configured import TOKENIZER_FILE
from mvlm_jax.tasks.from_config import LABELLED, make_task, open_tokenizer
from mvlm_jax.tasks.pretrain import Pretrain

# Collections that need no files.
DRAWN: dict[str, Callable[[], Collection]] = {
    "shapes": shapes.collection,
    **{name: functools.partial(shapes_tasks.collection, name) for name in shapes_tasks.TASKS},
}
# Collections read from the files that they are published as.
BUILDERS: dict[str, Callable[[Path], Collection]] = {
    "flickr8k": flickr8k.collection,
    "flickr30k": karpathy.flickr30k,
    "coco": karpathy.coco,
    "cc3m": fetched.cc3m,
    "sbu": fetched.sbu,
    "visual_genome": visual_genome.collection,
    "pairs4m": pairs4m.collection,
}
KNOWN = ", ".join([*DRAWN, *BUILDERS])
TOKENIZER_EXAMPLES = 20_000  # whose captions a tokenizer is trained on, to measure lengths with
PREVIEW = "preview.html"
ONLY_WITH = {  # flags that say nothing without another one
    "config": ("check", "preview"),
    "report_dir": ("check", "preview"),
    "policy": ("check",),
    "against": ("check",),
    "workdir": ("preview",),
    "step": ("preview",),
    "examples": ("preview",),
    "max_side": ("prepare",),
    "quality": ("prepare",),
    "licence": ("prepare",),
    "workers": ("check", "prepare"),
}
IN_RECIPE = {"data_dir": "data_dir", "dataset": "train", "source": "train"}  # what --preview takes from --config


def prepare(
    *,
    dataset: str,
    sources: Sequence[str],
    data_dir: Path,
    workers: int = 0,
    checks: ImageChecks | None = None,
    licence: str = "",
) -> Path:
    """Writes a dataset and returns its directory; does nothing where it is already there.

    Args:
      sources: a directory of published files, or URIs, each with `split=` before it (`train` where it has none).
      workers: processes; 0: one a core where the collection is worth it.

    Raises:
      UserError: an unknown dataset, a wrong source, another `prepare` at work, or a `data_dir` that cannot be
        written.
    """
    collection = collect(dataset, sources=sources, data_dir=data_dir)
    try:
        return write_dataset(
            collection, name=dataset, data_dir=data_dir, workers=workers, checks=checks, licence=licence
        )
    except (OSError, RuntimeError) as error:
        # The ArrayRecord writer raises RuntimeError where a file of Python's own would raise OSError.
        if isinstance(error, RuntimeError) and "write() failed" not in str(error):
            raise
        raise UserError(f"--data_dir={str(data_dir)!r} cannot be written: {error}") from error


def collect(dataset: str, *, sources: Sequence[str], data_dir: Path) -> Collection:
    """The collection that `--dataset` and `--source` describe.

    Raises:
      UserError: they describe none.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", dataset):
        raise UserError(f"--dataset={dataset!r} must be lower-case letters, digits and _, for example my_pairs")
    uris = dict(map(_split_and_uri, sources))
    if sources and all(uris.values()):
        if len(uris) < len(sources):
            raise UserError(f"--source names a split twice; splits are {', '.join(uris)}: write --source=SPLIT=URI")
        if "all" in uris:
            raise UserError("--source names a split 'all', which stands for all splits together; choose another name")
        return Collection(
            splits={split: open_source(uri, data_dir=str(data_dir)) for split, uri in uris.items()},
            source=", ".join(f"{split}={uri}" for split, uri in uris.items()),
            files=tuple(file for uri in uris.values() for file in source_files(uri)),
        )
    if dataset in DRAWN:
        if sources:
            raise UserError(
                f"--source={sources[0]!r} has no use with --dataset={dataset}, which is drawn; leave it out"
            )
        return DRAWN[dataset]()
    forms = ", ".join(f"{scheme}:" for scheme in OPENERS)
    if dataset not in BUILDERS:
        raise UserError(
            f"--dataset={dataset!r} is not one of {KNOWN}; any other needs --source=URI with one of {forms}"
        )
    if len(sources) != 1:
        raise UserError(f"--dataset={dataset} needs one --source, the directory that holds the published files")
    return BUILDERS[dataset](local_path(sources[0], name="--source").absolute())


def check(
    *,
    dataset: str,
    sources: Sequence[str],
    data_dir: Path,
    config: ConfigDict,
    against: Sequence[str] = (),
    policy: str = "errors",
    report_dir: Path,
    threads: int = 0,
) -> None:
    """Looks at every example of a collection and writes `check.json` and `check.html`.

    Args:
      sources: as in `prepare`.
      config: the run that the data is meant for.
      against: evaluation sets, each as `name=URI`, that should share no image with the collection.
      policy: what stops, as `kinds.parse_policy` reads it.

    Raises:
      RunError: the policy stops at what was found.
      UserError: a wrong source, evaluation set, tokenizer or policy, or a `report_dir` that cannot be written.
    """
    rules = parse_policy(policy)
    collection = collect(dataset, sources=sources, data_dir=data_dir)
    if not isinstance(collection.codec, PairCodec):
        raise UserError(f"--check looks at images with captions; --dataset={dataset} has none")
    held_out = _evaluation_sets(against, splits=collection.splits, data_dir=data_dir)
    limits = Limits(
        max_pixels=config.data.max_image_pixels, image_size=config.image.size, max_length=config.text.max_length
    )
    tokenizer = _tokenizer(config, collection)
    checkup = examine(collection, limits=limits, tokenizer=tokenizer, against=held_out, threads=threads)
    stops = report.write_report(
        checkup, directory=report_dir, name=dataset, collection=collection, against=held_out, policy=rules
    )
    for line in report.summary(checkup, stops=list(stops)):
        print(line)
    print(f"report: {report_dir / report.HTML}")
    if stops:
        raise RunError(f"--policy={policy} stops at {report.listed(stops)}; see {report_dir / report.HTML}")


def preview(*, config: ConfigDict, workdir: Path | None, step: int, examples: int, report_dir: Path) -> Path:
    """Writes a page of the first `examples` pairs of a step's batch, and returns its path.

    Args:
      workdir: of the run whose tokenizer is taken; None: the one that a new run would have.

    Raises:
      UserError: a source or tokenizer that does not fit the config, or a `report_dir` that cannot be written.
    """
    if config.task in LABELLED:
        raise UserError(f"--preview shows the pairs of pretrain and retrieval; config.task={config.task} has none")
    # How a run is carried out does not change its batches.
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = -1, 1, 1
    config.data.workers, config.data.prefetch = 0, 1
    task = make_task(config, workdir=workdir)
    assert isinstance(task, Pretrain)
    html = preview_page(task, step=step, examples=examples)
    try:
        report_dir.mkdir(parents=True, exist_ok=True)
        write_text(report_dir / PREVIEW, html, errors="replace")
    except OSError as error:
        raise UserError(f"the page cannot be written to {str(report_dir)!r}: {error.strerror}") from error
    return report_dir / PREVIEW


def _evaluation_sets(against: Sequence[str], *, splits: Mapping[str, Source], data_dir: Path) -> dict[str, Source]:
    uris = [_split_and_uri(text, default="") for text in against]
    for text, (name, uri) in zip(against, uris):
        if not name or not uri:
            raise UserError(f"--against={text!r} is not NAME=URI, for example coco=json:dataset_coco.json?split=test")
    names = [*splits, *(name for name, _ in uris)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"--against: {twice!r} is the name of a split or of another evaluation set; choose another")
    return {name: open_source(uri, data_dir=str(data_dir)) for name, uri in uris}


def _tokenizer(config: ConfigDict, collection: Collection) -> Tokenizer | None:
    if config.text.tokenizer or config.init_from.checkpoint or config.init_from.text:
        return open_tokenizer(config, workdir=None)
    splits = collection.splits
    captions = list(_some_captions(splits["train"] if "train" in splits else next(iter(splits.values()))))
    if not any(map(str.strip, captions)):
        return None
    kind = text_family(config.text_encoder.kind).tokenizer
    return train_tokenizer(captions, kind=kind, vocab_size=config.text_encoder.vocab_size)


def _some_captions(source: Source) -> Iterator[str]:
    for index in range(0, len(source), -(-len(source) // TOKENIZER_EXAMPLES) or 1):
        try:
            yield from source[index]["captions"]
        except UnusableImage:
            continue


def _split_and_uri(source: str, *, default: str = "train") -> tuple[str, str]:
    found = re.fullmatch(rf"(?:(\w+)=)?((?:{'|'.join(OPENERS)}):.*)", source)
    return (found[1] or default, found[2]) if found else (source, "")


def summary(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Lines that say what was written and what was left out."""
    for split, counts in manifest["splits"].items():
        captioned = f"images, {counts['captions']} captions" if counts["captions"] else "examples"
        yield f"{split}: {counts['examples']} {captioned}"
        yield from _skips(counts["skipped"])
    yield from _skips(manifest["lines_left_out"])


def _skips(skipped: Mapping[str, Any]) -> Iterator[str]:
    for reason, left_out in skipped.items():
        more = ", …" if left_out["count"] > len(left_out["ids"]) else ""
        yield f"  left out, {reason}: {left_out['count']} ({', '.join(left_out['ids'])}{more})"


def _main(values: flags.FlagValues) -> None:
    mode = _mode(values)
    if mode == "preview":
        config = commands.checked_config(values)
        path = preview(
            config=config,
            workdir=_workdir(values),
            step=values.step,
            examples=values.examples,
            report_dir=_report_dir(values, resolved_data_dir(config.data.data_dir)),
        )
        print(f"preview: {path}")
        return
    if values.dataset is None:
        raise UserError(f"--dataset is missing; give {KNOWN}, or a new name")
    data_dir = resolved_data_dir(values.data_dir).absolute()
    if mode == "check":
        check(
            dataset=values.dataset,
            sources=values.source,
            data_dir=data_dir,
            config=commands.checked_config(values) if values["config"].present else config_lib.default(),
            against=values.against,
            policy=values.policy,
            report_dir=_report_dir(values, data_dir / values.dataset),
            threads=values.workers,
        )
        return
    try:
        directory = prepare(
            dataset=values.dataset,
            sources=values.source,
            data_dir=data_dir,
            workers=values.workers,
            checks=ImageChecks(max_side=values.max_side, quality=values.quality),
            licence=_licence(values.licence),
        )
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("interrupted; the same command continues") from interrupt
    for line in summary(read_manifest(directory)):
        print(line)
    print(f"manifest: {directory / MANIFEST}")


def _mode(values: flags.FlagValues) -> str:
    if values.check and values.preview:
        raise UserError("--check and --preview are two commands; give one of them")
    mode = "check" if values.check else "preview" if values.preview else "prepare"
    for name, modes in ONLY_WITH.items():
        if values[name].present and mode not in modes:
            wanted = " or ".join("no other" if other == "prepare" else f"--{other}" for other in modes)
            raise UserError(f"--{name} has a use only with {wanted}")
    if mode == "preview":
        for name, field in IN_RECIPE.items():
            if values[name].present:
                raise UserError(f"--{name} has no use with --preview; the recipe says it: --config.data.{field}=…")
        if not values["config"].present:
            raise UserError("--preview needs --config, the recipe of the run, for example --config=configs/demo.py")
    return mode


def _report_dir(values: flags.FlagValues, default: Path) -> Path:
    return local_path(values.report_dir, name="--report_dir") if values.report_dir else default


def _workdir(values: flags.FlagValues) -> Path | None:
    if values.workdir and not (values.workdir / TOKENIZER_FILE).is_file():
        raise UserError(f"--workdir={values.workdir} is not the workdir of a run: there is no {TOKENIZER_FILE} in it")
    return values.workdir


def _licence(path: str) -> str:
    try:
        return decoded(user_path(path).read_bytes(), errors="strict") if path else ""
    except (OSError, UnicodeError) as error:
        raise UserError(f"--licence={path!r} cannot be read as text: {error}") from error


def _define_flags(values: flags.FlagValues, argv: Sequence[str]) -> None:
    flags.DEFINE_string("dataset", None, f"What to prepare: {KNOWN}, or a new name.", flag_values=values)
    flags.DEFINE_multi_string(
        "source", [], "Directory of the published files, or [split=]URI; may be repeated.", flag_values=values
    )
    flags.DEFINE_string(
        "data_dir", "", "Where to write; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets.", flag_values=values
    )
    flags.DEFINE_integer(
        "workers",
        0,
        "Processes (with --check: threads); 0: one a core, none for a small collection.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_side", 0, "Larger images are scaled down to so many pixels; 0: none is.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_integer(
        "quality", 90, "Of the JPEG that --max_side makes.", lower_bound=1, upper_bound=95, flag_values=values
    )
    flags.DEFINE_string("licence", "", "Text file that goes into the manifest.", flag_values=values)
    flags.DEFINE_boolean("check", False, "Look for faults instead of preparing.", flag_values=values)
    flags.DEFINE_string(
        "policy",
        "errors",
        f"With --check: what stops. {', '.join(GROUPS)}, or kinds of fault (a wrong one is answered with all of them), "
        "joined by commas, each with what is let pass: errors,missing:1%,duplicate:10.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "against",
        [],
        "With --check: NAME=URI of an evaluation set that should share no image; may be repeated.",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "preview", False, "Show what a step of --config sees instead of preparing.", flag_values=values
    )
    flags.DEFINE_integer("step", 0, "With --preview: the first one is 0.", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("examples", 24, "With --preview: so many pairs.", lower_bound=1, flag_values=values)
    commands.define_path(values, "workdir", "With --preview: run whose tokenizer is taken; a new one's by default.")
    flags.DEFINE_string(
        "report_dir",
        "",
        f"Where {report.JSON} and {report.HTML}, or {PREVIEW}, go; empty: where the dataset is, or all are.",
        flag_values=values,
    )
    commands.define_config(values, argv, required=False)


def run(argv: Sequence[str]) -> int:
    return commands.run(name="prepare", doc=__doc__, define_flags=_define_flags, main=_main, argv=argv)
