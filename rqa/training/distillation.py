"""Training of a sentence encoder by its reader: the evidence of each passage for an answer is the target.

B questions, P distinct passages of a batch.
"""

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rqa.data.corpus import PassageStore
from rqa.data.records import Example, Passage
from rqa.errors import InputError
from rqa.evaluation.results import PredictionRecord, read_predictions
from rqa.prompts.collators import IGNORE_INDEX
from rqa.retrieval.encoder import Encoder
from rqa.retrieval.retrieve import build_query
from rqa.terminal import plural
from rqa.training.contrastive import ContrastiveCollator, ContrastiveRow

log = logging.getLogger(__name__)

ATTRIBUTE = "Run recipes/evaluate.py with --attribution on --train_file"


@dataclass(frozen=True)
class Lesson:
    """The passages that the reader read for a question, and their shares of its evidence, with sum 1."""

    passages: tuple[Passage, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Teacher:
    """The lessons of a reader, by the id of the question."""

    lessons: Mapping[str, Lesson]

    @property
    def fingerprint(self) -> str:
        """A hash of the lessons."""
        return hashlib.sha256(repr(sorted(self.lessons.items())).encode()).hexdigest()[:16]


def read_teacher(
    path: str | Path,
    examples: Sequence[Example],
    *,
    scores: str | None = None,
    temperature: float = 1.0,
    passages: PassageStore | None = None,
) -> Teacher:
    """Return a lesson for each example that has one, from the predictions.jsonl of an evaluation, or from its folder.

    `scores` names an attribution of the evaluation; the default is the one that there is. The shares of a lesson are
    the softmax of the scores / `temperature`. Of cross-attention, which has shares, the logarithms are the scores.

    Questions without a prediction, without finite scores, or with fewer than 2 passages are left out and logged. Raises
    InputError if predictions are of other questions or have no attribution, or if `passages`, the corpus, lacks one.
    """
    path = Path(path, "predictions.jsonl") if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise InputError(f"--teacher {path}: expected predictions.jsonl of an evaluation, got no such file")
    predictions = read_predictions(path)
    _check_questions(path, examples, predictions)
    name = _chosen_scores(path, predictions, scores)
    lessons: dict[str, Lesson] = {}
    left_out: Counter[str] = Counter()
    for example in examples:
        if (prediction := predictions.get(example.id)) is None:
            left_out["without a prediction"] += 1
        elif len(values := _values(path, prediction, name)) < 2:
            left_out["with fewer than 2 passages"] += 1
        elif not all(map(math.isfinite, shares := _shares(name, [*values.values()], temperature))):
            left_out["without finite scores"] += 1
        else:
            lessons[example.id] = Lesson((*values,), shares)
    for reason, count in left_out.items():
        log.warning("--teacher %s: %s %s left out", path, plural(count, "question"), reason)
    if not lessons:
        raise InputError(
            f"--teacher {path}: expected questions with {name} of 2 passages or more, got none. {ATTRIBUTE}"
        )
    if passages is not None:
        _check_corpus(path, lessons.values(), passages)
    log.info("--teacher %s: %s of %s", path, name, plural(len(lessons), "question"))
    return Teacher(lessons)


def _check_questions(path: Path, examples: Sequence[Example], predictions: Mapping[str, PredictionRecord]) -> None:
    """Raise InputError unless each prediction is of a question in the examples."""
    questions = {example.id: example.question for example in examples}
    if unknown := [each for each in predictions if each not in questions]:
        raise InputError(
            f"--teacher {path}: expected predictions of the questions in --train_file, got {len(unknown)} of "
            f'{len(predictions)} with other ids, the first "{unknown[0]}". {ATTRIBUTE}'
        )
    if changed := [each for each, row in predictions.items() if row.question != questions[each]]:
        raise InputError(
            f"--teacher {path}: expected predictions of the questions in --train_file, got {len(changed)} ids with "
            f'another question, the first "{changed[0]}". {ATTRIBUTE}'
        )


def _chosen_scores(path: Path, predictions: Mapping[str, PredictionRecord], wanted: str | None) -> str:
    """Return the name of the attribution that teaches."""
    parts = (part for row in predictions.values() for part in row.attribution or ())
    names = [name for name in dict.fromkeys(name for part in parts for name in part) if name not in ("id", "is_gold")]
    if not names:
        raise InputError(f"--teacher {path}: expected predictions with attribution, got none. {ATTRIBUTE}")
    if wanted is None and len(names) > 1:
        raise InputError(f"--teacher_scores: expected one of {', '.join(names)}, which {path} has, got none. Set it")
    if wanted is not None and wanted not in names:
        raise InputError(
            f"--teacher_scores {wanted}: expected one that {path} has, got {', '.join(names)}. {ATTRIBUTE}"
        )
    return wanted or names[0]


def _values(path: Path, prediction: PredictionRecord, name: str) -> dict[Passage, float]:
    """Return the scores of the passages that the prompt contains."""
    read = {row.id: Passage(row.text, row.title) for row in prediction.passages[: prediction.num_passages_read]}
    if changed := [number for number, passage in read.items() if passage.id != number]:
        raise InputError(f'--teacher {path}: question "{prediction.id}": the text of passage {changed[0]} was changed')
    parts = [part for part in prediction.attribution or () if part["id"] in read]
    return {read[part["id"]]: part.get(name, math.nan) for part in parts}


def _shares(name: str, values: Sequence[float], temperature: float) -> tuple[float, ...]:
    """Return the teacher's distribution; not finite if a score is not, or if all shares of the attention are 0."""
    scores = torch.tensor(values, dtype=torch.float64)
    if name == "cross_attention":
        scores = scores.log()
    return tuple((scores / temperature).softmax(0).tolist())


def _check_corpus(path: Path, lessons: Iterable[Lesson], passages: PassageStore) -> None:
    """Raise InputError if the corpus lacks a passage of a lesson."""
    ids = {passage.id: passage for lesson in lessons for passage in lesson.passages}
    if missing := [passage for number, passage in ids.items() if passages.row_of(number) is None]:
        raise InputError(
            f"--teacher {path}: expected passages of --full_dataset_file_path, got {len(missing)} of {len(ids)} that "
            f"it lacks, the first {missing[0].title or missing[0].text[:40]!r}. Evaluate with this corpus"
        )


class DistillationCollator(ContrastiveCollator):
    """Makes batches of questions and the passages of their lessons."""

    def __init__(self, encoder: Encoder, teacher: Teacher, *, history_turns: int = 1) -> None:
        super().__init__(encoder, hard_negatives=0, history_turns=history_turns)
        self.lessons = teacher.lessons

    def usable(self, examples: Sequence[Example]) -> list[Example]:
        """Return the examples that have a lesson."""
        return [example for example in examples if example.id in self.lessons]

    def _row(self, example: Example, epoch: int) -> ContrastiveRow:  # noqa: ARG002  # the same in every epoch
        lesson = self.lessons[example.id]
        [question] = self._tokens([build_query(example, history_turns=self.history_turns)], self.encoder.query_prefix)
        tokens = self._tokens([passage.content for passage in lesson.passages], self.encoder.passage_prefix)
        return ContrastiveRow(question, tokens, tuple(passage.id for passage in lesson.passages), (), lesson.shares)

    def collate(self, rows: Sequence[ContrastiveRow]) -> dict[str, Tensor]:
        """Return a batch: tokens and mask (T, L), questions first; labels (B, 1), candidates and targets (B, P).

        `candidates` is True for the passages of the question, and `targets` has their shares. A label is 0, or
        IGNORE_INDEX in a batch of no rows.
        """
        batch, columns = self._texts(rows)
        shape = len(rows) or 1, len(columns) or 1
        candidates, targets = torch.full(shape, not rows), torch.zeros(shape)
        for i, row in enumerate(rows):
            own = [columns[name] for name in row.ids]
            candidates[i, own], targets[i, own] = True, torch.tensor(row.targets)
        labels = torch.full((shape[0], 1), 0 if rows else IGNORE_INDEX)
        return batch | {"labels": labels, "candidates": candidates, "targets": targets}
