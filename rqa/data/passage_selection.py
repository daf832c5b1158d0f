"""Which passages an example reads: gold and retrieved, mixed by a pure function of (seed, epoch, example id)."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rqa.data.records import Example, Passage, distinct

Order = Literal["ranked", "random", "gold_first"]

REFUSAL_ANSWER = "The passages do not contain the answer to this question."


@dataclass(frozen=True)
class GeneratorInput:
    """One example as a generator meets it.

    `passages` stand in the order in which they are read. `ranks[i]` is the rank of `passages[i]`, from 0: where the
    prompt is too long, the passage with the highest rank is cut first, wherever it stands.
    """

    example: Example
    passages: tuple[Passage, ...]
    answer: str
    ranks: tuple[int, ...]

    @classmethod
    def from_ranked(cls, example: Example, passages: Iterable[Passage], answer: str = "") -> "GeneratorInput":
        """Return `example` with `passages` read in the order given, best first: what inference reads."""
        passages = tuple(passages)
        return cls(example, passages, answer or next(iter(example.answers), ""), tuple(range(len(passages))))


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
    """Return what `example` is trained on in `epoch`.

    `candidates` are the retrieved passages, best first. The gold passages, then the first `hard_negatives` of the
    example's own, then the first `k` candidates are taken without repetition until there are k + 1 (or all the gold,
    where that is more). With no candidates and k = 0 this is the gold alone, in its own order: SFT.

    `passage_order` is how they are read: "ranked", the first `k` candidates as retrieval ranked them, each passage that
    is not among them at a random place; "random"; or "gold_first", which teaches to trust whatever comes first.

    With probability `gold_dropout` the gold is left out, wherever it came from, the candidates after the first `k` take
    its place (the number of passages must not tell), and the target is `refusal_answer`; so it is for an example marked
    unanswerable.
    """
    rng = random.Random(f"{seed}/{epoch}/{example.id}")  # a text seeds by its SHA-512: the same in every process
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
    answer = refusal_answer if dropped or example.unanswerable else example.answers[0]
    return GeneratorInput(example, tuple(chosen), answer, tuple(rank[passage.id] for passage in chosen))


def _as_ranked(chosen: list[Passage], candidates: Sequence[Passage], rng: random.Random) -> list[Passage]:
    """Put `chosen` in the order of `candidates`, and each of those that are not among them at a random place.

    At a fixed place, first or last, the model would learn that what stands there is the gold.
    """
    place = {passage.id: i for i, passage in enumerate(candidates)}
    ranked = sorted((passage for passage in chosen if passage.id in place), key=lambda passage: place[passage.id])
    for passage in chosen:
        if passage.id not in place:
            ranked.insert(rng.randint(0, len(ranked)), passage)
    return ranked
