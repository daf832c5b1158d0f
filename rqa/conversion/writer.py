"""Converted rows written as JSON Lines: questions, and a corpus of their passages."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rqa.atomic_files import atomic_file, json_text
from rqa.conversion.beir import CORPUS, QUERIES
from rqa.conversion.formats import FORMATS, recognized
from rqa.conversion.rows import Converted, Row, passage
from rqa.conversion.source import Source
from rqa.data.fields import Fields, quoted
from rqa.data.jsonl import MAX_LINE_BYTES
from rqa.errors import InputError
from rqa.terminal import track


@dataclass(frozen=True)
class Conversion:
    """The result: the name of the format, and the number of rows written to each file."""

    format: str
    questions: int
    passages: int


def convert(
    input_path: str | Path,
    output_path: str | Path,
    *,
    format: str = "",
    corpus_path: str | Path = "",
    split: str = "",
    keep_ids: bool = True,
    max_bad_rows: int = 0,
) -> Conversion:
    """Write the rows of a file or folder of another format as JSON Lines; see FORMATS.

    An empty `format` is recognized by the content. Questions are written to `output_path`, and their passages, each
    once, to `corpus_path` if it is set. BEIR and LlamaIndex have a corpus of their own, which is written there. A
    format that is a corpus is written to `output_path`. `split` is the file of qrels of BEIR. `keep_ids` writes the
    ids of questions.

    Both files are written atomically: an error leaves earlier ones as they are. Raises DataError with every problem if
    a file has more than `max_bad_rows` rows with problems, and InputError if the format is not recognized. Rows that
    are left out, and fields that are not read, are logged.
    """
    if format and format not in FORMATS:
        raise InputError(f"--format: expected one of {', '.join(FORMATS)}, got {quoted(format)}.")
    source = Source(input_path, split)
    name = format or recognized(source)
    reader, is_corpus = FORMATS[name], FORMATS[name].questions is None
    _check_paths(source.path, Path(output_path), Path(corpus_path) if corpus_path else None, is_corpus=is_corpus)
    if split and name != "beir":
        raise InputError(f"--split {split}: expected a folder of beir, got the format {name}.")
    read = reader.questions or reader.passages
    assert read is not None
    with ExitStack() as files:
        output = _Lines(files.enter_context(_opened(output_path)))
        corpus = _Lines(files.enter_context(_opened(corpus_path))) if corpus_path else None
        rows = read(source)
        if source.shape == "object":  # files of rows show their own progress
            rows = track(rows, f"converting {source.path}", unit="rows")
        for row, line in _checked(rows, keep_ids=keep_ids):
            output.write(line)
            if corpus and not reader.passages:
                corpus.write_passages(row)
        if corpus and reader.passages:
            for _, line in _checked(reader.passages(source)):
                corpus.write(line)
        source.check(max_bad_rows)
        if not output.count:
            raise InputError(f"{source.path}: expected at least one row to write, got none.")
    passages = corpus.count if corpus else 0
    return Conversion(name, 0, output.count) if is_corpus else Conversion(name, output.count, passages)


class _Lines:
    """A file of rows, and their number."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.count = file, 0
        self._written: set[bytes] = set()  # hashes of passages

    def write(self, line: bytes) -> None:
        self._file.write(line)
        self.count += 1

    def write_passages(self, question: Row) -> None:
        """Write the passages of a question that are not written yet."""
        contexts = [
            passage(each["text"], each.get("title", ""), each.get("id", "")) for each in question.get("ctxs", ())
        ]
        for each in (*question["gold_docs"], *question.get("hard_neg_docs", ()), *contexts):
            digest = hashlib.sha256(json.dumps(each).encode()).digest()[:16]
            if digest not in self._written:
                self._written.add(digest)
                self.write(_line(each))


@contextmanager
def _opened(path: str | Path) -> Iterator[BinaryIO]:
    try:
        with atomic_file(Path(path)) as file:
            yield file
    except OSError as error:
        raise InputError(f"{path}: expected a file that can be written, got {error.strerror}.") from error


def _line(row: Row) -> bytes:
    return json_text(row).encode() + b"\n"


def _checked(rows: Iterator[Converted], *, keep_ids: bool = True) -> Iterator[tuple[Row, bytes]]:
    """Yield the rows without problems, each with its line. An id that an earlier question has is a problem."""
    places: dict[str, str] = {}
    for place, fields, row in rows:
        if not keep_ids:
            row.pop("id", None)
        id = row.get("id", "")
        if id in places:
            fields.problem("id", f"{quoted(id)} is already the id of {places[id]}. --no_keep_ids numbers the rows")
        line = _checked_line(fields, row)
        if not fields.problems:
            if id:
                places[id] = place
            yield row, line


def _checked_line(fields: Fields, row: Row) -> bytes:
    try:
        line = _line(row)
    except ValueError:
        fields.problems.append("expected finite numbers, got one that is too large")
        return b""
    if len(line) > MAX_LINE_BYTES:
        fields.problems.append(f"expected a row of at most {MAX_LINE_BYTES:,} bytes, got a longer one")
    return line


def _check_paths(source: Path, output: Path, corpus: Path | None, *, is_corpus: bool) -> None:
    if corpus and is_corpus:
        raise InputError(f"--corpus_path {corpus}: expected questions, got a corpus, which --output_path receives.")
    paths = [output, *([corpus] if corpus else [])]
    for path in paths:
        is_part = path.name in (*CORPUS, *QUERIES) and path.resolve().parent == source.resolve()
        if is_part or (path.exists() and path.samefile(source)):
            raise InputError(f"{path}: expected another path than that of the input.")
        if path.suffix != ".jsonl":
            raise InputError(f"{path}: expected a file name that ends in .jsonl.")
    if corpus and corpus.resolve() == output.resolve():
        raise InputError(f"--corpus_path {corpus}: expected another path than --output_path.")
