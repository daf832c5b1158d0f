"""The dense retriever: a sentence encoder over an index of vectors, such as that of FAISS."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from rqa.data.corpus import PassageStore
from rqa.errors import InputError
from rqa.retrieval.encoder import Encoder
from rqa.retrieval.folder_lock import OTHER_PATH, folder_lock
from rqa.retrieval.index import JSON, FaissIndex, Floats, Rows
from rqa.retrieval.retrieve import CorpusRetriever
from rqa.terminal import Progress, plural
from rqa.timing import Stopwatch

log = logging.getLogger(__name__)


class VectorIndex(Protocol):
    """The vectors of a corpus: a `FaissIndex`, or a collection of a database."""

    provenance: dict[str, JSON]
    fingerprint: str

    def search(self, queries: Floats, k: int) -> tuple[Floats, Rows]:
        """Return scores (n, k) and rows (n, k), as `FaissIndex.search`."""

    def verify(self) -> None:
        """Raise InputError unless all vectors are there and sound."""


class DenseRetriever(CorpusRetriever):
    """Retrieves by the cosine between the embeddings of query and passage, or by their inner product; see `Encoder`."""

    def __init__(self, passages: PassageStore, encoder: Encoder, index: VectorIndex) -> None:
        super().__init__(passages)
        self.encoder, self.index = encoder, index

    def search(self, queries: Sequence[str], k: int) -> tuple[Rows, Floats]:
        """Return rows (n, k) and scores (n, k), as `CorpusRetriever`."""
        rows, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
        if not queries:
            return rows, scores
        vectors, size = self.encoder.encode_queries(queries), self.encoder.batch_size
        watch = Stopwatch()
        with Progress("searching the index", len(queries), unit="queries") as progress:
            for start in range(0, len(vectors), size):
                part = slice(start, start + size)
                scores[part], rows[part] = self.index.search(vectors[part], k)
                num_queries = len(rows[part])
                watch.lap("search", num_queries)
                progress.advance(num_queries)
        return rows, scores

    def verify(self) -> None:
        """Wait until the whole index was read. Raises InputError if it was damaged."""
        self.index.verify()

    def fingerprint(self) -> str:
        """Return the fingerprints of corpus, index and encoder, and the query prefix.

        An encoder may embed queries with other weights than passages: the index does not depend on all of them.
        """
        parts = self.passages.fingerprint, self.index.fingerprint, str(self.index.provenance["encoder"])
        corpus, index, encoder = (part[:16] for part in parts)
        return f"corpus {corpus} index {index} encoder {encoder} query_prefix {self.encoder.query_prefix!r}"


def open_dense_retriever(
    passages: PassageStore,
    embedding_model: str,
    index_path: str | Path,
    *,
    device: torch.device,
    query_prefix: str | None = None,
    passage_prefix: str | None = None,
    index_factory: str = "Flat",
    embedding_batch_size: int = 64,
) -> DenseRetriever:
    """Return a retriever over `passages` with the index in `index_path`.

    If there is no index, one process builds it and others wait. Raises StaleIndexError if the index was built from
    other passages or with another encoder, and InputError if the folder cannot hold an index.
    """
    index_path = Path(index_path)
    if index_path.exists() and not index_path.is_dir():
        raise InputError(f"{index_path}: expected a folder for the index, got a file. {OTHER_PATH}")
    prefixes = {"query_prefix": query_prefix, "passage_prefix": passage_prefix}
    encoder = Encoder(embedding_model, device=device, batch_size=embedding_batch_size, **prefixes)
    provenance = {
        "corpus": passages.fingerprint,
        "encoder": encoder.fingerprint(),
        "passage_prefix": encoder.passage_prefix,
        "factory": index_factory,
        "similarity": encoder.similarity,
        "truncate_dim": encoder.truncate_dim,
    }
    with folder_lock(index_path):
        try:
            index = FaissIndex.load(index_path, provenance=provenance)
        except FileNotFoundError:
            _check_writable(index_path)
            log.info("%s: building the index of %s", index_path, plural(len(passages), "passage"))
            vectors = encoder.encode_passages(passages)
            with Progress("building the index"):
                index = FaissIndex.build(vectors, index_factory)
                index.save(index_path, provenance=provenance)
    log.info("%s: %s of %d dimensions", index_path, plural(len(index), "vector"), index.dimension)
    return DenseRetriever(passages, encoder, index)


def _check_writable(folder: Path) -> None:
    """Raise InputError if no file can be written into a folder, before anything is embedded."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        problem = f"expected a folder that the index can be written into, got {error.strerror}"
        raise InputError(f"{folder}: {problem}. {OTHER_PATH}") from error
