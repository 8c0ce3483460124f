"""Checks every example of a collection, and compares all of them with each other and with evaluation sets."""

import contextlib
import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8, UInt64
from tqdm import tqdm

from mvlm_jax.data.collection import Collection
from mvlm_jax.data.examples import Source
from mvlm_jax.data.images import UnusableImage
from mvlm_jax.data.processes import available_cpus
from mvlm_jax.data.text import Tokenizer, train_tokenizer
from mvlm_jax.doctor.captions import INVISIBLE, caption_faults, normalized
from mvlm_jax.doctor.faults import FAULTS
from mvlm_jax.doctor.images import CELLS, Fingerprint, inspect_image
from mvlm_jax.doctor.near_duplicates import near_pairs, same_files

CHUNK = 64  # examples that a thread checks at a time
MANY_COPIES = 10  # of one file
BOILERPLATE, BOILERPLATE_PART = 10, 1 / 1000  # images with one caption: at least so many, and this part of all
LONGEST = 4  # times the configured length; longer captions are counted as that long
# Reasons for leaving something out before any image is read that nobody intends.
UNREAD = ("malformed", "not_utf8", "no_path", "no_such_image", "repeated_member", "link_member")
TOKENIZER_EXAMPLES = 20_000  # whose captions a tokenizer is trained on
SHOWN = 160  # characters of a caption that are quoted


class Place(NamedTuple):
    """An example: the split or evaluation set, and the index in it."""

    split: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which is not needed


class Finding(NamedTuple):
    fault: str
    place: Place
    id: str
    detail: str
    other: Place | None = None  # the second example where a fault concerns two
    other_id: str = ""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the run that the data is meant for."""

    max_pixels: int  # of an image
    image_size: int  # pixels a side, of what the model sees
    max_length: int  # tokens of a caption, start and end included


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """The findings of a check, and what was counted on the way."""

    findings: tuple[Finding, ...]  # by fault, then in the order of the collection
    examples: Mapping[str, int]  # by split
    captions: Mapping[str, int]  # by split
    against: Mapping[str, int]  # images of each evaluation set
    lengths: Int[np.ndarray, " T"]  # captions of 0, 1, … tokens, start and end included; empty: no tokenizer
    max_length: int
    unread: Mapping[str, int]  # by reason: entries of the lists that no example was made of

    @property
    def counts(self) -> dict[str, int]:
        """The number of findings of each fault that occurs."""
        counts = Counter(finding.fault for finding in self.findings)
        counts["unread"] = sum(self.unread.values())
        return {fault: counts[fault] for fault in FAULTS if counts[fault]}


def check_collection(
    collection: Collection,
    *,
    limits: Limits,
    tokenizer: Tokenizer | None,
    against: Mapping[str, Source] | None = None,
    threads: int = 0,
) -> CheckResult:
    """Reads every example once, and keeps about 300 bytes of each in memory.

    Args:
      tokenizer: None: lengths and unknown words are not checked.
      against: evaluation sets by name, which no image of the collection should be in.
      threads: 0: one a CPU. The result does not depend on it.

    Raises:
      UserError: a file that is there but cannot be read.
    """
    sources = {**collection.splits, **(against or {})}
    own = sum(map(len, collection.splits.values()))
    check = functools.partial(_check_chunk, limits=limits, tokenizer=tokenizer)
    chunks = [
        (split, source, range(start, min(start + CHUNK, len(source))))
        for split, source in sources.items()
        for start in range(0, max(1, len(source)), CHUNK)
    ]
    parts = []
    with (
        # disable=None: a bar on a terminal only.
        tqdm(total=sum(map(len, sources.values())), unit=" images", disable=None, smoothing=0.05) as bar,
        ThreadPoolExecutor(threads or available_cpus()) as pool,
    ):
        for part in pool.map(lambda chunk: check(*chunk), chunks):
            bar.update(len(part.ids))
            parts.append(part)
    table = _Table(sources, parts)
    findings = [
        *(finding for part in parts for finding in part.findings if finding.place.split in collection.splits),
        *_repeated_ids(table, splits=collection.splits),
        *_boilerplate(table, examples=own),
        *_copies(table, own=own),
        *_near_copies(table, own=own),
    ]
    order = {fault: number for number, fault in enumerate(FAULTS)}
    splits = {split: number for number, split in enumerate(sources)}
    findings.sort(key=lambda one: (order[one.fault], splits[one.place.split], one.place.index, one.detail))
    return CheckResult(
        findings=tuple(findings),
        examples={split: len(source) for split, source in collection.splits.items()},
        captions={split: table.captions_of(split) for split in collection.splits},
        against={name: len(source) for name, source in (against or {}).items()},
        lengths=np.bincount(table.lengths[table.caption_rows < own])
        if tokenizer is not None
        else np.zeros(0, np.int64),
        max_length=limits.max_length,
        unread=_unread(collection),
    )


def tokenizer_for(collection: Collection, *, kind: str, vocab_size: int) -> Tokenizer | None:
    """Trained on some captions of the training split, to measure lengths with; None where there are none."""
    splits = collection.splits
    source = splits["train"] if "train" in splits else next(iter(splits.values()))
    captions: list[str] = []
    for index in range(0, len(source), -(-len(source) // TOKENIZER_EXAMPLES) or 1):
        with contextlib.suppress(UnusableImage):
            captions += source[index]["captions"]
    return train_tokenizer(captions, kind=kind, vocab_size=vocab_size) if any(map(str.strip, captions)) else None


def _unread(collection: Collection) -> dict[str, int]:
    counts: Counter[str] = Counter(collection.lines_left_out.counts)
    for split in collection.splits:
        counts.update(collection.left_out_of_split(split).counts)
    return {reason: counts[reason] for reason in UNREAD if counts[reason]}


class _Part(NamedTuple):
    """Columns of a chunk of examples, with a row for each, whether it can be decoded or not."""

    ids: UInt64[np.ndarray, " E"]
    decoded: Bool[np.ndarray, " E"]
    flat: Bool[np.ndarray, " E"]
    digests: UInt64[np.ndarray, "E 2"]
    shapes: UInt64[np.ndarray, "E 4"]
    colours: UInt8[np.ndarray, "E C"]
    caption_counts: Int32[np.ndarray, " E"]
    captions: UInt64[np.ndarray, " M"]  # hashes of their words
    lengths: Int32[np.ndarray, " M"]
    findings: list[Finding]


NO_FINGERPRINT = Fingerprint(
    np.zeros(2, np.uint64), np.zeros(4, np.uint64), np.zeros(CELLS * CELLS * 3, np.uint8), False
)


def _check_chunk(split: str, source: Source, indices: range, *, limits: Limits, tokenizer: Tokenizer | None) -> _Part:
    findings, ids, prints, captions = [], [], [], []
    for index in indices:
        identity, faults, fingerprint, texts = _check_example(source, index, limits=limits)
        ids.append(identity)
        prints.append(fingerprint)
        captions.append(texts)
        findings += [Finding(fault, Place(split, index), identity, detail) for fault, detail in faults]
    flat = [caption for texts in captions for caption in texts]
    owners = [index for index, texts in zip(indices, captions) for _ in texts]
    lengths = np.zeros(len(flat), np.int32)
    if tokenizer is not None and flat:
        tokens = tokenizer.encode(flat, max_length=LONGEST * limits.max_length)
        lengths = (tokens != tokenizer.ids.pad).sum(axis=1, dtype=np.int32)
        unknown = (tokens == tokenizer.ids.unknown).sum(axis=1)
        for caption, owner, length, missed in zip(flat, owners, lengths, unknown):
            place, identity = Place(split, owner), ids[owner - indices.start]
            if length > limits.max_length:
                findings.append(Finding("long_caption", place, identity, f"{length} tokens: {_quoted(caption)}"))
            if caption.strip() and 2 * missed >= length - 2 > 0:
                findings.append(Finding("unknown_words", place, identity, _quoted(caption)))
    known = [NO_FINGERPRINT if fingerprint is None else fingerprint for fingerprint in prints]
    return _Part(
        ids=_hashes(ids),
        decoded=np.array([fingerprint is not None for fingerprint in prints], bool),
        flat=np.array([fingerprint.flat for fingerprint in known], bool),
        digests=np.array([fingerprint.digest for fingerprint in known], np.uint64).reshape(-1, 2),
        shapes=np.array([fingerprint.shape for fingerprint in known], np.uint64).reshape(-1, 4),
        colours=np.array([fingerprint.colours for fingerprint in known], np.uint8).reshape(-1, CELLS * CELLS * 3),
        caption_counts=np.array([len(texts) for texts in captions], np.int32),
        captions=_hashes(map(normalized, flat)),
        lengths=lengths,
        findings=findings,
    )


def _check_example(
    source: Source, index: int, *, limits: Limits
) -> tuple[str, list[tuple[str, str]], Fingerprint | None, list[str]]:
    """(id, (fault, detail) of each fault, fingerprint, captions)"""
    faults: list[tuple[str, str]] = []
    identity = source.example_id(index)
    if identity != identity.strip() or not identity or INVISIBLE.search(identity):
        faults.append(("broken_id", f"the id is {identity!r}"))
    try:
        example = source[index]
    except UnusableImage as error:
        fault = {"absent": "missing", "malformed_json": "no_captions"}.get(error.reason, "undecodable")
        return identity, [*faults, (fault, str(error))], None, []
    inspection = inspect_image(example["image"], max_pixels=limits.max_pixels, shortest_side=limits.image_size / 4)
    faults += inspection.faults
    captions = example["captions"]
    blank = sum(not caption.strip() for caption in captions)
    if blank == len(captions):
        faults.append(("no_captions", "all of them are blank" if captions else "there is none"))
    elif blank:
        faults += [("empty_caption", f"{blank} of its {len(captions)} captions are blank")] * blank
    for caption in captions:
        if caption.strip():
            faults += [(fault, _quoted(caption)) for fault in caption_faults(caption)]
    return identity, faults, inspection.fingerprint, captions


class _Table:
    """The columns of all chunks joined: the rows of all sources, one source after the other."""

    def __init__(self, sources: Mapping[str, Source], parts: Sequence[_Part]) -> None:
        self._sources, self._names = sources, list(sources)
        self._starts = np.cumsum([0, *map(len, sources.values())])

        def joined(field: str) -> Any:
            return np.concatenate([getattr(part, field) for part in parts])

        self.ids, self.decoded, self.flat = joined("ids"), joined("decoded"), joined("flat")
        self.digests, self.shapes, self.colours = joined("digests"), joined("shapes"), joined("colours")
        self.captions, self.lengths = joined("captions"), joined("lengths")
        self.caption_rows = np.repeat(np.arange(len(self.ids)), joined("caption_counts"))

    def rows(self, split: str) -> slice:
        number = self._names.index(split)
        return slice(int(self._starts[number]), int(self._starts[number + 1]))

    def captions_of(self, split: str) -> int:
        rows = self.rows(split)
        return int(((self.caption_rows >= rows.start) & (self.caption_rows < rows.stop)).sum())

    def source_numbers(self, rows: Int[np.ndarray, " E"]) -> Int[np.ndarray, " E"]:
        return np.searchsorted(self._starts, rows, side="right") - 1

    def place(self, row: int) -> Place:
        number = int(self.source_numbers(np.array([row]))[0])
        return Place(self._names[number], int(row - self._starts[number]))

    def example(self, place: Place) -> Any:
        return self._sources[place.split][place.index]

    def finding(self, fault: str, row: int, detail: str, other_row: int | None = None) -> Finding:
        place = self.place(row)
        identity = self._sources[place.split].example_id(place.index)
        if other_row is None:
            return Finding(fault, place, identity, detail)
        other = self.place(other_row)
        return Finding(fault, place, identity, detail, other, self._sources[other.split].example_id(other.index))


def _repeated_ids(table: _Table, *, splits: Iterable[str]) -> Iterator[Finding]:
    for split in splits:
        rows = table.rows(split)
        first, number = np.unique(table.ids[rows], return_index=True, return_inverse=True)[1:]
        for index in np.flatnonzero(first[number] != np.arange(len(number))):
            earlier = int(first[number[index]]) + rows.start
            yield table.finding("duplicate_id", rows.start + int(index), "the same id as the other one", earlier)


def _boilerplate(table: _Table, *, examples: int) -> Iterator[Finding]:
    pairs = np.unique(np.stack([table.captions, table.caption_rows.astype(np.uint64)], axis=1), axis=0)
    pairs = pairs[pairs[:, 1] < examples]
    words, first, images = np.unique(pairs[:, 0], return_index=True, return_counts=True)
    for number in np.flatnonzero(images >= max(BOILERPLATE, BOILERPLATE_PART * examples)):
        row = int(pairs[first[number], 1])
        captions = table.example(table.place(row))["captions"]
        caption = next(caption for caption in captions if _hashes([normalized(caption)])[0] == words[number])
        if caption.strip():
            yield table.finding("boilerplate", row, f"{images[number]} images: {_quoted(caption)}")


def _copies(table: _Table, *, own: int) -> Iterator[Finding]:
    """The same bytes again."""
    rows = np.flatnonzero(table.decoded)
    files = same_files(table.digests[rows])
    order = np.argsort(files, kind="stable")
    for group in np.split(rows[order], np.flatnonzero(np.diff(files[order])) + 1):
        if len(group) < 2:
            continue
        copies = group[group < own]
        repeated = len(copies) >= MANY_COPIES
        numbers = table.source_numbers(group)
        firsts = dict(zip(numbers[::-1].tolist(), group[::-1].tolist()))  # of each source
        for row, number in zip(copies.tolist(), numbers.tolist()):
            if repeated:
                first = None if row == copies[0] else int(copies[0])
                yield table.finding("repeated_image", row, f"one of {len(copies)} with the same bytes", first)
            elif row != firsts[number]:
                yield table.finding("duplicate", row, "the same bytes as the other one", firsts[number])
            for other, first in firsts.items():
                if other < number or first >= own:
                    fault = "evaluation_overlap" if first >= own else "split_overlap"
                    yield table.finding(fault, row, "the same bytes as the other one", first)


def _near_copies(table: _Table, *, own: int) -> Iterator[Finding]:
    """Nearly the same picture in other bytes; of several, the nearest one in each source is named."""
    rows = np.flatnonzero(table.decoded & ~table.flat)
    if not len(rows):
        return
    # Of files with the same bytes, one in each source stands for all.
    rows = rows[np.unique(np.stack([table.source_numbers(rows), same_files(table.digests[rows])], axis=1),
                          axis=0, return_index=True)[1]]  # fmt: skip
    rows.sort()
    first, second, signs = near_pairs(table.shapes[rows], table.colours[rows])
    first, second = rows[first], rows[second]
    other_bytes = (table.digests[first] != table.digests[second]).any(axis=1)
    numbers, others = table.source_numbers(second), table.source_numbers(first)
    nearest: dict[tuple[int, int], tuple[int, int]] = {}
    for i in np.flatnonzero(other_bytes):
        a, b = int(first[i]), int(second[i])
        if a >= own:
            continue
        # An evaluation set comes after the collection, so its image is the second of a pair.
        row, other, number = (a, b, int(numbers[i])) if b >= own else (b, a, int(others[i]))
        nearest[row, number] = min(nearest.get((row, number), (257, 0)), (int(signs[i]), other))
    for (row, _), (differing, other) in nearest.items():
        if other >= own:
            fault = "evaluation_near_overlap"
        elif table.place(row).split == table.place(other).split:
            fault = "near_duplicate"
        else:
            fault = "split_near_overlap"
        yield table.finding(fault, row, f"the fingerprints agree in {256 - differing} of 256 bits", other)


def _hashes(texts: Iterable[str]) -> UInt64[np.ndarray, " E"]:
    digests = [hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(digests), np.uint64)


def _quoted(caption: str) -> str:
    short = caption if len(caption) <= SHOWN else caption[:SHOWN] + "…"
    return "".join(f"\\x{ord(character):02x}" if INVISIBLE.match(character) else character for character in short)
