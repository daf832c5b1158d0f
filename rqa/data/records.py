"""Passage, Turn, Example: the records of the user's files, and the reader of example files."""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from rqa.data.jsonl import DataError as DataError
from rqa.data.jsonl import Fields, check_file, open_data, read_array, read_rows

Role = Literal["user", "assistant"]

EXAMPLE_FILES = (".jsonl", ".jsonl.gz", ".json")


@dataclass(frozen=True)
class Passage:
    """A piece of text that can be retrieved and read.

    Its identity everywhere (deduplication, recall, caches) is `id`, a hash of its text alone, so that the same text
    from two sources, or with white space or Unicode composed differently, is one passage.
    """

    text: str
    title: str = ""
    sources: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def id(self) -> str:
        """32 hexadecimal digits: the first half of the SHA-256 of the text, NFC, runs of white space folded to one."""
        normalised = " ".join(unicodedata.normalize("NFC", self.text).split())
        return hashlib.sha256(normalised.encode()).hexdigest()[:32]

    @property
    def content(self) -> str:
        """What the retriever embeds and the generator reads: title, newline, text."""
        return f"{self.title}\n{self.text}" if self.title else self.text

    @property
    def identity(self) -> bytes:
        """What a fingerprint of passages hashes of each: id and title, and where they end."""
        return f"{self.id} {len(self.title)} {self.title}\n".encode()


def distinct(passages: Iterable[Passage]) -> list[Passage]:
    """Return the passages in their order, of those with the same id the first."""
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
    """A question with its reference answers; the first answer is trained on, all are references in evaluation.

    `contexts` are the distinct passages that come with the question, best first, read where there is no retriever.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    gold_passages: tuple[Passage, ...] = ()
    chat_history: tuple[Turn, ...] = ()
    hard_negatives: tuple[Passage, ...] = ()
    contexts: tuple[Passage, ...] = ()
    unanswerable: bool = False
    where: str = field(default="", compare=False)  # file:line or file[index], as messages give it


def load_examples(
    path: str | Path, *, user_prefix: str | None = None, assistant_prefix: str | None = None
) -> list[Example]:
    """Return the examples of a .jsonl or .jsonl.gz file, or of the one array of a .json file, in its order.

    A row has `question`, `gold_answer` (a text or a list of at least one) and `gold_docs` (which may be empty), and
    may have `hard_neg_docs`, `chat_history` (a list of {speaker, message}), `id` and `unanswerable` (which makes
    `gold_answer` optional). An example without an id is named by the stem of its file and its line, or its index from
    0 in an array. A speaker is user, human or `user_prefix`, or else assistant, system, bot or `assistant_prefix`, in
    any case; a single other name beside the user's is the assistant.

    A row may be one of Fusion-in-Decoder's: `answers` stands for `gold_answer`; `target`, the answer to train on, makes
    them optional and comes before them; `ctxs`, a list of {text, title?, id?}, best first, makes `gold_docs` optional.

    Raises DataError with every problem of the file, InputError where there is no such file or it has no row.
    """
    check_file(path, EXAMPLE_FILES)
    users = {"user", "human", _speaker(user_prefix or "user")}
    assistants = {"assistant", "system", "bot", _speaker(assistant_prefix or "assistant")}
    first_of: dict[str, str] = {}
    examples = []
    for default_id, where, row in _rows(path):
        example = _example(row, default_id, where, _turns(row, users, assistants))
        first = first_of.setdefault(example.id, where)
        if first != where:
            row.problem("id", f'"{example.id}" is already the id of {first}')
        examples.append(example)
    return examples


def _rows(path: str | Path) -> Iterator[tuple[str, str, Fields]]:
    """Yield (default id, place, fields) for each row of a file of examples."""
    data, ending = open_data(path), next(filter(str(path).endswith, EXAMPLE_FILES))
    stem = Path(path).name.removesuffix(ending)
    if ending == ".json":
        for index, row in read_array(path, data):
            yield f"{stem}:{index}", f"{path}[{index}]", row
    else:
        for line, _, row in read_rows(path, data):
            yield f"{stem}:{line}", f"{path}:{line}", row


def load_splits(*paths: str | Path, **prefixes: str | None) -> list[list[Example]]:
    """Return the examples of each file, and none for an empty path; see `load_examples`."""
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
    """Return the target, if there is one, then the other answers."""
    target, name = row.text("target", optional=True), "answers" if row.has("answers") else "gold_answer"
    if row.has("answers") and row.has("gold_answer"):
        row.problem("answers", 'expected this or "gold_answer", found both')
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


def _turns(row: Fields, users: AbstractSet[str], assistants: AbstractSet[str]) -> tuple[Turn, ...]:
    turns = row.objects("chat_history", optional=True)
    names = [_speaker(turn.text("speaker")) for turn in turns]
    others = {*names} - users - assistants
    if len(others) == 1 and not users.isdisjoint(names) and assistants.isdisjoint(names):
        assistants = others  # whoever the user talks to
    return tuple(
        Turn(_role(turn, name, users, assistants), turn.text("message"))
        for turn, name in zip(turns, names, strict=True)
    )


def _role(turn: Fields, name: str, users: AbstractSet[str], assistants: AbstractSet[str]) -> Role:
    if name in users:
        return "user"
    if name and name not in assistants:
        turn.problem(
            "speaker",
            f'cannot tell whether "{name}" is the user or the assistant; expected user, human, assistant, system, bot, '
            "or what --user_prefix or --assistant_prefix says",
        )
    return "assistant"


def _speaker(name: str) -> str:
    return name.strip().casefold()
