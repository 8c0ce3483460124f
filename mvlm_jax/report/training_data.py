"""The data of a run: where it lies, how much there is, and what was left out."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mvlm_jax.data.mixtures import parse_mixture
from mvlm_jax.data.sources import parse_uri, prepared_dir
from mvlm_jax.data.writing.dataset import MANIFEST, read_manifest
from mvlm_jax.errors import UserError
from mvlm_jax.report.origin import size


@dataclasses.dataclass(frozen=True)
class Part:
    """A source that a run is trained or evaluated on."""

    use: str
    uri: str
    weight: float
    facts: list[tuple[str, str]]
    left_out: list[tuple[str, int, str]]  # reason, count, first ids
    problem: str = ""  # why nothing more is known


def parts(config: ConfigDict) -> list[Part]:
    """The sources of the training, then that of the evaluation."""
    sources = [("training", weight, uri) for weight, uri in parse_mixture(config.data.train)]
    return [
        _part(use, weight, uri, config=config) for use, weight, uri in [*sources, ("evaluation", 1.0, config.data.eval)]
    ]


def epochs(config: ConfigDict, data: list[Part]) -> float | None:
    """How often the run goes through its training data; None where the counts are not known."""
    total = 0.0
    for part in data:
        if part.use == "training":
            counts = [int(value.replace(",", "")) for name, value in part.facts if name == "examples"]
            if not counts:
                return None
            total += part.weight * round(counts[0] * config.data.fraction)
    return config.steps * config.batch_size / total if total else None


def _part(use: str, weight: float, uri: str, *, config: ConfigDict) -> Part:
    try:
        scheme, path, _ = parse_uri(uri)
        if scheme != "tfds":
            return Part(use, uri, weight, [], [], "A source that is read as it is has no manifest.")
        name, _, split = path.partition(":")
        directory = prepared_dir(name, data_dir=config.data.data_dir)
        manifest = read_manifest(directory)
    except UserError as error:
        return Part(use, uri, weight, [], [], f"{error}. Another place is given by --config.data.data_dir=DIR.")
    except (OSError, ValueError):
        return Part(use, uri, weight, [("directory", str(directory))], [], f"There is no {MANIFEST} that can be read.")
    return _prepared(use, weight, uri, directory=directory, manifest=manifest, split=split.partition("[")[0])


def _prepared(use: str, weight: float, uri: str, *, directory: Path, manifest: Mapping[str, Any], split: str) -> Part:
    facts = [("directory", str(directory)), ("made from", str(manifest.get("source", "")))]
    counts = manifest.get("splits", {}).get(split, {})
    facts += [(name, f"{counts[name]:,}") for name in ("examples", "captions") if counts.get(name)]
    if counts.get("shards"):
        files = counts["shards"]
        facts.append(("files", f"{len(files):,}, {size(sum(shard['bytes'] for shard in files))}"))
    facts += [("licence", manifest["licence"].strip().splitlines()[0])] if manifest.get("licence", "").strip() else []
    left_out = {
        **counts.get("skipped", {}),
        **{f"{name} (line)": one for name, one in manifest.get("lines_left_out", {}).items()},
    }
    return Part(
        use,
        uri,
        weight,
        facts,
        [(reason, one["count"], ", ".join(one["ids"][:5])) for reason, one in left_out.items()],
    )
