"""The records in the files of an evaluation or a training run, one strict reader, and one writer."""

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Never, TypeVar, Union, get_args, get_origin, get_type_hints

from rqa.atomic_files import atomic_file, write_json
from rqa.data.citations import without_citations
from rqa.data.fields import type_name
from rqa.data.jsonl import parse_object
from rqa.data.records import Turn
from rqa.errors import InputError

R = TypeVar("R")

FORMAT = 2  # of score.json, predictions.jsonl and contexts.json; raised when a field is renamed or changes its meaning

EVALUATE_AGAIN = "Evaluate again."
RESUME = "Resume the run: --resume_from_checkpoint latest."  # it restores the logs

Interval = tuple[float, float]
FloatOrNaN = Annotated[float, "null in JSON if it is not finite"]


class Has:
    """A JSON object that stays a dictionary: the types of fields that it must have, and of all others."""

    def __init__(self, others: Any = Any, optional: Collection[str] = (), **kinds: Any) -> None:
        self.kinds, self.others = kinds, others
        self.required = [name for name in kinds if name not in optional]


STAGE = Has(seconds_per_question=float, p50=float, p95=float, others=float)
CONDITION = Has(scores=Has(f1=float, others=float), intervals=Has(f1=Interval, others=Interval))


# A field that equals its default is left out of the JSON object. The order of the fields is that of the file.


@dataclass(frozen=True)
class PassageRecord:
    """A retrieved passage with its retrieval score, NaN if it has none."""

    id: str
    title: str
    text: str
    sources: tuple[str, ...]
    score: FloatOrNaN
    is_gold: bool


@dataclass(frozen=True)
class VerdictRecord:
    """The judge's verdict; `correct` is None unless `status` is "judged"."""

    status: str
    correct: bool | None
    explanation: str


@dataclass(frozen=True)
class SentenceRecord:
    """A sentence of an answer, its citations in order, and the cited numbers whose passage supports a part of it.

    `is_supported` is True if the cited passages together support all of it.
    """

    text: str
    cited: tuple[int, ...]
    supporting: tuple[int, ...]
    is_supported: bool


@dataclass(frozen=True)
class CitationSupportRecord:
    """The judge's verdict on the citations of an answer; without `sentences` unless `status` is "judged"."""

    status: str
    explanation: str
    sentences: tuple[SentenceRecord, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PredictionRecord:
    """One line of predictions.jsonl: a question, its passages, the answer and its scores.

    `passages` are best first; the prompt contains the first `num_passages_read`, of which the last may be truncated.
    `citation_scores` is None unless answers cite passages. Citations in `references` are numbers of gold passages.
    """

    id: str
    question: str
    chat_history: tuple[Turn, ...] = ()
    passages: tuple[PassageRecord, ...]
    retrieval_scores: dict[str, float] | None = None
    num_passages_read: int | None = None
    answer: str | None = None
    reasoning: str | None = None
    references: tuple[str, ...] = ()
    finished: bool | None = None
    answer_scores: dict[str, float] | None = None
    cited_ids: tuple[str, ...] | None = None
    citation_scores: dict[str, float] | None = None
    attribution: tuple[Annotated[dict[str, Any], Has(id=str, is_gold=bool, others=FloatOrNaN)], ...] | None = None
    attribution_scores: dict[str, float] | None = None
    reference_nll: FloatOrNaN | None = None
    reference_tokens: int | None = None
    verdict: VerdictRecord | None = None
    citation_support: CitationSupportRecord | None = None
    judge_scores: dict[str, float] | None = None

    @property
    def scored_answer(self) -> str | None:
        """The answer without citations, as it is scored."""
        return self.answer if self.answer is None or self.citation_scores is None else without_citations(self.answer)

    @property
    def scored_references(self) -> tuple[str, ...]:
        """The references without citations, as answers are scored against them."""
        return self.references if self.citation_scores is None else tuple(map(without_citations, self.references))


@dataclass(frozen=True, kw_only=True)
class ScoreRecord:
    """The content of score.json: metrics with their intervals, and the conditions under which they were measured."""

    metrics: dict[str, FloatOrNaN]
    intervals: dict[str, Interval]
    level: float
    resamples: int
    examples: int
    examples_left_out: int = 0  # by --max_examples
    passages_read: str
    examples_without_gold: int | None = None
    examples_without_references: int = 0  # answered, not scored
    retrieval: Annotated[dict[str, Any], Has(fingerprint=str, others=float | None)] | None = None
    signatures: dict[str, str] | None = None
    generation: Annotated[dict[str, Any], Has(seconds_per_answer=float | None, others=float)] | None = None
    examples_that_read_gold: int | None = None
    runtime: Annotated[dict[str, Any], Has(stages=Has(others=STAGE))]
    versions: dict[str, str]
    labels: dict[str, str] | None = None  # of metrics that are not in METRICS
    judge: dict[str, Any] | None = None

    @property
    def notes(self) -> list[str]:
        """The counts, if not 0, without which the scores can be misread."""
        generation = self.generation or {}
        untimed = self.examples - self.runtime["timed_answers"] if "timed_answers" in self.runtime else 0
        counts = {
            "examples left out by --max_examples": self.examples_left_out,
            "answers of an earlier attempt, without times": untimed,
            "answers cut by --max_new_tokens": generation.get("unfinished", 0),
            "prompts with truncated passages": generation.get("truncated_prompts", 0),
            "answers with reasoning, which is not scored": generation.get("answers_with_reasoning", 0),
            "examples without references, whose answers are not scored": self.examples_without_references,
        }
        return [f"{count:,} {name}" for name, count in counts.items() if count]


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One line of metrics.jsonl: an optimizer step."""

    step: int
    loss: FloatOrNaN
    gradient_norm: FloatOrNaN
    learning_rate: float
    target_tokens: int
    positions: int
    examples: int
    skipped: bool
    non_finite_examples: tuple[str, ...] | None = None


@dataclass(frozen=True)
class EvaluationRecord:
    """The other kind of line in metrics.jsonl: the metrics of one evaluation, named after its folder."""

    evaluation: str
    metrics: dict[str, FloatOrNaN]


@dataclass(frozen=True)
class TimingRecord:
    """One line of timings.jsonl."""

    step: int
    seconds: float
    batch_seconds: float
    memory_gib: float


@dataclass(frozen=True)
class RunRecords:
    """The logs of a training run: metrics.jsonl and timings.jsonl."""

    steps: list[StepRecord]
    evaluations: list[EvaluationRecord]
    timings: list[TimingRecord]


@dataclass(frozen=True)
class PairedResult:
    """The second system's score minus the first's, its interval, and the two-sided p-value of no difference."""

    difference: float
    low: float
    high: float
    p_value: float
    questions: int


@dataclass(frozen=True, kw_only=True)
class ContextsRecord:
    """The content of contexts.json; see `rqa.evaluation.context_report.compare_contexts`."""

    k: int
    questions: int
    unanswerable: int
    left_out: dict[str, int]
    inputs: int
    refusal_answer: str
    level: float
    resamples: int
    conditions: dict[str, Annotated[dict[str, Any], CONDITION]]
    differences: dict[str, Annotated[dict[str, PairedResult], Has(f1=PairedResult, others=PairedResult)]]
    positions: Annotated[dict[str, Any], Has(best=int, worst=int, spread=float, p_value=float)]
    refusals: Annotated[dict[str, Any], Has(precision=float | None, recall=float | None, correct=int)]
    answers: tuple[dict[str, Any], ...]


def to_json(value: Any) -> Any:
    """Return a record, or a value in it, as JSON values; a number that is not finite becomes None."""
    if is_dataclass(value):
        parts = ((field, getattr(value, field.name)) for field in fields(value))
        return {field.name: to_json(part) for field, part in parts if part != field.default}
    if isinstance(value, Mapping):
        return {name: to_json(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_line(record: Any) -> str:
    """Return a record, or a dictionary, as one line of strict JSON."""
    return json.dumps(to_json(record), ensure_ascii=False, allow_nan=False) + "\n"


def write_record(path: Path, record: Any) -> None:
    """Write a record as a JSON file with a format number, atomically. Raises OSError."""
    write_json(path, {"format": FORMAT, **to_json(record)})


def write_predictions(path: Path, predictions: Iterable[PredictionRecord]) -> None:
    """Write predictions.jsonl atomically. Raises OSError."""
    with atomic_file(path) as file:
        file.writelines(to_line({"format": FORMAT, **to_json(row)}).encode() for row in predictions)


def read_record(path: Path, kind: type[R]) -> R:
    """Read a JSON file with a format number. Raises InputError that names the field if it does not match `kind`."""
    return _with_format(kind, read_object(path), str(path))


def read_predictions(path: Path) -> dict[str, PredictionRecord]:
    """Return the records of a predictions.jsonl by id, in its order. Raises InputError if a line is not valid."""
    records: dict[str, PredictionRecord] = {}
    for place, row in _rows(path, EVALUATE_AGAIN):
        record = _with_format(PredictionRecord, row, place)
        if record.answer_scores and not record.references:
            raise InputError(f'{place}: field "references": expected at least one beside "answer_scores", got none')
        if record.id in records:
            raise InputError(f'{place}: field "id": expected unique ids, got {record.id!r} twice. {EVALUATE_AGAIN}')
        records[record.id] = record
    return records


def read_run(folder: Path) -> RunRecords:
    """Read metrics.jsonl, and timings.jsonl if it exists. Raises InputError if a line is not valid."""
    run = RunRecords([], [], [])
    for place, row in _rows(folder / "metrics.jsonl", RESUME):
        if "evaluation" in row:
            name = _convert(str, row.pop("evaluation"), place, "evaluation")
            run.evaluations.append(EvaluationRecord(name, _convert(dict[str, FloatOrNaN], row, place)))
        else:
            run.steps.append(_convert(StepRecord, row, place))
    if (path := folder / "timings.jsonl").is_file():
        run.timings.extend(_convert(TimingRecord, row, place) for place, row in _rows(path, RESUME))
    return run


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains one object of any fields. Raises InputError if it is not strict JSON."""
    # config.json may have lone surrogates: a path is not always UTF-8.
    return _object(path.read_bytes(), str(path), EVALUATE_AGAIN, lone_surrogates=True)


def _rows(path: Path, remedy: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield file:line and the object of each line."""
    for number, line in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), 1):
        yield f"{path}:{number}", _object(line, f"{path}:{number}", remedy)


def _object(data: bytes, place: str, remedy: str, *, lone_surrogates: bool = False) -> dict[str, Any]:
    try:
        return parse_object(data, lone_surrogates=lone_surrogates)
    except ValueError as problem:
        raise InputError(f"{place}: {problem}. {remedy}") from problem


def check_format(row: Mapping[str, Any], place: str) -> None:
    """Raise InputError if another version of rqa wrote the object `row` of the file `place`."""
    if (number := row.get("format", "none")) != FORMAT:
        written = "Another version of rqa wrote it."
        raise InputError(f'{place}: field "format": expected {FORMAT}, got {number}. {written} {EVALUATE_AGAIN}')


def _with_format(kind: type[R], row: dict[str, Any], place: str) -> R:
    check_format(row, place)
    del row["format"]
    record: R = _convert(kind, row, place)
    return record


def _convert(kind: Any, value: Any, place: str, name: str = "") -> Any:
    """Return a JSON value as a value of the type `kind`; `name` is its field at `place`, for messages."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if kind is Never:
        raise InputError(f'{place}: field "{name}": expected no field of this name')
    if origin in (Union, UnionType):  # of a type and None
        return None if value is None and args[0] != FloatOrNaN else _convert(args[0], value, place, name)
    if kind == FloatOrNaN:
        return math.nan if value is None else _checked(value, float, place, name)
    if has := _fields(kind):
        row, prefix = _checked(value, dict, place, name), f"{name}." if name else ""
        missing = [key for key in has.required if key not in row]
        values = {
            key: _convert(has.kinds.get(key, has.others), row.get(key, MISSING), place, prefix + key)
            for key in (*missing, *row)
        }
        is_dictionary = origin or isinstance(kind, Has)
        return values if is_dictionary else kind(**values)
    if origin is tuple:
        parts = _checked(value, list, place, name)
        if args[-1] is not Ellipsis and len(parts) != len(args):
            raise InputError(f'{place}: field "{name}": expected {len(args)} values, got {len(parts)}')
        return tuple(_convert(args[0], part, place, f"{name}[{i}]") for i, part in enumerate(parts))
    return _checked(value, str if origin is Literal else kind, place, name)


@cache
def _fields(kind: Any) -> Has | None:
    """Return the fields of a record or a dictionary, None for another type."""
    if is_dataclass(kind):
        defaults = [field.name for field in fields(kind) if field.default is not MISSING]
        return Has(Never, defaults, **get_type_hints(kind, include_extras=True))
    args = get_args(kind)
    if get_origin(kind) is dict:
        return Has(args[1])
    return next((part for part in (kind, *args) if isinstance(part, Has)), None)


def _checked(value: Any, kind: type, place: str, name: str) -> Any:
    if type(value) is not kind and not (kind is float and type(value) is int):
        actual = "nothing" if value is MISSING else type_name(value)
        raise InputError(f'{place}: field "{name}": expected {type_name(kind())}, got {actual}')
    return value
