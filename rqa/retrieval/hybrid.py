"""Hybrid retrieval: the ranks of several retrievers, added (reciprocal rank fusion: Cormack et al., SIGIR 2009)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rqa.retrieval.retrieve import CorpusRetriever
from rqa.timing import Stopwatch

DEPTH = 100  # passages of each retriever that are fused
RANK_OFFSET = 60  # of the paper: how little the first ranks differ


class HybridRetriever(CorpusRetriever):
    """Retrieves by the sum of 1 / (60 + rank) over retrievers of one corpus."""

    def __init__(self, retrievers: Sequence[CorpusRetriever]) -> None:
        super().__init__(retrievers[0].passages)
        self.retrievers = retrievers

    def search(self, queries: Sequence[str], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return rows (n, k) and scores (n, k), as `CorpusRetriever`."""
        ranked = [retriever.search(queries, max(k, DEPTH))[0] for retriever in self.retrievers]
        rows, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf)
        watch = Stopwatch()
        for i in range(len(queries)):
            fused = fuse([lists[i] for lists in ranked])[:k]
            rows[i, : len(fused)] = [row for row, _ in fused]
            scores[i, : len(fused)] = [score for _, score in fused]
        watch.lap("fuse", len(queries))
        return rows, scores

    def verify(self) -> None:
        """Wait until every file was compared with its checksums. Raises InputError if one is damaged."""
        for retriever in self.retrievers:
            retriever.verify()

    def fingerprint(self) -> str:
        """Return the fingerprints of the retrievers."""
        return f"hybrid {DEPTH} {RANK_OFFSET} ({'; '.join(each.fingerprint() for each in self.retrievers)})"


def fuse(rankings: Sequence[NDArray[np.int64]]) -> list[tuple[int, float]]:
    """Return the rows of all rankings with their fused scores, best first; ties are in order of row.

    A ranking holds rows, best first; -1 is no row.
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, row in enumerate(ranking[ranking >= 0].tolist(), 1):
            scores[row] = scores.get(row, 0.0) + 1 / (RANK_OFFSET + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
