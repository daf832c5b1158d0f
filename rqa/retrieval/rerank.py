"""Reranking: a cross-encoder reads query and passage together, and orders the first passages of another retriever."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from rqa.retrieval.encoder_checkpoint import checkpoint_fingerprint, checkpoint_folder, load_reranker
from rqa.retrieval.retrieve import CorpusRetriever
from rqa.terminal import track
from rqa.timing import Stopwatch

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder


class Reranker:
    """A cross-encoder of sentence-transformers with one score, in float32; higher is better.

    The weights are loaded with the first query. Pairs longer than the model reads are truncated. Raises InputError if
    there is no cross-encoder.
    """

    def __init__(self, name_or_path: str, *, device: torch.device, batch_size: int = 64) -> None:
        self.name_or_path, self.device, self.batch_size = name_or_path, device, batch_size
        self.folder = checkpoint_folder(name_or_path, is_reranker=True)

    @cached_property
    def model(self) -> "CrossEncoder":
        """The frozen model."""
        return load_reranker(self.name_or_path, self.folder, self.device)

    def scores(self, query: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the score of each of `texts` (n,) for a query, before any activation function."""
        if not texts:
            return np.zeros(0, np.float32)
        pairs: Any = [(query, text) for text in texts]
        raw = torch.nn.Identity()
        scores = self.model.predict(pairs, batch_size=self.batch_size, activation_fn=raw, show_progress_bar=False)
        return np.asarray(scores, np.float32)

    def fingerprint(self) -> str:
        """Return a hash of the checkpoint's files."""
        return checkpoint_fingerprint(self.name_or_path, self.folder)


class RerankingRetriever(CorpusRetriever):
    """Retrieves by another retriever, at least `depth` passages, and orders them by a cross-encoder."""

    def __init__(self, first: CorpusRetriever, reranker: Reranker, depth: int) -> None:
        super().__init__(first.passages)
        self.first, self.reranker, self.depth = first, reranker, depth

    def search(self, queries: Sequence[str], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return rows (n, k) and scores (n, k), as `CorpusRetriever`. The scores are those of the cross-encoder."""
        self.reranker.model  # noqa: B018  # is loaded, or raises, before anything is searched
        candidates, _ = self.first.search(queries, max(k, self.depth))
        rows, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
        watch = Stopwatch()
        for i, query in enumerate(track(queries, "reranking", unit="queries")):
            own = np.sort(candidates[i][candidates[i] >= 0])
            own_scores = self.reranker.scores(query, [self.passages[row].content for row in own.tolist()])
            order = np.argsort(-own_scores, kind="stable")[:k]
            rows[i, : len(order)], scores[i, : len(order)] = own[order], own_scores[order]
            watch.lap("rerank", 1)
        return rows, scores

    def verify(self) -> None:
        """Wait until every file was compared with its checksums. Raises InputError if one is damaged."""
        self.first.verify()

    def fingerprint(self) -> str:
        """Return the fingerprints of retriever and cross-encoder."""
        return f"reranked {self.depth} {self.reranker.fingerprint()[:16]} ({self.first.fingerprint()})"
