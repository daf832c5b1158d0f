"""Passage, Turn, Example: the records of the user's files, and the reader of example files."""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from rqa.data.jsonl import Fields, check_file, open_data, read_array, read_rows

Role = Literal["user", "assistant"]
EXAMPLE_FILES = (".jsonl", ".jsonl.gz", ".json")


@dataclass(frozen=True)
class Passage:
    """A piece of text that is retrieved and read.

    Its identity everywhere (deduplication, recall, caches) is `id`, a hash of its text alone. The same text from two
    sources, or with white space or Unicode composed differently, is one passage.
    """

    text: str
    title: str = ""
    sources: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def id(self) -> str:
        """32 hexadecimal digits: the first half of the SHA-256 of the text in NFC, white space runs made one space."""
        normalized = " ".join(unicodedata.normalize("NFC", self.text).split())
        return hashlib.sha256(normalized.encode()).hexdigest()[:32]

    @property
    def content(self) -> str:
        """Title, newline, text: embedded by the retriever and read by the generator."""
        return f"{self.title}\n{self.text}" if self.title else self.text

    @property
    def identity(self) -> bytes:
        """Id, length of the title and title: the part of this passage in a fingerprint of passages."""
        return f"{self.id} {len(self.title)} {self.title}\n".encode()


def distinct(passages: Iterable[Passage]) -> list[Passage]:
    """Return the passages in their order, without later ones that have the same id."""
    first: dict[str, Passage] = {}
    for passage in passages:
        first.setdefault(passage.id, passage)
    return list(first.values())


@dataclass(frozen=True)
class Turn:
    """One message of the conversation before the question."""

    role: Role
    text: str


@dataclass(frozen=True)
class Example:
    """A question with its reference answers. The first is the training target; in evaluation all are references.

    `contexts` are the distinct passages given with the question, best first. They are read if there is no retriever.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    gold_passages: tuple[Passage, ...] = ()
    chat_history: tuple[Turn, ...] = ()
    hard_negatives: tuple[Passage, ...] = ()
    contexts: tuple[Passage, ...] = ()
    unanswerable: bool = False
    where: str = field(default="", compare=False)  # file:line or file[index], for messages


def load_examples(
    path: str | Path, *, user_prefix: str | None = None, assistant_prefix: str | None = None
) -> list[Example]:
    """Return the examples of a .jsonl or .jsonl.gz file, or of the one array of a .json file, in the file's order.

    A row requires `question`, `gold_answer` (a text or a list of at least one) and `gold_docs` (which may be empty).
    Optional are `hard_neg_docs`, `chat_history` (a list of {speaker, message}), `id` and `unanswerable`, which makes
    `gold_answer` optional. The default id is the stem of the file with the line, or with the index from 0 in an array.
    A speaker is user, human or `user_prefix`, or else assistant, system, bot or `assistant_prefix`, in any case. A
    single other name beside the user's is the assistant.

    Rows of Fusion-in-Decoder work too. `answers` replaces `gold_answer`. `target`, for training, precedes the answers
    and makes them optional. `ctxs`, a list of {text, title?, id?}, best first, makes `gold_docs` optional.

    Raises DataError with every problem of the file, and InputError if there is no such file or it has no row.
    """
    check_file(path, EXAMPLE_FILES)
    users = {"user", "human", _speaker(user_prefix or "user")}
    assistants = {"assistant", "system", "bot", _speaker(assistant_prefix or "assistant")}
    examples: dict[str, Example] = {}
    for default_id, where, row in _rows(path):
        example = _example(row, default_id, where, _turns(row, users, assistants))
        if (first := examples.setdefault(example.id, example)) is not example:
            row.problem("id", f'"{example.id}" is already the id of {first.where}')
    return list(examples.values())


def _rows(path: str | Path) -> Iterator[tuple[str, str, Fields]]:
    """Return (default id, place, fields) of each row of an example file."""
    data, ending = open_data(path), next(filter(str(path).endswith, EXAMPLE_FILES))
    stem = Path(path).name.removesuffix(ending)
    if ending == ".json":
        return ((f"{stem}:{index}", f"{path}[{index}]", row) for index, row in read_array(path, data))
    return ((f"{stem}:{line}", f"{path}:{line}", row) for line, _, row in read_rows(path, data))


def load_splits(*paths: str | Path, **prefixes: str | None) -> list[list[Example]]:
    """Return the examples of each file; an empty path has none. See `load_examples`."""
    return [load_examples(path, **prefixes) if path else [] for path in paths]


def _example(row: Fields, default_id: str, where: str, turns: tuple[Turn, ...]) -> Example:
    unanswerable = row.flag("unanswerable")
    return Example(
        id=row.identifier("id") or default_id,
        question=row.text("question"),
        answers=_answers(row, optional=unanswerable),
        gold_passages=tuple(map(read_passage, row.objects("gold_docs", optional=row.has("ctxs")))),
        chat_history=turns,
        hard_negatives=tuple(map(read_passage, row.objects("hard_neg_docs", optional=True))),
        contexts=tuple(distinct(map(_context, row.objects("ctxs", optional=True)))),
        unanswerable=unanswerable,
        where=where,
    )


def _answers(row: Fields, *, optional: bool) -> tuple[str, ...]:
    """Return the target, if any, then the other answers."""
    target, name = row.text("target", optional=True), "answers" if row.has("answers") else "gold_answer"
    if row.has("answers") and row.has("gold_answer"):
        row.problem("answers", 'expected this or "gold_answer", got both')
    answers = row.texts(name, optional=optional or bool(target))
    return (target, *(answer for answer in answers if answer != target)) if target else answers


def read_passage(row: Fields) -> Passage:
    """Return the passage of a row {page_content, metadata?: {source?, title?}}."""
    metadata = row.object("metadata", optional=True)
    source = metadata.text("source", optional=True)
    return Passage(row.text("page_content"), metadata.text("title", optional=True), (source,) if source else ())


def _context(row: Fields) -> Passage:
    source = row.identifier("id")
    return Passage(row.text("text"), row.text("title", optional=True), (source,) if source else ())


def _turns(row: Fields, users: set[str], assistants: set[str]) -> tuple[Turn, ...]:
    turns = row.objects("chat_history", optional=True)
    names = [_speaker(turn.text("speaker")) for turn in turns]
    others = {*names} - users - assistants
    if len(others) == 1 and not users.isdisjoint(names) and assistants.isdisjoint(names):
        assistants = others  # the other speaker
    messages = []
    for turn, name in zip(turns, names, strict=True):
        if name and name not in users | assistants:
            expected = "user, human, assistant, system, bot, --user_prefix or --assistant_prefix"
            turn.problem("speaker", f'expected {expected}, got "{name}"')
        messages.append(Turn("user" if name in users else "assistant", turn.text("message")))
    return tuple(messages)


def _speaker(name: str) -> str:
    return name.strip().casefold()
