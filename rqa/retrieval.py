"""What is retrieved for the examples of a run: by one process, once, and kept beside the index."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray

from rqa.data import Example, Passage, PassageStore
from rqa.passages import Reading
from rqa.retriever import Retrieved, Retriever, open_retriever, query_of

log = logging.getLogger(__name__)

FORMAT = 1
CACHE = "retrieved"  # a folder in that of the index


@dataclass(frozen=True)
class Retrieval:
    """What a retriever found for each of some examples, best first, and what that took."""

    found: list[list[Retrieved]]
    seconds: float
    fingerprint: str

    def passages(self, i: int) -> list[Passage]:
        """Return the passages of the example at position `i`, best first."""
        return [hit.passage for hit in self.found[i]]

    def readings(self, examples: Sequence[Example], k: int) -> list[Reading]:
        """Return what a generator reads at inference: the first `k` passages of each example."""
        return [
            Reading.ranked(example, (hit.passage for hit in hits[:k]))
            for example, hits in zip(examples, self.found, strict=True)
        ]


@dataclass(frozen=True)
class Hits:
    """A retrieval as numbers: rows of the corpus (n, k), -1 where there are fewer, and their scores (n, k)."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    seconds: float

    @classmethod
    def of(cls, found: Sequence[Sequence[Retrieved]], passages: PassageStore, k: int, seconds: float) -> "Hits":
        """Return what was `found`, at most `k` for each query, as numbers."""
        rows, scores = np.full((len(found), k), -1, np.int64), np.zeros((len(found), k), np.float32)
        for i, hits in enumerate(found):
            rows[i, : len(hits)] = np.array([passages.row_of(hit.passage.id) for hit in hits], np.int64)
            scores[i, : len(hits)] = [hit.score for hit in hits]
        return cls(rows, scores, seconds)

    def found(self, passages: PassageStore) -> list[list[Retrieved]]:
        """Return the passages and their scores, best first."""
        return [
            [Retrieved(passages[row], score) for row, score in zip(*pair, strict=True) if row >= 0]
            for pair in zip(self.rows.tolist(), self.scores.tolist(), strict=True)
        ]


def retrieve_all(retriever: Retriever, examples: Sequence[Example], k: int, *, history_turns: int = 1) -> Retrieval:
    """Retrieve `k` passages for each example, in one call. The first query is retrieved twice: a warm-up, not timed."""
    queries = [query_of(example, history_turns=history_turns) for example in examples]
    retriever.retrieve(queries[:1], k)
    start = time.perf_counter()
    found = retriever.retrieve(queries, k)
    return Retrieval(found, time.perf_counter() - start, retriever.fingerprint())


def retrieve_splits(
    accelerator: Accelerator,
    passages: PassageStore,
    embedding_model: str,
    index_path: str,
    splits: Sequence[Sequence[Example]],
    k: int,
    *,
    history_turns: int,
    cached: bool = True,
    **index_options: Any,
) -> list[Retrieval]:
    """Retrieve `k` passages for each example of each split, the same on every process.

    The main process does it, with a retriever that is opened, used once and let go; where there is no index it builds
    it: see `open_retriever` for the options. What it finds is kept in the folder of the index, and found there again by
    whoever asks the same of the same retriever; with `cached` false, for the time it takes, it is retrieved again.
    """
    _log_missing_gold([example for examples in splits for example in examples], passages)
    done: list[Any] = [None]
    if accelerator.is_main_process:
        device = accelerator.device
        retriever = open_retriever(passages, embedding_model, Path(index_path), device=device, **index_options)
        cache = Path(index_path) / CACHE if cached else None
        hits = [_retrieve(retriever, passages, examples, k, history_turns, cache) for examples in splits]
        done = [(hits, retriever.fingerprint())]
    [(hits, fingerprint)] = broadcast_object_list(done)
    return [Retrieval(each.found(passages), each.seconds, fingerprint) for each in hits]


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
    queries = [query_of(example, history_turns=history_turns) for example in examples]
    key = hashlib.sha256(json.dumps([FORMAT, retriever.fingerprint(), k, queries]).encode()).hexdigest()
    path = cache / f"{key[:32]}.npz" if cache else None
    if path is not None and path.exists():
        try:
            return _read(path, (len(queries), k), len(passages))
        except (OSError, EOFError, ValueError, LookupError, BadZipFile) as error:
            log.warning("%s: damaged, and made again: %s", path, error)
    found = retrieve_all(retriever, examples, k, history_turns=history_turns)
    hits = Hits.of(found.found, passages, k, found.seconds)
    if path is not None:
        try:
            _write(path, hits)
        except OSError as error:
            log.warning("%s: what was retrieved cannot be kept: %s", path, error)
    return hits


def _read(path: Path, shape: tuple[int, int], num_passages: int) -> Hits:
    with np.load(path, allow_pickle=False) as stored:
        hits = Hits(stored["rows"], stored["scores"], float(stored["seconds"]))
    if not (hits.rows.shape == hits.scores.shape == shape):
        raise ValueError(f"expected {shape}, found rows {hits.rows.shape} and scores {hits.scores.shape}")
    if hits.rows.size and not (-1 <= hits.rows.min() <= hits.rows.max() < num_passages):
        raise ValueError(f"expected rows of a corpus of {num_passages}")
    return hits


def _write(path: Path, hits: Hits) -> None:
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        np.savez(file, rows=hits.rows, scores=hits.scores, seconds=hits.seconds)
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
