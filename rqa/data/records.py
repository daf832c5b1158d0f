"""Passage, Turn, Example: the records of the user's files, and the reader of example files."""

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from rqa.data.data_file import check_file, open_data
from rqa.data.fields import Fields, quoted
from rqa.data.file_report import FileReport
from rqa.data.jsonl import read_array, read_rows

Role = Literal["user", "assistant"]
EXAMPLE_FILES = (".jsonl", ".jsonl.gz", ".json")
_NO_TURN = frozenset({"system", "developer", "tool", "function"})  # roles of OpenAI


def normalized_text(text: str) -> str:
    """Return a text in NFC, with runs of white space made one space."""
    normalized = unicodedata.normalize("NFC", text)
    # White space but " " is not printable, and the test of all characters is faster than the split.
    if "  " in text or text[:1] == " " or text[-1:] == " " or not text.isprintable():
        normalized = " ".join(normalized.split())
    return normalized


def passage_digest(text: str) -> bytes:
    """Return the 16 bytes of `Passage.id`: the first half of the SHA-256 of the normalized text."""
    return hashlib.sha256(normalized_text(text).encode()).digest()[:16]


def passage_identity(passage_id: str, title: str) -> bytes:
    """Return id, length of the title and title: the part of a passage in a fingerprint of passages."""
    return f"{passage_id} {len(title)} {title}\n".encode()


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
        return passage_digest(self.text).hex()

    @property
    def content(self) -> str:
        """Title, newline, text: embedded by the retriever and read by the generator."""
        return f"{self.title}\n{self.text}" if self.title else self.text

    @property
    def identity(self) -> bytes:
        """The part of this passage in a fingerprint of passages."""
        return passage_identity(self.id, self.title)


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
    path: str | Path,
    *,
    user_prefix: str | None = None,
    assistant_prefix: str | None = None,
    gold_required: bool = True,
    max_bad_rows: int = 0,
) -> list[Example]:
    """Return the examples of a file; see `read_examples` for its format and the other options.

    Raises DataError with every problem of the file if more than `max_bad_rows` rows have problems, or all rows. Raises
    InputError if there is no such file or it has no row. Rows that are left out, and fields that are not read, are
    logged.
    """
    examples, report = read_examples(
        path, user_prefix=user_prefix, assistant_prefix=assistant_prefix, gold_required=gold_required
    )
    report.check(max_bad_rows)
    return examples


def load_splits(*paths: str | Path, gold_required: bool | Sequence[bool] = True, **options: Any) -> list[list[Example]]:
    """Return the examples of each file; an empty path has none. See `load_examples`.

    `gold_required` is one value for all files, or one for each.
    """
    required = [gold_required] * len(paths) if isinstance(gold_required, bool) else gold_required
    return [
        load_examples(path, gold_required=gold, **options) if path else []
        for path, gold in zip(paths, required, strict=True)
    ]


def read_examples(
    path: str | Path,
    *,
    user_prefix: str | None = None,
    assistant_prefix: str | None = None,
    gold_required: bool = True,
) -> tuple[list[Example], FileReport]:
    """Return the examples of a .jsonl or .jsonl.gz file, or of the one array of a .json file, and the file's problems.

    The examples are those of the rows without problems, in the file's order. A row requires `question`, `gold_answer`
    (a text or a list of at least one) and, if `gold_required`, `gold_docs` (which may be empty). Optional are
    `hard_neg_docs`, `chat_history`, `id` and `unanswerable`, which makes `gold_answer` optional. The default id is the
    stem of the file with the line, or with the index from 0 in an array.

    `chat_history` is a list of {speaker, message}. A speaker is user, human or `user_prefix`, or else assistant,
    system, bot or `assistant_prefix`, in any case. A single other name beside the user's is the assistant. Messages of
    OpenAI, {role, content}, are read too.

    Rows of Fusion-in-Decoder work too. `answers` replaces `gold_answer`; an empty list has no references. `target`, for
    training, precedes the answers and makes them optional. `ctxs`, a list of {text, title?, id?, score?}, makes
    `gold_docs` optional. They are sorted by `score` if all have a number there; else they are in order, best first.

    Hard negatives and `ctxs` without text are left out. Raises InputError if there is no such file or it has no row.
    """
    check_file(path, EXAMPLE_FILES)
    users = {"user", "human", _speaker(user_prefix or "user")}
    assistants = {"assistant", "system", "bot", _speaker(assistant_prefix or "assistant")}
    report = FileReport(path)
    examples: dict[str, Example] = {}
    for default_id, where, row in _rows(path, report):
        example = _example(row, default_id, where, _turns(row, users, assistants), gold_required)
        if (first := examples.get(example.id)) is not None:
            row.problem("id", f"{quoted(example.id)} is already the id of {first.where}")
        if not row.problems:
            examples[example.id] = example
    return list(examples.values()), report


def _rows(path: str | Path, report: FileReport) -> Iterator[tuple[str, str, Fields]]:
    """Return (default id, place, fields) of each row of an example file."""
    data, ending = open_data(path), next(filter(str(path).endswith, EXAMPLE_FILES))
    stem = Path(path).name.removesuffix(ending)
    if ending == ".json":
        return ((f"{stem}:{index}", f"{path}[{index}]", row) for index, row in read_array(path, data, report))
    return ((f"{stem}:{line}", f"{path}:{line}", row) for line, *_, row in read_rows(path, data, report))


def _example(row: Fields, default_id: str, where: str, turns: tuple[Turn, ...], gold_required: bool) -> Example:
    unanswerable = row.flag("unanswerable")
    is_gold_optional = row.has("ctxs") or not gold_required
    return Example(
        id=row.identifier("id") or default_id,
        question=row.text("question"),
        answers=_answers(row, optional=unanswerable),
        gold_passages=tuple(map(read_passage, row.objects("gold_docs", optional=is_gold_optional))),
        chat_history=turns,
        hard_negatives=tuple(map(read_passage, _with_text(row, "hard_neg_docs", "page_content"))),
        contexts=_contexts(row),
        unanswerable=unanswerable,
        where=where,
    )


def _answers(row: Fields, *, optional: bool) -> tuple[str, ...]:
    """Return the target, if any, then the other answers."""
    target, name = row.text("target", optional=True), "answers" if row.has("answers") else "gold_answer"
    if row.has("answers") and row.has("gold_answer"):
        row.problem("answers", 'expected this or "gold_answer", got both')
    answers = row.texts(name, optional=optional or bool(target), may_be_empty=name == "answers")
    return (target, *(answer for answer in answers if answer != target)) if target else answers


def read_passage(row: Fields) -> Passage:
    """Return the passage of a row {page_content, metadata?: {source?, title?}}."""
    metadata = row.object("metadata", optional=True)
    source = metadata.text("source", optional=True)
    return Passage(row.text("page_content"), metadata.text("title", optional=True), (source,) if source else ())


def _with_text(row: Fields, name: str, text_name: str) -> list[Fields]:
    """Return the passages of an optional list, without those that have an empty text."""
    passages = row.objects(name, optional=True)
    blank = [passage for passage in passages if passage.is_blank(text_name)]
    for passage in blank:
        passage.leave_out()
    if blank:
        row.note(f"passages without text are left out of {name}")
    return [passage for passage in passages if passage not in blank]


def _contexts(row: Fields) -> tuple[Passage, ...]:
    """Return the distinct `ctxs`, the highest score first if all have one, as Fusion-in-Decoder reads them."""
    passages = _with_text(row, "ctxs", "text")
    scores = [passage.number("score") for passage in passages]
    ranking = sorted(range(len(passages)), key=lambda i: -(scores[i] or 0.0))  # equal scores keep their order
    if None in scores:
        if any(passage.has("score") for passage in passages):
            row.note("ctxs stay in the order of the file: not all have a number as score")
    elif ranking != [*range(len(passages))]:
        row.note("ctxs are sorted by score, highest first: their order in the file is another")
        passages = [passages[i] for i in ranking]
    return tuple(distinct(map(_context, passages)))


def _context(row: Fields) -> Passage:
    source = row.identifier("id")
    return Passage(row.text("text"), row.text("title", optional=True), (source,) if source else ())


def _turns(row: Fields, users: set[str], assistants: set[str]) -> tuple[Turn, ...]:
    messages = [_message(turn) for turn in row.objects("chat_history", optional=True)]
    names = {name for _, name, _ in messages}
    others = names - users - assistants - {""}
    if len(others) == 1 and not users.isdisjoint(names) and assistants.isdisjoint(names):
        assistants = others  # the other speaker
    for speaker, name, _ in messages:
        if name and name not in users | assistants:
            expected = "user, human, assistant, system, bot, --user_prefix or --assistant_prefix"
            speaker(f"expected {expected}, got {quoted(name)}")
    return tuple(Turn("user" if name in users else "assistant", text) for _, name, text in messages)


def _message(turn: Fields) -> tuple[Callable[[str], None], str, str]:
    """Return a function that reports a problem of the speaker, its name, and the text of a message.

    The name is "" if it is a problem. A system message of OpenAI is one: it is no turn, and the instruction of the
    prompt is the same for all examples.
    """
    is_openai = turn.has("role") or turn.has("content")
    if is_openai and (turn.has("speaker") or turn.has("message")):
        turn.problem("role", 'expected "role" and "content", or "speaker" and "message", got fields of both')
        return partial(turn.problem, "role"), "", ""
    field = "role" if is_openai else "speaker"
    name = _speaker(turn.text(field))
    if is_openai and name in _NO_TURN:
        turn.problem("role", f"expected user or assistant, got {quoted(name)}. Remove the message")
        name = ""
    return partial(turn.problem, field), name, _content(turn) if is_openai else turn.text("message")


def _content(turn: Fields) -> str:
    """Return the content of a message of OpenAI: a text, or a list of parts {type: "text", text}."""
    if not turn.is_list("content"):
        return turn.text("content")
    parts = turn.objects("content")
    if not parts:
        turn.problem("content", "expected text, got empty list")
    for part in parts:
        if (kind := part.text("type", optional=True)) not in ("", "text"):
            part.problem("type", f'expected "text", got {quoted(kind)}')
    return "".join(part.text("text") for part in parts)


def _speaker(name: str) -> str:
    return name.strip().casefold()
