"""What the doctor found, as JSON for programs and as one HTML page for people."""

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
from mvlm_jax.doctor.checkup import LONGEST, Checkup, Finding, Place
from mvlm_jax.doctor.faults import KINDS, Policy
from mvlm_jax.errors import UserError
from mvlm_jax.files import write_text
from mvlm_jax.report import page

JSON, HTML = "check.json", "check.html"
SHOWN = 12  # findings of a kind that the page shows
NAMED = 5  # of them in a line for a terminal
THUMBNAIL = 150  # pixels of the longer side
BAR, HEIGHT = 8, 140  # pixels: width of a bar of the histogram, height of the highest


def write_report(
    checkup: Checkup,
    *,
    directory: Path,
    name: str,
    collection: Collection,
    against: Mapping[str, Source],
    policy: Policy,
) -> dict[str, int]:
    """Writes `check.json` and `check.html`; returns the kinds that the policy stops at, with how often they are there.

    Raises:
      UserError: `directory` cannot be written.
    """
    stops = policy.violations(checkup.counts, examples=sum(checkup.examples.values()))
    content = as_dict(checkup, name=name, collection=collection, policy=policy, stops=stops)
    html = as_html(checkup, content=content, sources={**collection.splits, **against}, stops=stops)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, written in ((JSON, json.dumps(content, indent=1, ensure_ascii=False) + "\n"), (HTML, html)):
            write_text(directory / file, written, errors="replace")  # a caption may hold half a character
    except OSError as error:
        raise UserError(f"the report cannot be written to {str(directory)!r}: {error.strerror}") from error
    return stops


def as_dict(
    checkup: Checkup, *, name: str, collection: Collection, policy: Policy, stops: Mapping[str, int]
) -> dict[str, Any]:
    """Everything that was found, the same for the same collection."""
    return {
        "dataset": name,
        "source": collection.source,
        "policy": policy.text,
        "stops": dict(stops),
        "counts": checkup.counts,
        "examples": dict(checkup.examples),
        "captions": dict(checkup.captions),
        "against": dict(checkup.against),
        "left_out": {split: collection.left_out_of_split(split).as_dict() for split in collection.splits},
        "lines_left_out": collection.lines_left_out.as_dict(),
        "tokens": {"max_length": checkup.max_length, "captions_by_length": checkup.lengths.tolist()},
        "findings": [_finding(finding) for finding in checkup.findings],
    }


def as_html(
    checkup: Checkup, *, content: Mapping[str, Any], sources: Mapping[str, Source], stops: Mapping[str, int]
) -> str:
    """One page: counts, the histogram of lengths, and the first findings of each kind with their images."""
    examples = sum(checkup.examples.values())
    verdict = (
        f'<p class="bad">Stopped by --policy={page.text(content["policy"])}: {page.text(listed(stops))}.</p>'
        if stops
        else f'<p class="good">Nothing that --policy={page.text(content["policy"])} stops at.</p>'
    )
    splits = ", ".join(
        f"{split}: {count:,} images, {checkup.captions[split]:,} captions" for split, count in checkup.examples.items()
    )
    against = "".join(f"; compared with {name}: {count:,} images" for name, count in checkup.against.items())
    rows = [
        [
            f'<a href="#{kind}">{kind}</a>',
            f"{count:,}",
            f"{count / examples:.2%}",
            '<span class="bad">stops</span>' if kind in stops else "",
            page.text(KINDS[kind].meaning),
        ]
        for kind, count in checkup.counts.items()
    ]
    body = [
        verdict,
        f"<p>{page.text(content['source'])}<br>{page.text(splits + against)}</p>",
        page.table(rows, head=["kind", "found", "of the images", "", "meaning"]) if rows else "<p>No fault found.</p>",
        _left_out(content),
        f"<h2>Tokens of a caption</h2>{_histogram(checkup)}",
    ]
    for kind, found in itertools.groupby(checkup.findings, key=lambda finding: finding.kind):
        all_found = list(found)
        more = f", {SHOWN} of them shown" if len(all_found) > SHOWN else ""
        body.append(f'<h2 id="{kind}">{kind}: {len(all_found):,}{more}</h2>')
        body.append(f'<p class="muted">{page.text(KINDS[kind].meaning)}</p><div class="cards">')
        body += [_card(finding, sources) for finding in all_found[:SHOWN]]
        body.append("</div>")
    return page.page(title=f"Check of {content['dataset']}", body="\n".join(body))


def listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in counts.items())


def _finding(finding: Finding) -> dict[str, Any]:
    found = {"kind": finding.kind, **finding.place._asdict(), "id": finding.id, "detail": finding.detail}
    return found if finding.twin is None else {**found, "twin": {**finding.twin._asdict(), "id": finding.twin_id}}


def _card(finding: Finding, sources: Mapping[str, Source]) -> str:
    places = [(finding.place, finding.id)] + ([(finding.twin, finding.twin_id)] if finding.twin else [])
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


def _histogram(checkup: Checkup) -> str:
    if not len(checkup.lengths):
        return '<p class="muted">There was no caption to train a tokenizer on, and none was named.</p>'
    limit, counts = checkup.max_length, checkup.lengths
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


def summary(checkup: Checkup, *, stops: Sequence[str]) -> list[str]:
    """Lines for a terminal."""
    lines = [
        f"{split}: {count} images, {checkup.captions[split]} captions" for split, count in checkup.examples.items()
    ]
    lines += [f"{name}: {count} images to compare with" for name, count in checkup.against.items()]
    for kind, count in checkup.counts.items():
        found = (finding.id for finding in checkup.findings if finding.kind == kind)
        if kind == "unread":
            first = in_words(checkup.unread)
        else:
            first = ", ".join(itertools.islice(found, NAMED)) + (", …" if count > NAMED else "")
        lines.append(f"  {kind}: {count} ({first}){', which stops' if kind in stops else ''}")
    return lines
