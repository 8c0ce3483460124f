"""The collections that `mvlm prepare` knows by name."""

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mvlm_jax.data.builders import fetched, flickr8k, karpathy, pairs4m, shapes, shapes_tasks, visual_genome
from mvlm_jax.data.collection import Collection
from mvlm_jax.data.examples import Source
from mvlm_jax.data.paths import local_path
from mvlm_jax.data.sources import CAPTIONED, LABELLED, open_source, source_files
from mvlm_jax.errors import UserError

# Collections that need no files.
DRAWN: dict[str, Callable[[], Collection]] = {
    "shapes": shapes.collection,
    **{name: functools.partial(shapes_tasks.collection, name) for name in shapes_tasks.TASKS},
}
# Collections read from the files that they are published as.
PUBLISHED: dict[str, Callable[[Path], Collection]] = {
    "flickr8k": flickr8k.collection,
    "flickr30k": karpathy.flickr30k,
    "coco": karpathy.coco,
    "cc3m": fetched.cc3m,
    "sbu": fetched.sbu,
    "visual_genome": visual_genome.collection,
    "pairs4m": pairs4m.collection,
}
KNOWN = ", ".join([*DRAWN, *PUBLISHED])


def collect(dataset: str, *, sources: Sequence[str], data_dir: Path | str) -> Collection:
    """The collection that `--dataset` and `--source` describe.

    Args:
      sources: a directory of published files, or URIs, each with `split=` before it (`train` where it has none).

    Raises:
      UserError: they describe none.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", dataset):
        raise UserError(f"--dataset={dataset!r} must be lower-case letters, digits and _, for example my_pairs")
    uris = dict(map(name_and_uri, sources))
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
            raise UserError(f"--dataset={dataset} is drawn and reads no files; leave out --source={sources[0]!r}")
        return DRAWN[dataset]()
    if dataset not in PUBLISHED:
        forms = ", ".join(f"{scheme}:" for scheme in CAPTIONED)
        raise UserError(
            f"--dataset={dataset!r} is not one of {KNOWN}; any other needs --source=URI with one of {forms}"
        )
    if len(sources) != 1:
        raise UserError(f"--dataset={dataset} needs one --source, the directory that holds the published files")
    return PUBLISHED[dataset](local_path(sources[0], name="--source").absolute())


def evaluation_sets(against: Sequence[str], *, splits: Iterable[str], data_dir: Path) -> dict[str, Source]:
    """The sources that `--against` names, each as `NAME=URI`.

    Raises:
      UserError: not of this form, a name that is taken, or a source that cannot be opened.
    """
    uris = [name_and_uri(text, default="") for text in against]
    for text, (name, uri) in zip(against, uris):
        if not name or not uri:
            raise UserError(f"--against={text!r} is not NAME=URI, for example coco=json:dataset_coco.json?split=test")
    names = [*splits, *(name for name, _ in uris)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"--against: {twice!r} is the name of a split or of another evaluation set; choose another")
    return {name: open_source(uri, data_dir=str(data_dir)) for name, uri in uris}


def name_and_uri(text: str, *, default: str = "train") -> tuple[str, str]:
    """`name=URI` in its parts; (`text`, empty) where it ends in no URI."""
    named = re.fullmatch(rf"(?:(\w+)=)?((?:{'|'.join(CAPTIONED | LABELLED)}):.*)", text)
    return (named[1] or default, named[2]) if named else (text, "")
