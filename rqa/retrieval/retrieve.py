"""Passages for the examples of a run: retrieved once and cached; or given with the examples."""

import hashlib
import json
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, overload, runtime_checkable
from zipfile import BadZipFile

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray

from rqa.atomic_files import atomic_file
from rqa.data.corpus import PassageStore, open_passages
from rqa.data.file_report import DataError
from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Passage
from rqa.errors import InputError
from rqa.retrieval.query_sharing import share_queries
from rqa.terminal import Progress, plural
from rqa.timing import Span, record_spans, summarize_spans

log = logging.getLogger(__name__)
Stages = dict[str, dict[str, float]]
# Rows of the corpus (n, k), -1 if there are fewer, and their scores (n, k); `seconds` and `stages` of a `Retrieval`.
_Hits = tuple[NDArray[np.int64], NDArray[Any], float | None, Stages]

KS = (1, 3, 5, 10)  # cut-offs of the retrieval scores
FORMAT = 3  # of cached results


@dataclass(frozen=True)
class Retrieved:
    """A passage and its score; higher is better."""

    passage: Passage
    score: float


class HitLists(Sequence[list[Retrieved]]):
    """`size` lists of passages, best first. `read(i)` returns a list at each access, so that memory holds no text."""

    def __init__(self, size: int, read: Callable[[int], list[Retrieved]]) -> None:
        self._size, self._read = size, read

    @classmethod
    def ranked(cls, passages: PassageStore, rows: NDArray[Any], scores: NDArray[Any]) -> "HitLists":
        """Return the passages in `rows` (n, k) of the corpus, without rows of -1, and their scores (n, k)."""

        def read(i: int) -> list[Retrieved]:
            pairs = zip(rows[i].tolist(), scores[i].tolist(), strict=True)
            return [Retrieved(passages[row], score) for row, score in pairs if row >= 0]

        return cls(len(rows), read)

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> list[Retrieved]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[Retrieved]]: ...
    def __getitem__(self, index: int | slice) -> list[Retrieved] | list[list[Retrieved]]:
        rows = range(self._size)[index]
        return [*map(self._read, rows)] if isinstance(rows, range) else self._read(rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and [*self] == [*other]

    __hash__ = None  # type: ignore[assignment]  # as a list


class Retriever(Protocol):
    """Two methods: a class of your own that has them is a retriever."""

    def retrieve(self, queries: Sequence[str], k: int) -> list[list[Retrieved]]:
        """Return for each query at most `k` distinct passages, best first."""

    def fingerprint(self) -> str:
        """Return an identifier that changes whenever retrieval results may change."""


@runtime_checkable
class Verifiable(Protocol):
    """A retriever that reads files, and searches them before all of them were compared with their checksums."""

    def verify(self) -> None:
        """Wait for the comparison. Raises InputError if a file is damaged."""


class CorpusRetriever(ABC):
    """A retriever of this package: it returns rows of a corpus, so that memory holds no text of passages."""

    def __init__(self, passages: PassageStore) -> None:
        self.passages = passages

    @abstractmethod
    def search(self, queries: Sequence[str], k: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return rows (n, k), best first, ties in the order of the corpus, and scores (n, k).

        If there are fewer than k, the tail has row -1 and score -inf.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Return an identifier that changes whenever retrieval results may change."""

    def retrieve(self, queries: Sequence[str], k: int) -> list[list[Retrieved]]:
        """Return for each query at most `k` distinct passages, best first."""
        return [*HitLists.ranked(self.passages, *self.search(queries, k))]

    def verify(self) -> None:  # noqa: B027  # some compare their files when they are opened
        """Wait until every file was compared with its checksums. Raises InputError if one is damaged."""


def build_query(example: Example, *, history_turns: int = 1) -> str:
    """Return the question, after the last `history_turns` messages of the user before it."""
    earlier = [turn.text for turn in example.chat_history if turn.role == "user"]
    return "\n".join([*earlier[max(0, len(earlier) - history_turns) :], example.question])


@dataclass(frozen=True)
class Retrieval:
    """The passages of each of some examples, best first.

    Passages are read from the corpus at each access to `retrieved`. `seconds` is the time of retrieval, None if the
    result was cached or `is_given`. `stages` come from `rqa.timing.summarize_spans`.
    """

    retrieved: Sequence[list[Retrieved]]
    seconds: float | None
    fingerprint: str
    stages: Stages = field(default_factory=dict)
    is_given: bool = False

    @classmethod
    def given(cls, examples: Sequence[Example], k: int | None = None) -> "Retrieval":
        """Return the first `k` contexts of each example as a retrieval; their scores are unknown: NaN."""
        retrieved = HitLists(
            len(examples), lambda i: [Retrieved(passage, math.nan) for passage in examples[i].contexts[:k]]
        )
        digest = hashlib.sha256()
        for hits in retrieved:
            digest.update(b"".join([b"%d\n" % len(hits), *(hit.passage.identity for hit in hits)]))
        return cls(retrieved, None, f"given {digest.hexdigest()[:16]}", is_given=True)

    @property
    def origin(self) -> str:
        """The source of the passages, in words."""
        return "given with the questions" if self.is_given else "retrieved"

    def passages(self, i: int) -> list[Passage]:
        """Return the passages of the example at position `i`, best first."""
        return [hit.passage for hit in self.retrieved[i]]

    def inputs(self, examples: Sequence[Example], k: int) -> list[GeneratorInput]:
        """Return the generator's inputs at inference: the first `k` passages of each example."""
        return [
            GeneratorInput.from_ranked(example, (hit.passage for hit in hits[:k]))
            for example, hits in zip(examples, self.retrieved, strict=True)
        ]


def _search(retriever: Retriever, queries: Sequence[str], passages: PassageStore, k: int) -> _Hits:
    """Retrieve for all queries in one call, and measure it. The first query is retrieved twice: an untimed warm-up."""
    retriever.retrieve(queries[:1], k)
    start = time.perf_counter()
    with record_spans() as spans:
        rows, scores = _ranked_rows(retriever, queries, passages, k)
    seconds = time.perf_counter() - start
    if queries and not spans:
        spans = [Span("retrieve", seconds, len(queries))]  # the retriever records no stages
    return rows, scores, seconds, summarize_spans(spans)


def _ranked_rows(
    retriever: Retriever, queries: Sequence[str], passages: PassageStore, k: int
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return the rows (n, k) of the retrieved passages, -1 if there are fewer, and their scores (n, k)."""
    if isinstance(retriever, CorpusRetriever):
        return retriever.search(queries, k)
    rows, scores = np.full((len(queries), k), -1, np.int64), np.zeros((len(queries), k), np.float64)
    for i, hits in enumerate(retriever.retrieve(queries, k)):
        numbers = [passages.row_of(hit.passage.id) for hit in hits]
        if None in numbers or len(hits) > k:
            raise ValueError(f"{type(retriever).__name__}.retrieve: expected at most {k} passages of the corpus")
        rows[i, : len(hits)] = np.array(numbers, np.int64)
        scores[i, : len(hits)] = [hit.score for hit in hits]
    return rows, scores


def uses_only_gold(has_retriever: bool, splits: Sequence[Sequence[Example]]) -> bool:
    """Return True if gold passages are the only ones: no retriever, and no example with contexts."""
    return not has_retriever and not any(example.contexts for example in chain(*splits))


def open_corpus(
    has_retriever: bool, splits: Sequence[Sequence[Example]], path: str, **options: Any
) -> PassageStore | None:
    """Return the corpus that a retriever searches, or None if there is no retriever.

    `options` are those of `open_passages`. Raises InputError as it does, and InputError or DataError if examples have
    no contexts either.
    """
    if has_retriever:
        return open_passages(path, **options)
    if uses_only_gold(has_retriever, splits):
        raise InputError("--embedding_model: expected a sentence encoder, got none, and no question has ctxs.")
    _check_contexts(splits)
    return None


def _check_contexts(splits: Sequence[Sequence[Example]]) -> None:
    problem = 'field "ctxs": expected passages, got none. Add them, or set --embedding_model or --retriever bm25.'
    error = DataError()
    for example in chain(*splits):
        if not example.contexts:
            error.add(example.where or example.id, problem)
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
    """Return `k` passages of the corpus for each example of each split, the same on every process.

    `open_retriever` is called on the main process alone, and its result is released before this returns. Many queries
    are embedded by all processes. If it is None the passages are the first `k` contexts of each example; raises
    DataError if an example has none.

    With a `cache_dir`, results are cached there under the fingerprints of retriever and corpus, `k` and the queries.
    Cached results have no time. Results of a damaged index are neither cached nor returned.
    """
    if open_retriever is None:
        _check_contexts(splits)
        log.info('passages: the "ctxs" of the questions; no retrieval')
        return [Retrieval.given(examples, k) for examples in splits]
    if passages is None:
        raise ValueError("retrieve_splits: expected the corpus that the retriever searches, got None")
    if num_given := sum(bool(example.contexts) for example in chain(*splits)):
        log.info('a retriever is set: the "ctxs" of %s are ignored', plural(num_given, "question"))
    _log_missing_gold(chain(*splits), passages)
    results: list[Any] = [None]
    num_queries = sum(map(len, splits))
    with share_queries(accelerator, num_queries):
        if accelerator.is_main_process:
            retriever, hits = open_retriever(), []
            with Progress("retrieving passages", num_queries, unit="questions") as progress:
                for examples in splits:
                    queries = [build_query(example, history_turns=history_turns) for example in examples]
                    hits.append(_retrieve(retriever, queries, passages, k, cache_dir))
                    progress.advance(len(examples))
            results = [(hits, retriever.fingerprint(), passages.fingerprint)]
    [(hits, fingerprint, corpus)] = broadcast_object_list(results)
    if corpus != passages.fingerprint:
        raise InputError(
            f"--full_dataset_file_path: expected the same passages on every process, got fingerprint {corpus[:16]} on "
            f"the first and {passages.fingerprint[:16]} on this one. Start again with files that nothing changes."
        )
    return [
        Retrieval(HitLists.ranked(passages, *pair), seconds, fingerprint, stages) for *pair, seconds, stages in hits
    ]


def _retrieve(
    retriever: Retriever, queries: Sequence[str], passages: PassageStore, k: int, cache_dir: Path | None
) -> _Hits:
    """Return the cached result, or retrieve and cache it.

    All queries of a split are part of one key: the last bits of an embedding depend on the other texts in its batch,
    and a resumed run needs the same results.
    """
    if cache_dir is None:
        return _search_verified(retriever, queries, passages, k)
    key = json.dumps([FORMAT, retriever.fingerprint(), passages.fingerprint, k, queries])
    path = cache_dir / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    if path.exists():
        try:
            return _read(path, (len(queries), k), len(passages))
        except (OSError, EOFError, ValueError, LookupError, BadZipFile) as error:
            log.warning("%s: damaged (%s); the passages are retrieved again", path, error)
    hits = _search_verified(retriever, queries, passages, k)
    try:
        with atomic_file(path) as file:
            np.savez(file, rows=hits[0], scores=hits[1])
    except OSError as error:
        log.warning("%s: the retrieved passages are not cached: %s", path, error)
    return hits


def _search_verified(retriever: Retriever, queries: Sequence[str], passages: PassageStore, k: int) -> _Hits:
    hits = _search(retriever, queries, passages, k)
    if isinstance(retriever, Verifiable):
        retriever.verify()
    return hits


def _read(path: Path, shape: tuple[int, int], num_passages: int) -> _Hits:
    with np.load(path, allow_pickle=False) as stored:
        rows, scores = stored["rows"], stored["scores"]
    if not (rows.shape == scores.shape == shape):
        raise ValueError(f"expected {shape}, got rows {rows.shape} and scores {scores.shape}")
    if rows.size and not (-1 <= rows.min() <= rows.max() < num_passages):
        raise ValueError(f"expected rows of a corpus of {num_passages}")
    return rows, scores, None, {}


def _log_missing_gold(examples: Iterable[Example], passages: PassageStore) -> None:
    """Warn of gold passages that the corpus lacks: no retriever can retrieve them."""
    if missing := [
        each.where for each in examples if None in [passages.row_of(gold.id) for gold in each.gold_passages]
    ]:
        log.warning("the corpus lacks gold passages of %s, first %s", plural(len(missing), "example"), missing[0])
