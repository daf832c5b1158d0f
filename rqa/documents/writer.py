"""A corpus file of a folder: written whole or not at all, compared with the file that it replaces, and measured."""

import os
from array import array
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from rqa.atomic_files import atomic_file, json_text
from rqa.data.corpus import open_passages
from rqa.data.records import Passage
from rqa.documents.convert import check_packages, read_document
from rqa.documents.files import Listing, shown
from rqa.documents.splitter import Splitter
from rqa.errors import InputError
from rqa.terminal import plural, track

MAX_SHOWN = 20  # of the added and of the removed passages
SHOWN_COUNTS = 8  # of kinds of files, the most frequent first
PERCENTILES = (50, 90, 99)


@dataclass
class CorpusReport:
    """The files and passages of a corpus, and its differences from the file that it replaces.

    `lengths` are tokens of each passage. `added` and `removed` are sources by the id of the passage.
    """

    files: Counter[str] = field(default_factory=Counter)
    problems: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    lengths: "array[int]" = field(default_factory=lambda: array("I"))
    cut_blocks: dict[str, int] = field(default_factory=dict)
    repeated: int = 0
    kept: int = 0
    added: dict[str, str] = field(default_factory=dict)
    removed: dict[str, str] = field(default_factory=dict)

    def lines(self, max_tokens: int) -> Iterator[str]:
        """Yield the report as lines of text."""
        yield from _problems(self.problems)
        yield f"{plural(self.files.total(), 'file')}: {_counts(self.files)}; {len(self.problems):,} left out"
        if self.left_out:
            yield f"{self.left_out.total():,} of no known format, hidden or links: {_counts(self.left_out)}"
        yield from self._lengths(max_tokens)
        yield f"added {len(self.added):,}, removed {len(self.removed):,}, kept {self.kept:,}"

    def _lengths(self, max_tokens: int) -> Iterator[str]:
        lengths = sorted(self.lengths)
        yield f"{plural(len(lengths), 'passage')}, {self.repeated:,} with the text of an earlier one"
        mean = sum(lengths) / len(lengths)
        shares = ", ".join(f"{each} % have at most {lengths[(len(lengths) - 1) * each // 100]}" for each in PERCENTILES)
        yield f"tokens of a passage, of at most {max_tokens}: mean {mean:.0f}; {shares}; longest {lengths[-1]}"
        cut = self.cut_blocks
        yield (
            f"cut because they are longer: {plural(cut['prose'] + cut['heading'], 'paragraph')}, "
            f"{plural(cut['lines'], 'block')} of code, table, list or plain text"
        )

    def changes(self) -> Iterator[str]:
        """Yield the sources of the first removed and added passages; none of a new file."""
        if self.kept or self.removed:
            yield from _first("removed", self.removed.values())
            yield from _first("added", self.added.values())


def _first(name: str, values: Collection[str]) -> Iterator[str]:
    yield from (f"{name}: {value}" for value in islice(values, MAX_SHOWN))
    if len(values) > MAX_SHOWN:
        yield f"{name}: and {len(values) - MAX_SHOWN:,} more"


def _problems(problems: dict[str, str]) -> Iterator[str]:
    return (f"left out: {path}: {reason}" for path, reason in problems.items())


def previous_passages(path: str | Path) -> dict[str, str]:
    """Return the source of each passage of an existing corpus by its id; none if there is no file.

    Raises InputError if the file is no corpus: it is not replaced.
    """
    if not str(path).endswith(".jsonl"):
        raise InputError(f"{path}: expected a file name that ends in .jsonl")
    if not Path(path).exists():
        return {}
    return {passage.id: ", ".join(passage.sources) for passage in track(open_passages(path), f"reading {path}")}


def write_corpus(
    listing: Listing, path: str | Path, splitter: Splitter, previous: dict[str, str], *, is_dry_run: bool = False
) -> CorpusReport:
    """Write the passages of all documents, in the order of their paths, and return a report.

    A file that cannot be converted is in the report, and the others are read. Raises InputError if there is no passage.
    """
    check_packages(listing.paths)
    report = CorpusReport(problems=dict(listing.problems), left_out=listing.left_out)
    sources: dict[str, str] = {}
    with _output(Path(path), is_dry_run=is_dry_run) as file:
        for passage, tokens in _passages(listing, splitter, report):
            file.write(_row(passage))
            report.lengths.append(tokens)
            report.repeated += passage.id in sources
            sources.setdefault(passage.id, passage.sources[0])
        if not sources:
            raise InputError("\n".join([*_problems(report.problems), _no_document(listing)]))
    report.cut_blocks = dict(splitter.num_cut_blocks)
    report.kept = len(sources.keys() & previous.keys())
    report.added = {key: source for key, source in sources.items() if key not in previous}
    report.removed = {key: source for key, source in previous.items() if key not in sources}
    return report


def _output(path: Path, *, is_dry_run: bool) -> AbstractContextManager[BinaryIO]:
    return Path(os.devnull).open("wb") if is_dry_run else atomic_file(path)


def _no_document(listing: Listing) -> str:
    others = _counts(listing.left_out)
    return f"{listing.folder}: expected at least one document with text, got none{others and f' ({others})'}"


def _counts(counter: Counter[str]) -> str:
    """Return the largest counts with their names, the largest first, and the sum of the others."""
    ordered = sorted(counter.items(), key=lambda each: (-each[1], each))
    shown = [f"{count:,} {name}" for name, count in ordered[:SHOWN_COUNTS]]
    if others := ordered[SHOWN_COUNTS:]:
        shown.append(f"{sum(count for _, count in others):,} of {plural(len(others), 'other kind')}")
    return ", ".join(shown)


def _passages(listing: Listing, splitter: Splitter, report: CorpusReport) -> Iterator[tuple[Passage, int]]:
    for path in track(listing.paths, f"reading {listing.folder}", unit="files"):
        try:  # the passages of a file are complete before the first one is written
            document = read_document(listing.folder / path)
            passages = list(splitter.split(document, shown(path)))
        except Exception as error:  # libraries raise errors of every kind for broken files
            report.problems[shown(path)] = _reason(error)
            continue
        report.files[path.suffix.lower()] += 1
        yield from ((each.passage, each.tokens) for each in passages)


def _reason(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    message = " ".join(str(error).split())[:200]
    return f"expected a whole file, got an error of its library: {type(error).__name__}: {message}".rstrip(": ")


def _row(passage: Passage) -> bytes:
    metadata = {"source": passage.sources[0], "title": passage.title}
    return f"{json_text({'page_content': passage.text, 'metadata': metadata})}\n".encode()
