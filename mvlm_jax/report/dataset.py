"""The findings of a check, as JSON for programs and as one HTML page for people."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mvlm_jax.data.collection import Collection
from mvlm_jax.data.examples import Source
from mvlm_jax.data.images import PILLOW_PIXELS, UnusableImage, decode_image
from mvlm_jax.data.skipped import in_words
from mvlm_jax.doctor.check import LONGEST, CheckResult, Finding, Place
from mvlm_jax.doctor.faults import FAULTS, Policy
from mvlm_jax.errors import UserError
from mvlm_jax.files import write_text
from mvlm_jax.report.page import picture, render

JSON, HTML = "check.json", "check.html"
SHOWN = 12  # findings of a fault that the page shows
CAPTIONS = 3  # of an example
NAMED = 5  # of them in a line for a terminal
THUMBNAIL = 150  # pixels of the longer side
BAR, HEIGHT = 8, 140  # pixels: width of a bar of the histogram, height of the highest


def write_report(
    result: CheckResult,
    *,
    directory: Path,
    name: str,
    collection: Collection,
    against: Mapping[str, Source],
    policy: Policy,
) -> dict[str, int]:
    """Writes `check.json` and `check.html`; returns the faults that the policy stops at, with their number.

    Raises:
      UserError: `directory` cannot be written.
    """
    stops = policy.violations(result.counts, examples=sum(result.examples.values()))
    content = as_dict(result, name=name, collection=collection, policy=policy, stops=stops)
    html = as_html(result, content=content, sources={**collection.splits, **against}, stops=stops)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, written in ((JSON, json.dumps(content, indent=1, ensure_ascii=False) + "\n"), (HTML, html)):
            write_text(directory / file, written, errors="replace")  # a caption may hold half a character
    except OSError as error:
        raise UserError(f"the report cannot be written to {str(directory)!r}: {error.strerror}") from error
    return stops


def as_dict(
    result: CheckResult, *, name: str, collection: Collection, policy: Policy, stops: Mapping[str, int]
) -> dict[str, Any]:
    """The content of check.json: the same for the same collection."""
    return {
        "dataset": name,
        "source": collection.source,
        "policy": policy.text,
        "stops": dict(stops),
        "counts": result.counts,
        "examples": dict(result.examples),
        "captions": dict(result.captions),
        "against": dict(result.against),
        "left_out": {split: collection.left_out_of_split(split).as_dict() for split in collection.splits},
        "lines_left_out": collection.lines_left_out.as_dict(),
        "tokens": {"max_length": result.max_length, "captions_by_length": result.lengths.tolist()},
        "findings": [_finding(finding) for finding in result.findings],
    }


def as_html(
    result: CheckResult, *, content: Mapping[str, Any], sources: Mapping[str, Source], stops: Mapping[str, int]
) -> str:
    """One page: counts, the histogram of lengths, and the first findings of each fault with their images."""
    examples = sum(result.examples.values())
    rows = [(split, f"{count:,}", f"{result.captions[split]:,}") for split, count in result.examples.items()]
    rows += [(f"{name} (compared with)", f"{count:,}", "") for name, count in result.against.items()]
    return render(
        "dataset.html",
        title=f"Check of {content['dataset']}",
        content=content,
        stops=listed(stops),
        splits=rows,
        faults=[
            {
                "name": fault,
                "count": count,
                "part": count / examples if examples else 0.0,
                "stops": fault in stops,
                "meaning": _sentence(FAULTS[fault].meaning),
                "remedy": FAULTS[fault].remedy,
            }
            for fault, count in sorted(result.counts.items(), key=lambda one: one[0] not in stops)
        ],
        left_out=_left_out(content),
        histogram=_histogram(result),
        groups=list(_groups(result.findings, sources)),
    )


def listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{fault} {count}" for fault, count in counts.items())


def _finding(finding: Finding) -> dict[str, Any]:
    entry = {"fault": finding.fault, **finding.place._asdict(), "id": finding.id, "detail": finding.detail}
    return entry if finding.other is None else entry | {"other": {**finding.other._asdict(), "id": finding.other_id}}


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _groups(findings: Sequence[Finding], sources: Mapping[str, Source]) -> Iterator[dict[str, Any]]:
    """The first findings of each fault."""
    for fault, group in itertools.groupby(findings, key=lambda finding: finding.fault):
        found = list(group)
        yield {
            "name": fault,
            "count": len(found),
            "meaning": _sentence(FAULTS[fault].meaning),
            "remedy": FAULTS[fault].remedy,
            "cards": [_card(finding, sources) for finding in found[:SHOWN]],
        }


def _card(finding: Finding, sources: Mapping[str, Source]) -> dict[str, Any]:
    places = [(finding.place, finding.id)] + ([(finding.other, finding.other_id)] if finding.other else [])
    return {"detail": finding.detail, "places": [_shown(sources[place.split], place, name) for place, name in places]}


def _shown(source: Source, place: Place, name: str) -> dict[str, Any]:
    """The image and the captions of an example, as far as they can be read."""
    shown: dict[str, Any] = {
        "split": place.split,
        "id": name,
        "picture": None,
        "problem": "",
        "captions": [],
        "more": 0,
    }
    try:
        example = source[place.index]
        captions = example["captions"]
        shown |= {"captions": captions[:CAPTIONS], "more": max(0, len(captions) - CAPTIONS)}
        pixels = decode_image(example["image"], max_pixels=PILLOW_PIXELS, size_hint=THUMBNAIL)
    except UnusableImage as error:
        return shown | {"problem": str(error)}
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return shown | {"picture": picture(image, alt=f"{place.split} {name}: {' / '.join(captions[:1])}", small=False)}


def _left_out(content: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(split, reason, count, first ids) of what was left out before any image was read."""
    skips = [*content["left_out"].items(), ("lines", content["lines_left_out"])]
    return [
        (where, reason, f"{skipped['count']:,}", ", ".join(skipped["ids"]))
        for where, reasons in skips
        for reason, skipped in reasons.items()
    ]


def _histogram(result: CheckResult) -> dict[str, Any] | None:
    """Captions by their number of tokens, as the places of bars; None where they were not counted."""
    if not len(result.lengths):
        return None
    limit, counts = result.max_length, result.lengths
    highest, edge = max(1, int(counts.max())), BAR * (limit + 1) - 0.5
    return {
        "limit": limit,
        "cut": int(counts[limit + 1 :].sum()),
        "captions": int(counts.sum()),
        "longest": len(counts) - 1,
        "is_open": len(counts) > LONGEST * limit,
        "width": max(BAR * len(counts) + 40, int(edge) + 40, 360),
        "height": HEIGHT,
        "edge": edge,
        "bars": [
            {
                "x": BAR * length,
                "y": round(HEIGHT - HEIGHT * count / highest, 1),
                "width": BAR - 1,
                "height": round(HEIGHT * count / highest, 1),
                "is_cut": length > limit,
                "title": f"{length} tokens: {count:,}",
            }
            for length, count in enumerate(counts.tolist())
            if count
        ],
        "ticks": [(BAR * length + BAR / 2, length) for length in range(0, len(counts), 10)],
    }


def summary(result: CheckResult, *, stops: Sequence[str]) -> list[str]:
    """Lines for a terminal."""
    lines = [f"{split}: {count} images, {result.captions[split]} captions" for split, count in result.examples.items()]
    lines += [f"{name}: {count} images to compare with" for name, count in result.against.items()]
    for fault, count in result.counts.items():
        ids = (finding.id for finding in result.findings if finding.fault == fault)
        if fault == "unread":
            first = in_words(result.unread)
        else:
            first = ", ".join(itertools.islice(ids, NAMED)) + (", …" if count > NAMED else "")
        lines.append(f"  {fault}: {count} ({first}){', which stops' if fault in stops else ''}")
    return lines
