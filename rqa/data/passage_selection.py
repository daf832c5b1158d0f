"""The passages of a training example: gold and retrieved, a pure function of (seed, epoch, example id)."""

import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rqa.data.records import Example, Passage, distinct
from rqa.terminal import plural

log = logging.getLogger(__name__)

Order = Literal["ranked", "random", "gold_first"]
# The target of an example that has no gold passage, or is unanswerable
REFUSAL_ANSWER = "The passages do not contain the answer to this question."


@dataclass(frozen=True)
class GeneratorInput:
    """An example with the passages that the generator reads, in reading order, and the target answer.

    `ranks[i]` is the rank of `passages[i]`, from 0. If the prompt is too long, the passage with the highest rank is
    truncated first, at any position.

    `citable_ids` are the ids of the passages that citations in the answer mean: "[1]" is the first of them. Other
    numbers in an answer are text.
    """

    example: Example
    passages: tuple[Passage, ...]
    answer: str
    ranks: tuple[int, ...]
    citable_ids: tuple[str, ...] = ()

    @classmethod
    def from_ranked(cls, example: Example, passages: Iterable[Passage], answer: str = "") -> "GeneratorInput":
        """Return the input at inference: `passages` in their order, best first.

        An `answer` cites the passages of the prompt; without one, the first reference cites the gold passages.
        """
        passages = tuple(passages)
        ranks = tuple(range(len(passages)))
        if answer:
            return cls(example, passages, answer, ranks, _ids(passages))
        return cls(example, passages, next(iter(example.answers), ""), ranks, _ids(example.gold_passages))


def select_passages(
    example: Example,
    candidates: Sequence[Passage],
    *,
    k: int,
    seed: int,
    epoch: int,
    passage_order: Order = "ranked",
    gold_dropout: float = 0.0,
    hard_negatives: int = 0,
    refusal_answer: str = REFUSAL_ANSWER,
) -> GeneratorInput:
    """Return the generator's input for `example` in training epoch `epoch`.

    `candidates` are the retrieved passages, best first. Passages are taken without repetition until there are k + 1,
    or all gold passages if these are more: the gold passages, then the first `hard_negatives` of the example, then the
    first `k` candidates. Without candidates and with k = 0 the gold passages remain, in their own order: SFT.

    `passage_order` is the reading order. "ranked": the first `k` candidates by rank, each other passage at a random
    position. "random": all at random positions. "gold_first": gold first, which teaches trust in the first passage.

    With probability `gold_dropout` the gold passages are left out, from every source, and the target is
    `refusal_answer`. Candidates after the first `k` replace them, so that the number of passages reveals nothing. An
    example marked unanswerable has that target too.
    """
    rng = random.Random(f"{seed}/{epoch}/{example.id}")  # seeded by the text's SHA-512: the same in every process
    gold = {passage.id for passage in example.gold_passages}
    dropped = bool(gold) and rng.random() < gold_dropout
    others = example.hard_negatives[:hard_negatives]
    chosen = distinct([*example.gold_passages, *others, *candidates[:k]])[: max(k + 1, len(gold))]
    if dropped:
        without_gold = [passage for passage in distinct([*others, *candidates]) if passage.id not in gold]
        chosen = without_gold[: len(chosen)]
    rank = {passage.id: i for i, passage in enumerate(chosen)}
    if passage_order == "random":
        rng.shuffle(chosen)
    elif passage_order == "ranked" and candidates:
        chosen = _as_ranked(chosen, candidates[:k], rng)
    ranks = tuple(rank[passage.id] for passage in chosen)
    if dropped or example.unanswerable:
        return GeneratorInput(example, tuple(chosen), refusal_answer, ranks)
    return GeneratorInput(example, tuple(chosen), example.answers[0], ranks, _ids(example.gold_passages))


def _ids(passages: Iterable[Passage]) -> tuple[str, ...]:
    return tuple(passage.id for passage in passages)


def _as_ranked(chosen: list[Passage], candidates: Sequence[Passage], rng: random.Random) -> list[Passage]:
    """Return `chosen` in the order of `candidates`, with each passage that is not among these at a random position.

    At a fixed position, first or last, the model would learn that the passage there is gold.
    """
    position = {passage.id: i for i, passage in enumerate(candidates)}
    ranked = sorted((passage for passage in chosen if passage.id in position), key=lambda passage: position[passage.id])
    for passage in chosen:
        if passage.id not in position:
            ranked.insert(rng.randint(0, len(ranked)), passage)
    return ranked


def warn_without_gold(examples: Sequence[Example]) -> None:
    """Log a warning if examples have no gold passages: training on gold reads no passage for them."""
    if bare := [example.where or example.id for example in examples if not example.gold_passages]:
        log.warning(
            "%s without gold passages, which read none, first %s", plural(len(bare), "training example"), bare[0]
        )
