"""What is retrieved for the examples of a run: by one process, once, and kept beside the index; or given with them."""

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray

from rqa.data.corpus import PassageStore, open_passages
from rqa.data.jsonl import DataError
from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Passage
from rqa.errors import InputError
from rqa.timing import Span, record_spans, summarize_spans

log = logging.getLogger(__name__)

KS = (1, 3, 5, 10)  # cut-offs of the retrieval scores
FORMAT = 2
CACHE = "retrieved"  # a folder in that of the index

Stages = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Retrieved:
    """A passage and its score; higher is better."""

    passage: Passage
    score: float


class Retriever(Protocol):
    """Whatever finds passages: two methods."""

    def retrieve(self, queries: Sequence[str], k: int) -> list[list[Retrieved]]:
        """Return for each query at most `k` distinct passages, best first."""

    def fingerprint(self) -> str:
        """Return what changes whenever an answer of `retrieve` could change."""


def build_query(example: Example, *, history_turns: int = 1) -> str:
    """Return the text to retrieve with: the question, after the last `history_turns` messages of the user before it."""
    earlier = [turn.text for turn in example.chat_history if turn.role == "user"]
    return "\n".join([*earlier[max(0, len(earlier) - history_turns) :], example.question])


@dataclass(frozen=True)
class Retrieval:
    """What was found for each of some examples, best first, and the seconds that took: None where nobody searched.

    Nobody did where it was kept from before, or `is_given`. `stages` are told by `rqa.timing.by_stage`.
    """

    found: list[list[Retrieved]]
    seconds: float | None
    fingerprint: str
    stages: Stages = field(default_factory=dict)
    is_given: bool = False

    @classmethod
    def given(cls, examples: Sequence[Example], k: int | None = None) -> "Retrieval":
        """Return the contexts of each example, the first `k`, as what was found; their scores are unknown: NaN."""
        found = [[Retrieved(passage, math.nan) for passage in example.contexts[:k]] for example in examples]
        digest = hashlib.sha256()
        for hits in found:
            digest.update(b"".join([b"%d\n" % len(hits), *(hit.passage.identity for hit in hits)]))
        return cls(found, None, f"given {digest.hexdigest()[:16]}", is_given=True)

    @property
    def origin(self) -> str:
        """Where the passages are from, in words."""
        return "given with the questions" if self.is_given else "retrieved"

    def passages(self, i: int) -> list[Passage]:
        """Return the passages of the example at position `i`, best first."""
        return [hit.passage for hit in self.found[i]]

    def readings(self, examples: Sequence[Example], k: int) -> list[GeneratorInput]:
        """Return what a generator reads at inference: the first `k` passages of each example."""
        return [
            GeneratorInput.from_ranked(example, (hit.passage for hit in hits[:k]))
            for example, hits in zip(examples, self.found, strict=True)
        ]


@dataclass(frozen=True)
class Hits:
    """A retrieval as numbers: rows of the corpus (n, k), -1 where there are fewer, and their scores (n, k)."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    seconds: float | None = None
    stages: Stages = field(default_factory=dict)

    @classmethod
    def of(
        cls, found: Sequence[Sequence[Retrieved]], passages: PassageStore, k: int, seconds: float, stages: Stages
    ) -> "Hits":
        """Return what was `found`, at most `k` for each query, as numbers."""
        rows, scores = np.full((len(found), k), -1, np.int64), np.zeros((len(found), k), np.float32)
        for i, hits in enumerate(found):
            rows[i, : len(hits)] = np.array([passages.row_of(hit.passage.id) for hit in hits], np.int64)
            scores[i, : len(hits)] = [hit.score for hit in hits]
        return cls(rows, scores, seconds, stages)

    def found(self, passages: PassageStore) -> list[list[Retrieved]]:
        """Return the passages and their scores, best first."""
        return [
            [Retrieved(passages[row], score) for row, score in zip(*pair, strict=True) if row >= 0]
            for pair in zip(self.rows.tolist(), self.scores.tolist(), strict=True)
        ]


def retrieve_all(retriever: Retriever, examples: Sequence[Example], k: int, *, history_turns: int = 1) -> Retrieval:
    """Retrieve `k` passages for each example, in one call. The first query is retrieved twice: a warm-up, not timed."""
    queries = [build_query(example, history_turns=history_turns) for example in examples]
    found, seconds, stages = _timed(retriever, queries, k)
    return Retrieval(found, seconds, retriever.fingerprint(), stages)


def _timed(retriever: Retriever, queries: Sequence[str], k: int) -> tuple[list[list[Retrieved]], float, Stages]:
    retriever.retrieve(queries[:1], k)
    start = time.perf_counter()
    with record_spans() as spans:
        found = retriever.retrieve(queries, k)
    seconds = time.perf_counter() - start
    if queries and not spans:
        spans = [Span("retrieve", seconds, len(queries))]  # by a retriever that times no stages
    return found, seconds, summarize_spans(spans)


def uses_only_gold(embedding_model: str, splits: Sequence[Sequence[Example]]) -> bool:
    """Tell whether gold passages are all that could be read: no retriever, and no example that brings its passages."""
    return not embedding_model and not any(example.contexts for example in chain(*splits))


def open_corpus(
    embedding_model: str, path: str, splits: Sequence[Sequence[Example]], *, flag: str = "--embedding_model"
) -> PassageStore | None:
    """Open the corpus that a retriever searches; None without one, where every example must bring its passages.

    Raises InputError as `open_passages` does, or DataError of the examples that bring none: it calls the retriever
    `flag`.
    """
    if embedding_model:
        return open_passages(path)
    if uses_only_gold(embedding_model, splits):
        raise InputError(f"{flag} is required: no question brings its passages (ctxs)")
    _check_given(splits, flag)
    return None


def _check_given(splits: Sequence[Sequence[Example]], flag: str) -> None:
    error = DataError()
    for example in chain(*splits):
        if not example.contexts:
            error.add(example.where or example.id, f'no passages in "ctxs", and no retriever to find any: give {flag}')
    if error.count:
        raise error


def retrieve_splits(
    accelerator: Accelerator,
    open_retriever: Callable[[], Retriever] | None,
    passages: PassageStore | None,
    splits: Sequence[Sequence[Example]],
    k: int,
    *,
    history_turns: int = 1,
    cache_dir: Path | None = None,
) -> list[Retrieval]:
    """Retrieve `k` passages of a corpus for each example of each split; the result is the same on every process.

    `open_retriever` is called on the main process alone, and its result is released before this returns. Without it
    the passages are the first `k` contexts of each example, and `passages` is not used; raises DataError if an example
    has no contexts. With a `cache_dir` results are read from there if the retriever's fingerprint, `k` and the queries
    are the same, and written there otherwise; cached results have no time.
    """
    if open_retriever is None:
        _check_given(splits, "--embedding_model")
        log.info('passages: the "ctxs" of the questions; no retrieval')
        return [Retrieval.given(examples, k) for examples in splits]
    if passages is None:
        raise ValueError("retrieve_splits: expected the corpus that the retriever searches, got None")
    if num_given := sum(bool(example.contexts) for example in chain(*splits)):
        log.info('the "ctxs" of %d questions are ignored: --embedding_model is set', num_given)
    _log_missing_gold([*chain(*splits)], passages)
    results: list[Any] = [None]
    if accelerator.is_main_process:
        retriever = open_retriever()
        hits = [_retrieve(retriever, passages, examples, k, history_turns, cache_dir) for examples in splits]
        results = [(hits, retriever.fingerprint())]
    [(hits, fingerprint)] = broadcast_object_list(results)
    return [Retrieval(each.found(passages), each.seconds, fingerprint, each.stages) for each in hits]


def _retrieve(
    retriever: Retriever,
    passages: PassageStore,
    examples: Sequence[Example],
    k: int,
    history_turns: int,
    cache: Path | None,
) -> Hits:
    """Retrieve, or take it from the cache, whose key is all that decides.

    All queries together are one key: the last bits of an embedding depend on those that are embedded with it, and a run
    that goes on must find what it found.
    """
    queries = [build_query(example, history_turns=history_turns) for example in examples]
    key = hashlib.sha256(json.dumps([FORMAT, retriever.fingerprint(), k, queries]).encode()).hexdigest()
    path = cache / f"{key[:32]}.npz" if cache else None
    if path is not None and path.exists():
        try:
            return _read(path, (len(queries), k), len(passages))
        except (OSError, EOFError, ValueError, LookupError, BadZipFile) as error:
            log.warning("%s: damaged, and made again: %s", path, error)
    found, seconds, stages = _timed(retriever, queries, k)
    hits = Hits.of(found, passages, k, seconds, stages)
    if path is not None:
        try:
            _write(path, hits)
        except OSError as error:
            log.warning("%s: what was retrieved cannot be kept: %s", path, error)
    return hits


def _read(path: Path, shape: tuple[int, int], num_passages: int) -> Hits:
    with np.load(path, allow_pickle=False) as stored:
        hits = Hits(stored["rows"], stored["scores"])
    if not (hits.rows.shape == hits.scores.shape == shape):
        raise ValueError(f"expected {shape}, found rows {hits.rows.shape} and scores {hits.scores.shape}")
    if hits.rows.size and not (-1 <= hits.rows.min() <= hits.rows.max() < num_passages):
        raise ValueError(f"expected rows of a corpus of {num_passages}")
    return hits


def _write(path: Path, hits: Hits) -> None:
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        np.savez(file, rows=hits.rows, scores=hits.scores)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _log_missing_gold(examples: Sequence[Example], passages: PassageStore) -> None:
    """Warn of gold passages that the corpus lacks: each is a miss of the retriever that no retriever could avoid."""
    missing = [
        example.where
        for example in examples
        if any(passages.row_of(passage.id) is None for passage in example.gold_passages)
    ]
    if missing:
        log.warning("%d examples have gold passages that the corpus lacks, first %s", len(missing), missing[0])
