"""The findings of a check, as JSON for programs and as one HTML page for people."""

import itertools
import json
from collections.abc import Mapping, Sequence
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
from mvlm_jax.report import page

JSON, HTML = "check.json", "check.html"
SHOWN = 12  # findings of a fault that the page shows
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
    verdict = (
        f'<p class="bad">Stopped by --policy={page.text(content["policy"])}: {page.text(listed(stops))}.</p>'
        if stops
        else f'<p class="good">Nothing that --policy={page.text(content["policy"])} stops at.</p>'
    )
    splits = ", ".join(
        f"{split}: {count:,} images, {result.captions[split]:,} captions" for split, count in result.examples.items()
    )
    against = "".join(f"; compared with {name}: {count:,} images" for name, count in result.against.items())
    rows = [
        [
            f'<a href="#{fault}">{fault}</a>',
            f"{count:,}",
            f"{count / examples:.2%}",
            '<span class="bad">stops</span>' if fault in stops else "",
            page.text(FAULTS[fault].meaning),
        ]
        for fault, count in result.counts.items()
    ]
    body = [
        verdict,
        f"<p>{page.text(content['source'])}<br>{page.text(splits + against)}</p>",
        page.table(rows, head=["fault", "findings", "of the images", "", "meaning"])
        if rows
        else "<p>No fault found.</p>",
        _left_out(content),
        f"<h2>Tokens of a caption</h2>{_histogram(result)}",
    ]
    for fault, group in itertools.groupby(result.findings, key=lambda finding: finding.fault):
        findings = list(group)
        more = f", {SHOWN} of them shown" if len(findings) > SHOWN else ""
        body.append(f'<h2 id="{fault}">{fault}: {len(findings):,}{more}</h2>')
        body.append(f'<p class="muted">{page.text(FAULTS[fault].meaning)}</p><div class="cards">')
        body += [_card(finding, sources) for finding in findings[:SHOWN]]
        body.append("</div>")
    return page.page(title=f"Check of {content['dataset']}", body="\n".join(body))


def listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{fault} {count}" for fault, count in counts.items())


def _finding(finding: Finding) -> dict[str, Any]:
    entry = {"fault": finding.fault, **finding.place._asdict(), "id": finding.id, "detail": finding.detail}
    return entry if finding.other is None else entry | {"other": {**finding.other._asdict(), "id": finding.other_id}}


def _card(finding: Finding, sources: Mapping[str, Source]) -> str:
    places = [(finding.place, finding.id)] + ([(finding.other, finding.other_id)] if finding.other else [])
    pictures = "".join(_thumbnail(sources[place.split], place) for place, _ in places)
    names = "<br>".join(f'{page.text(place.split)} <span class="id">{page.text(name)}</span>' for place, name in places)
    return (
        f'<figure style="width:{THUMBNAIL * len(places) + 4 * (len(places) - 1)}px"><div class="pair">{pictures}</div>'
        f"<figcaption>{names}<br>{page.text(finding.detail)}</figcaption></figure>"
    )


def _thumbnail(source: Source, place: Place) -> str:
    try:
        pixels = decode_image(source[place.index]["image"], max_pixels=PILLOW_PIXELS, size_hint=THUMBNAIL)
    except UnusableImage:
        return ""
    picture = Image.fromarray(pixels)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return page.image(picture, file_format="JPEG", alt=f"{place.split} {place.index}")


def _left_out(content: Mapping[str, Any]) -> str:
    skips = [*content["left_out"].items(), ("lines", content["lines_left_out"])]
    rows = [
        [page.text(where), page.text(reason), f"{skipped['count']:,}", page.text(", ".join(skipped["ids"]))]
        for where, reasons in skips
        for reason, skipped in reasons.items()
    ]
    if not rows:
        return ""
    return '<h2 id="unread">Left out before any image was read</h2>' + page.table(
        rows, head=["split", "reason", "count", "first"]
    )


def _histogram(result: CheckResult) -> str:
    if not len(result.lengths):
        return '<p class="muted">Not counted: no tokenizer is named, and there is no caption to train one on.</p>'
    limit, counts = result.max_length, result.lengths
    cut = int(counts[limit + 1 :].sum())
    width, highest = BAR * len(counts) + 40, max(1, int(counts.max()))
    bars = "".join(
        f'<rect x="{BAR * length}" y="{HEIGHT - HEIGHT * count / highest:.1f}" width="{BAR - 1}" '
        f'height="{HEIGHT * count / highest:.1f}" fill="{"#b3261e" if length > limit else "#4a76b8"}">'
        f"<title>{length} tokens: {count:,}</title></rect>"
        for length, count in enumerate(counts.tolist())
    )
    ticks = "".join(
        f'<text x="{BAR * length + BAR / 2}" y="{HEIGHT + 16}" font-size="11" text-anchor="middle">{length}</text>'
        for length in range(0, len(counts), 10)
    )
    edge = BAR * (limit + 1) - 0.5
    return (
        f"<p>{cut:,} of {int(counts.sum()):,} captions are longer than config.text.max_length={limit} and are cut; "
        f"the longest has {len(counts) - 1} tokens{' or more' if len(counts) > LONGEST * limit else ''}, start and end "
        "included.</p>"
        f'<svg width="{max(width, int(edge) + 40)}" height="{HEIGHT + 24}" role="img">{bars}{ticks}'
        f'<line x1="{edge}" x2="{edge}" y1="0" y2="{HEIGHT}" stroke="#b3261e" stroke-dasharray="4 3"/></svg>'
    )


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
