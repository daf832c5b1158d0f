"""The dense retriever: a sentence encoder over a FAISS index."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from rqa.atomic_files import folder_lock
from rqa.data.corpus import PassageStore
from rqa.errors import InputError
from rqa.retrieval.encoder import Encoder
from rqa.retrieval.index import FaissIndex
from rqa.retrieval.retrieve import HitLists, Retrieved
from rqa.terminal import Progress, plural
from rqa.timing import Stopwatch

log = logging.getLogger(__name__)

OTHER_PATH = "Choose another --full_dataset_index_path."


class DenseRetriever:
    """Retrieves by the cosine between the embeddings of query and passage, or by their inner product; see `Encoder`."""

    def __init__(self, passages: PassageStore, encoder: Encoder, index: FaissIndex) -> None:
        self.passages, self.encoder, self.index = passages, encoder, index

    def retrieve(self, queries: Sequence[str], k: int) -> list[list[Retrieved]]:
        """Return at most `k` distinct passages for each query, best first; ties are in the order of the corpus."""
        if not queries:
            return []
        vectors, size = self.encoder.encode_queries(queries), self.encoder.batch_size
        retrieved: list[list[Retrieved]] = []
        watch = Stopwatch()
        with Progress("searching the index", len(queries), unit="queries") as progress:
            for start in range(0, len(vectors), size):
                scores, rows = self.index.search(vectors[start : start + size], k)
                retrieved += HitLists.ranked(self.passages, rows, scores)
                watch.lap("search", len(rows))
                progress.advance(len(rows))
        return retrieved

    def verify(self) -> None:
        """Wait until the whole index was read. Raises DamagedIndexError if it was damaged."""
        self.index.verify()

    def fingerprint(self) -> str:
        """Return the fingerprints of corpus, index and encoder, and the query prefix.

        An encoder may embed queries with other weights than passages: the index does not depend on all of them.
        """
        parts = self.passages.fingerprint, self.index.fingerprint, str(self.index.provenance["encoder"])
        corpus, index, encoder = (part[:16] for part in parts)
        return f"corpus {corpus} index {index} encoder {encoder} query_prefix {self.encoder.query_prefix!r}"


def open_retriever(
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
    with folder_lock(index_path, "the index", OTHER_PATH):
        try:
            index = FaissIndex.load(index_path, provenance=provenance)
        except FileNotFoundError:
            _check_writable(index_path)
            log.info("%s: building the index of %s", index_path, plural(len(passages), "passage"))
            vectors = encoder.encode_passages(passages)
            with Progress("building the index"):
                index = FaissIndex.build(vectors, index_factory)
                index.save(index_path, provenance=provenance)
    return DenseRetriever(passages, encoder, index)


def _check_writable(folder: Path) -> None:
    """Raise InputError if no file can be written into a folder, before anything is embedded."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        problem = f"expected a folder that the index can be written into, got {error.strerror}"
        raise InputError(f"{folder}: {problem}. {OTHER_PATH}") from error
