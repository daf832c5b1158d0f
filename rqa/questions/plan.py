"""The questions that are wanted, and the passages to ask about next."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rqa.data.records import Passage
from rqa.questions.prompt import KINDS, Kind
from rqa.questions.sampling import PassageSampler, Split
from rqa.questions.writer import Question, Task

MIN_KEPT = 0.25  # the least share of kept questions that the size of a round assumes
LONGEST_CONVERSATION = 3  # questions; the shortest has 2


@dataclass(frozen=True)
class Plan:
    """The number of questions that are wanted, and their shares.

    At most `max_attempts` times as many are asked for: a writer whose questions are all rejected costs no more.
    """

    num_questions: int = 1000
    validation_share: float = 0.1
    test_share: float = 0.1
    multi_turn_share: float = 0.2
    unanswerable_share: float = 0.1
    questions_per_passage: int = 1
    max_attempts: float = 4.0
    split_by: Literal["document", "passage"] = "document"
    seed: int = 0

    @property
    def shares(self) -> dict[Split, float]:
        """The share of each split."""
        test, validation = self.test_share, self.validation_share
        return {"train": 1 - test - validation, "validation": validation, "test": test}

    def wanted(self) -> dict[tuple[Split, Kind], int]:
        """Return the number of questions of each split and kind; that of conversations counts their questions."""
        sizes = {split: max(1, round(self.num_questions * share)) for split, share in self.shares.items() if share > 0}
        sizes["train"] = max(1, self.num_questions - sum(sizes.values()) + sizes["train"])
        wanted: dict[tuple[Split, Kind], int] = {}
        for split, size in sizes.items():
            unanswerable, turns = round(size * self.unanswerable_share), round(size * self.multi_turn_share)
            turns = min(turns, size - unanswerable) if turns > 1 else 0
            counts = {"single": size - unanswerable - turns, "conversation": turns, "unanswerable": unanswerable}
            wanted |= {(split, kind): counts[kind] for kind in KINDS}
        return wanted

    def sampler(self, passages: Sequence[Passage]) -> PassageSampler:
        """Return the sampler of the passages to ask about."""
        return PassageSampler(passages, self.shares, seed=self.seed, by_document=self.split_by == "document")


class QuestionSet:
    """The questions so far, kept by split and kind or rejected, and the tasks that are still to do."""

    def __init__(self, plan: Plan, sampler: PassageSampler) -> None:
        self.plan, self.sampler, self.wanted = plan, sampler, plan.wanted()
        self.kept: dict[tuple[Split, Kind], list[Question]] = {key: [] for key in self.wanted}
        self.rejected: list[Question] = []
        self.num_asked: Counter[Kind] = Counter()  # questions
        self.num_passages = 0
        self.exhausted: dict[Split, None] = {}  # splits without a further passage, in order

    @property
    def num_kept(self) -> int:
        """The number of questions that are kept."""
        return sum(map(len, self.kept.values()))

    @property
    def num_missing(self) -> int:
        """The number of questions that are wanted and not kept."""
        return sum(self.wanted.values()) - self.num_kept

    @property
    def is_given_up(self) -> bool:
        """True if no more questions may be asked for."""
        return self.num_asked.total() >= self.plan.max_attempts * self.plan.num_questions

    def next_tasks(self) -> list[Task]:
        """Return the tasks of the next round, [] if all questions are kept, or nothing is left to ask.

        A round has as many questions as are missing, divided by the share that was kept so far.
        """
        missing = {key: size - len(self.kept[key]) for key, size in self.wanted.items()}
        kept: Counter[Kind] = Counter()
        for (_, kind), questions in self.kept.items():
            kept[kind] += len(questions)
        shares = {kind: max(MIN_KEPT, kept[kind] / asked) for kind, asked in self.num_asked.items()}
        sizes = {key: math.ceil(count / shares.get(key[1], 1.0)) for key, count in missing.items()}
        return [task for (split, kind), size in sizes.items() for task in self._tasks(split, kind, size)]

    def _tasks(self, split: Split, kind: Kind, size: int) -> Iterator[Task]:
        while size > 0 and not self.is_given_up:
            if (passage := self.sampler.take(split)) is None:
                self.exhausted[split] = None
                return
            count = self.plan.questions_per_passage
            if kind == "conversation":
                count = 2 + int(passage.id, 16) % (LONGEST_CONVERSATION - 1)
            size -= count
            self.num_passages += 1
            self.num_asked[kind] += count
            yield Task(passage, kind, count, split)

    def add(self, questions: Sequence[Question]) -> None:
        """Keep the questions without a reason to reject them, as many as are wanted."""
        for question in questions:
            key = question.task.split, question.task.kind
            if not question.reason and len(self.kept[key]) >= self.wanted[key]:
                question = question.rejected("surplus", "enough questions of this kind")
            (self.rejected if question.reason else self.kept[key]).append(question)


def without_broken_conversations(questions: Sequence[Question]) -> list[Question]:
    """Return the questions; in a conversation, those after a rejected one are rejected too."""
    broken: set[str] = set()  # passages
    checked = []
    for question in questions:
        passage = question.task.passage.id
        if not question.reason and question.task.kind == "conversation" and passage in broken:
            question = question.rejected("earlier_turn", "an earlier question of the conversation is rejected")
        if question.reason:
            broken.add(passage)
        checked.append(question)
    return checked
