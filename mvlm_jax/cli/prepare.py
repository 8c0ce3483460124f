"""Turns a collection of captioned images into the ArrayRecord files that runs read, with a manifest.

    mvlm prepare --dataset=shapes --data_dir=data
    mvlm prepare --dataset=flickr8k --source=downloads/flickr8k --data_dir=data
    mvlm prepare --dataset=mine --source=json:pairs.json --data_dir=data
    mvlm prepare --dataset=mine --source=train=table:train.csv --source=val=table:val.csv --data_dir=data

Images that cannot be used are left out and counted by reason in the manifest. What is interrupted leaves nothing that
looks finished; the same command continues it.

With --check nothing is prepared. check.html and check.json, in reports/DATASET, list what is wrong with the images, the
captions and the ids, and which images are in two splits or in an evaluation set. The exit status is 1 where --policy
stops.

    mvlm prepare --check --dataset=mine --source=json:pairs.json --against=coco='json:dataset_coco.json?split=test'

With --preview a page, reports/preview/preview.html, shows the batch of a step of a run: its images as augmented, its
captions, and the masks.

    mvlm prepare --preview --config=demo --config.data.data_dir=data --step=100

With --runner an Apache Beam pipeline writes the same files, on this machine or on a cluster, also to a bucket;
--beam.NAME=VALUE are options of Beam. docs/preparing_at_scale.md has the commands for Dataflow and Spark.

    mvlm prepare --dataset=mine --source=json:pairs.json --data_dir=data --runner=direct \\
      --beam.direct_running_mode=multi_processing --beam.direct_num_workers=4
"""

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from mvlm_jax import config as config_lib
from mvlm_jax.cli import commands
from mvlm_jax.data import stores
from mvlm_jax.data.builders.registry import KNOWN, collect, evaluation_sets
from mvlm_jax.data.collection import Collection, PairCodec
from mvlm_jax.data.formats.texts import read_text
from mvlm_jax.data.paths import local_path
from mvlm_jax.data.sources import resolved_data_dir
from mvlm_jax.data.text import Tokenizer
from mvlm_jax.data.writing import beam
from mvlm_jax.data.writing.dataset import summary, write_to
from mvlm_jax.data.writing.place import MANIFEST, Directory, Place, StorePrefix
from mvlm_jax.data.writing.plan import Engine
from mvlm_jax.data.writing.processes import Processes
from mvlm_jax.data.writing.shards import ImageChecks, is_of_writing
from mvlm_jax.doctor.check import Limits, check_collection, tokenizer_for
from mvlm_jax.doctor.faults import GROUPS, parse_policy
from mvlm_jax.errors import RunError, UserError
from mvlm_jax.files import user_path
from mvlm_jax.interop.families import text_family
from mvlm_jax.report import dataset as report
from mvlm_jax.report.batch import PREVIEW, write_preview
from mvlm_jax.tasks.pretrain import Pretrain
from mvlm_jax.tasks.registry import open_task, task_type
from mvlm_jax.tasks.tokenizer import TOKENIZER_FILE

MODES = {  # that a flag is used in, of the flags that not all modes use
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
    "runner": ("prepare",),
}
BEAM = "beam."  # before the names of Beam's own options
REPORTS = "reports"  # in the current directory, where no other place is given
IN_RECIPE = {"data_dir": "data_dir", "dataset": "train", "source": "train"}  # what --preview takes from --config


def prepare(
    *,
    dataset: str,
    sources: Sequence[str],
    data_dir: Path | str,
    engine: Engine | None = None,
    checks: ImageChecks | None = None,
    licence: str = "",
) -> Place:
    """Writes a dataset and returns where it is; does nothing where it is already there.

    Args:
      sources: a directory of published files, or URIs, each with `split=` before it (`train` where it has none).
      data_dir: a directory, or a URL in a store.
      engine: what writes the shards; None: processes of this machine.

    Raises:
      UserError: an unknown dataset, a wrong source, another `prepare` at work, or a `data_dir` that cannot be
        written.
    """
    collection = collect(dataset, sources=sources, data_dir=data_dir)
    url = str(data_dir).rstrip("/")
    place = StorePrefix(f"{url}/{dataset}") if stores.is_url(url) else Directory(Path(data_dir) / dataset)
    try:
        write_to(place, collection, name=dataset, engine=engine or Processes(), checks=checks, licence=licence)
    except (OSError, RuntimeError) as error:
        if not is_of_writing(error):
            raise
        raise UserError(f"--data_dir={str(data_dir)!r} cannot be written: {error}") from error
    return place


def _main(values: flags.FlagValues) -> None:
    mode = _mode(values)
    if mode == "preview":
        _preview(values)
        return
    if values.dataset is None:
        raise UserError(f"--dataset is missing; give {KNOWN}, or a new name")
    if mode == "check":
        _check(values, resolved_data_dir(values.data_dir).absolute())
        return
    data_dir = values.data_dir if stores.is_url(values.data_dir) else resolved_data_dir(values.data_dir).absolute()
    try:
        place = prepare(
            dataset=values.dataset,
            sources=values.source,
            data_dir=data_dir,
            engine=_engine(values, data_dir=str(data_dir)),
            checks=ImageChecks(max_side=values.max_side, quality=values.quality),
            licence=read_text(user_path(values.licence), what="--licence") if values.licence else "",
        )
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("interrupted; the same command continues") from interrupt
    for line in summary(place.manifest() or {}):
        print(line)
    print(f"manifest: {place.name}/{MANIFEST}")


def _engine(values: flags.FlagValues, *, data_dir: str) -> Engine:
    options = list(_beam_options(values))
    if not values.runner:
        if options:
            name = options[0].partition("=")[0].replace("--", "--beam.", 1)
            raise UserError(f"{name} is used only with --runner={'|'.join(beam.RUNNERS)}")
        return Processes(values.workers)
    if values["workers"].present:
        raise UserError(
            "--workers is not used with --runner; give Beam's own option, such as --beam.direct_num_workers=4 or "
            "--beam.max_num_workers=100"
        )
    beam.parse_options(options, runner=values.runner)  # before the source is read
    opener = functools.partial(collect, values.dataset, sources=list(values.source), data_dir=data_dir)
    return beam.Pipeline(values.runner, options, opener)


def _beam_options(values: flags.FlagValues) -> Iterator[str]:
    """The options of Beam as it takes them."""
    for name in values:
        if name.startswith(BEAM):
            for value in values[name].value or ():
                yield f"--{name.removeprefix(BEAM)}" + (f"={value}" if value else "")


def _check(values: flags.FlagValues, data_dir: Path) -> None:
    """Checks a collection, and writes and summarises the report."""
    config = commands.checked_config(values) if values["config"].present else config_lib.default()
    directory, policy = _report_dir(values, values.dataset), parse_policy(values.policy)
    collection = collect(values.dataset, sources=values.source, data_dir=str(data_dir))
    if not isinstance(collection.codec, PairCodec):
        raise UserError(f"--check looks at images with captions; --dataset={values.dataset} has none")
    against = evaluation_sets(values.against, splits=collection.splits, data_dir=data_dir)
    limits = Limits(
        max_pixels=config.data.max_image_pixels, image_size=config.image.size, max_length=config.text.max_length
    )
    tokenizer = _tokenizer(config, collection)
    result = check_collection(collection, limits=limits, tokenizer=tokenizer, against=against, threads=values.workers)
    stops = report.write_report(
        result, directory=directory, name=values.dataset, collection=collection, against=against, policy=policy
    )
    for line in report.summary(result, stops=list(stops)):
        print(line)
    print(f"report: {directory / report.HTML}")
    if stops:
        raise RunError(f"--policy={values.policy} stops at {report.listed(stops)}; see {directory / report.HTML}")


def _tokenizer(config: ConfigDict, collection: Collection) -> Tokenizer | None:
    if config.text.tokenizer or config.init_from.checkpoint or config.init_from.text:
        return task_type(config).open_tokenizer(config, workdir=None)
    kind = text_family(config.text_encoder.kind).tokenizer
    return tokenizer_for(collection, kind=kind, vocab_size=config.text_encoder.vocab_size)


def _preview(values: flags.FlagValues) -> None:
    config = commands.checked_config(values)
    directory = _report_dir(values, "preview")
    if not issubclass(task_type(config), Pretrain):
        raise UserError(f"--preview shows image-text pairs; config.task={config.task} is not trained on pairs")
    # The batches of a run do not depend on these.
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = -1, 1, 1
    config.data.workers, config.data.prefetch = 0, 1
    task = open_task(config, workdir=_workdir(values))
    assert isinstance(task, Pretrain)
    print(f"preview: {write_preview(task, directory=directory, step=values.step, examples=values.examples)}")


def _mode(values: flags.FlagValues) -> str:
    if values.check and values.preview:
        raise UserError("--check and --preview exclude each other; give one of them")
    mode = "check" if values.check else "preview" if values.preview else "prepare"
    for name, modes in MODES.items():
        if values[name].present and mode not in modes:
            if mode == "prepare":
                raise UserError(f"--{name} is used only with {' or '.join(f'--{other}' for other in modes)}")
            raise UserError(f"--{name} is not used with --{mode}")
    for name in values:
        if name.startswith(BEAM) and mode != "prepare":
            raise UserError(f"--{name} is not used with --{mode}")
    if mode == "preview":
        for name, field in IN_RECIPE.items():
            if values[name].present:
                raise UserError(f"--{name} is not used with --preview; set --config.data.{field}=… instead")
        if not values["config"].present:
            raise UserError("--preview needs --config, the recipe of the run, for example --config=demo")
    return mode


def _report_dir(values: flags.FlagValues, name: str) -> Path:
    """Below the current directory by default: a dataset's own is left as it was prepared."""
    return local_path(values.report_dir or f"{REPORTS}/{name}", name="--report_dir")


def _workdir(values: flags.FlagValues) -> Path | None:
    if values.workdir and not (values.workdir / TOKENIZER_FILE).is_file():
        raise UserError(f"--workdir={values.workdir} is not the workdir of a run: there is no {TOKENIZER_FILE} in it")
    return values.workdir


def _define_flags(values: flags.FlagValues, argv: Sequence[str]) -> None:
    text, several, whole_number, switch = (
        functools.partial(define, flag_values=values)
        for define in (flags.DEFINE_string, flags.DEFINE_multi_string, flags.DEFINE_integer, flags.DEFINE_boolean)
    )
    text("dataset", None, f"What to prepare: {KNOWN}, or a new name.")
    several("source", [], "Directory of the published files, or [split=]URI; may be repeated.")
    text(
        "data_dir",
        "",
        "Where to write, a directory or a URL as gs://BUCKET/data; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets.",
    )
    whole_number(
        "workers", 0, "Processes (with --check: threads); 0: one a CPU, none for a small collection.", lower_bound=0
    )
    whole_number("max_side", 0, "Larger images are scaled down to so many pixels a side; 0: none is.", lower_bound=0)
    whole_number("quality", 90, "Of the JPEG that --max_side makes.", lower_bound=1, upper_bound=95)
    text("licence", "", "Text file that goes into the manifest.")
    flags.DEFINE_enum(
        "runner", None, list(beam.RUNNERS), "What runs an Apache Beam pipeline that writes the files; default: none, "
        "processes of this machine write them. --beam.NAME=VALUE is an option of Beam, --beam.NAME a switch.",
        flag_values=values,
    )  # fmt: skip
    _define_beam_options(values, argv)
    switch("check", False, "Look for faults instead of preparing.")
    text(
        "policy",
        "errors",
        f"With --check: which faults stop. {', '.join(GROUPS)}, or names of faults, joined by commas, each with how "
        "many are allowed: errors,missing:1%,duplicate:10. A wrong name is answered with all of them.",
    )
    several("against", [], "With --check: NAME=URI of an evaluation set that should share no image; may be repeated.")
    switch("preview", False, "Show the batch of a step of --config instead of preparing.")
    whole_number("step", 0, "With --preview: which step; the first one is 0.", lower_bound=0)
    whole_number("examples", 24, "With --preview: how many pairs.", lower_bound=1)
    commands.define_path(values, "workdir", "With --preview: the run whose tokenizer is used; default: a new run's.")
    text(
        "report_dir",
        "",
        f"Where {report.JSON} and {report.HTML} go (default: {REPORTS}/DATASET), or {PREVIEW} (default: "
        f"{REPORTS}/preview).",
    )
    commands.define_config(values, argv, required=False)


def _define_beam_options(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """A flag for each of Beam's options that is given; Beam itself knows which there are."""
    for word in argv:
        given = re.match(rf"--?{re.escape(BEAM)}(\w+)(=?)", word)
        if given and f"{BEAM}{given[1]}" not in values:
            if given[1] == "runner":
                raise UserError(f"--beam.runner is --runner here, one of {', '.join(beam.RUNNERS)}")
            flags.DEFINE_multi_string(f"{BEAM}{given[1]}", [], "An option of Beam.", flag_values=values)


def run(argv: Sequence[str]) -> int:
    # A switch of Beam takes no value, where a flag of absl needs one.
    argv = [f"{word}=" if re.fullmatch(rf"--?{re.escape(BEAM)}\w+", word) else word for word in argv]
    return commands.run(name="prepare", doc=__doc__, define_flags=_define_flags, main=_main, argv=argv)
