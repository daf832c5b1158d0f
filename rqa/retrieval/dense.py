"""The dense retriever: a sentence encoder over a FAISS index."""

import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from rqa.data.corpus import PassageStore
from rqa.retrieval.encoder import Encoder
from rqa.retrieval.index import FaissIndex
from rqa.retrieval.retrieve import Retrieved
from rqa.timing import Stopwatch

log = logging.getLogger(__name__)


class DenseRetriever:
    """Retrieves by cosine between the embeddings of query and passage."""

    def __init__(self, passages: PassageStore, encoder: Encoder, index: FaissIndex) -> None:
        self.passages = passages
        self.encoder = encoder
        self.index = index

    def retrieve(self, queries: Sequence[str], k: int) -> list[list[Retrieved]]:
        """Return for each query at most `k` distinct passages, best first, equal scores in the corpus' order."""
        if not queries:
            return []
        vectors, found = self.encoder.encode_queries(queries), []
        watch = Stopwatch()
        for start in range(0, len(vectors), self.encoder.batch_size):
            scores, rows = self.index.search(vectors[start : start + self.encoder.batch_size], k)
            found += [
                [
                    Retrieved(self.passages[row], score)
                    for row, score in zip(row_list, score_list, strict=True)
                    if row >= 0  # FAISS fills up with -1 where it finds fewer than k
                ]
                for row_list, score_list in zip(rows.tolist(), scores.tolist(), strict=True)
            ]
            watch.lap("search", len(rows))
        return found

    def fingerprint(self) -> str:
        """Return the corpus', the index's, which holds the vectors that the encoder made, and the prefix of queries."""
        corpus, index = self.passages.fingerprint[:16], self.index.fingerprint[:16]
        return f"corpus {corpus} index {index} query_prefix {self.encoder.query_prefix!r}"


def open_retriever(
    passages: PassageStore,
    embedding_model: str,
    index_path: Path,
    *,
    device: torch.device,
    query_prefix: str | None = None,
    passage_prefix: str | None = None,
    index_factory: str = "Flat",
    embedding_batch_size: int = 64,
) -> DenseRetriever:
    """Return a retriever over `passages`: the index at `index_path`, which is built there where there is none, by one
    process at a time.

    Raises StaleIndexError where the index there was built from other passages or with another encoder.
    """
    encoder = Encoder(
        embedding_model,
        device=device,
        batch_size=embedding_batch_size,
        query_prefix=query_prefix,
        passage_prefix=passage_prefix,
    )
    provenance = {
        "corpus": passages.fingerprint,
        "encoder": encoder.fingerprint(),
        "passage_prefix": encoder.passage_prefix,
        "factory": index_factory,
    }
    with _folder_lock(index_path):
        try:
            index = FaissIndex.load(index_path, provenance=provenance)
        except FileNotFoundError:
            log.info("building the index of %d passages in %s", len(passages), index_path)
            index = FaissIndex.build(encoder.encode_passages(passages), index_factory)
            index.save(index_path, provenance=provenance)
    return DenseRetriever(passages, encoder, index)


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which ends with the process: of two runs that need an index one builds it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: waiting for another process that builds the index", folder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems have no locks
            log.warning("%s cannot be locked (%s): let no two runs build it at the same time", folder, error)
        yield
    finally:
        os.close(descriptor)
