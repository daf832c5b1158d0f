"""The dense retriever: a sentence encoder over an index of vectors, such as that of FAISS."""

import logging
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import tee
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from rqa.atomic_files import folder_lock
from rqa.data.corpus import PassageStore
from rqa.distributed.accelerator import call_on_main
from rqa.errors import InputError
from rqa.retrieval.encoder import Encoder, check_dimensions, open_encoders
from rqa.retrieval.index import (
    JSON,
    OTHER_PATH,
    VECTORS,
    EffortFlag,
    FaissIndex,
    Floats,
    Rows,
    StaleIndexError,
    choose_factory,
    stored_factory,
)
from rqa.retrieval.retrieve import CorpusRetriever
from rqa.retrieval.vectors import StoredVectors, VectorShards, block_size, keys_of
from rqa.terminal import Progress, plural, track
from rqa.timing import Stopwatch

log = logging.getLogger(__name__)
T = TypeVar("T")

SEARCH_BATCH = 1024  # queries that share one reading of the vectors
RECALL_QUERIES = 1000
SENTENCE_END = re.compile(r"(?<=[.!?。])\s|\n")


class VectorIndex(Protocol):
    """The vectors of a corpus: a `FaissIndex`, or a collection of a database."""

    provenance: dict[str, JSON]
    fingerprint: str

    def search(self, queries: Floats, k: int) -> tuple[Floats, Rows]:
        """Return scores (n, k) and rows (n, k), as `FaissIndex.search`."""

    def set_effort(self, flag: EffortFlag, value: int) -> None:
        """Set the search effort. Raises InputError if the index has none of this name."""

    def verify(self) -> None:
        """Raise InputError unless all vectors are there and sound."""


class DenseRetriever(CorpusRetriever):
    """Retrieves by the cosine between the embeddings of query and passage, or by their inner product; see `Encoder`.

    `encoder` embeds the queries; `index` has the vectors of the passages.
    """

    def __init__(
        self, passages: PassageStore, encoder: Encoder, index: VectorIndex, effort: dict[EffortFlag, int] | None = None
    ) -> None:
        super().__init__(passages)
        self.encoder, self.index, self.effort = encoder, index, effort or {}
        for flag, value in self.effort.items():
            index.set_effort(flag, value)

    def search(self, queries: Sequence[str], k: int) -> tuple[Rows, Floats]:
        """Return rows (n, k) and scores (n, k), as `CorpusRetriever`."""
        rows, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
        if not queries:
            return rows, scores
        vectors = self.encoder.encode_queries(queries)
        watch = Stopwatch()
        with Progress("searching the index", len(queries), unit="queries") as progress:
            for start in range(0, len(vectors), SEARCH_BATCH):
                part = slice(start, start + SEARCH_BATCH)
                scores[part], rows[part] = self.index.search(vectors[part], k)
                num_queries = len(rows[part])
                watch.lap("search", num_queries)
                progress.advance(num_queries)
        return rows, scores

    def verify(self) -> None:
        """Wait until the whole index was read. Raises InputError if it was damaged."""
        self.index.verify()

    def fingerprint(self) -> str:
        """Return the fingerprints of corpus, index and encoder, the query prefix, and the search effort if it is set.

        The index does not depend on all weights of an encoder that embeds queries with others than passages.
        """
        parts = self.passages.fingerprint, self.index.fingerprint, self.encoder.fingerprint()
        corpus, index, encoder = (part[:16] for part in parts)
        effort = "".join(f" {flag} {value}" for flag, value in self.effort.items())
        return f"corpus {corpus} index {index} encoder {encoder} query_prefix {self.encoder.query_prefix!r}{effort}"


def open_dense_retriever(
    passages: PassageStore,
    embedding_model: str,
    index_path: str | Path,
    *,
    device: torch.device,
    query_encoder: str = "",
    query_prefix: str | None = None,
    passage_prefix: str | None = None,
    index_factory: str = "auto",
    nprobe: int | None = None,
    ef_search: int | None = None,
    embedding_batch_size: int = 64,
    accelerator: Accelerator | None = None,
    rebuild: bool = False,
    recall_queries: Sequence[str] = (),
) -> DenseRetriever:
    """Return a retriever over `passages` with the index in `index_path`. `query_encoder` embeds queries if it is set.

    The recall of a new index that is not exact is measured for 1,000 of `recall_queries`, or of the first sentences of
    passages without them. With them that of an existing index is measured again, and its search effort raised.
    If there is no index, this process builds it and others wait. With an `accelerator` every process calls this, and
    all of them embed. Raises StaleIndexError if the index was built from other passages or with another encoder,
    unless `rebuild` replaces it, and InputError if the folder cannot hold an index.
    """
    index_path = Path(index_path)
    if index_path.exists() and not index_path.is_dir():
        raise InputError(f"{index_path}: expected a folder for the index, got a file. {OTHER_PATH}")
    options: dict[str, Any] = {"query_prefix": query_prefix, "passage_prefix": passage_prefix, "device": device}
    encoder, queries = open_encoders(embedding_model, query_encoder, batch_size=embedding_batch_size, **options)
    inputs = encoder.provenance()
    shards = VectorShards(index_path / VECTORS, inputs)
    provenance: dict[str, JSON] = {"corpus": passages.fingerprint, **inputs}
    opened: list[FaissIndex] = []  # on the main process
    with ExitStack() as stack:

        def has_index() -> bool:
            stack.enter_context(folder_lock(index_path, "the index", OTHER_PATH))
            stored = None if rebuild else stored_factory(index_path)
            auto = stored or choose_factory(len(passages))
            provenance["factory"] = auto if index_factory == "auto" else index_factory
            if recall_queries and provenance["factory"] == "Flat":
                raise InputError("--index_queries: no effect on an index that is Flat, so exact. Remove it")
            try:
                opened.append(FaissIndex.load(index_path, provenance=provenance))
                return not recall_queries
            except StaleIndexError:
                if not rebuild:
                    raise
            except FileNotFoundError:
                pass
            _check_writable(index_path)
            check_dimensions(encoder, queries)
            log.info("%s: building the index of %s", index_path, plural(len(passages), "passage"))
            return False

        if not _on_main(accelerator, has_index):
            vectors = _embed(passages, encoder, shards, accelerator)

            def build() -> None:
                assert vectors is not None
                index = opened.pop() if opened else FaissIndex.build(vectors, str(provenance["factory"]))
                if not index.is_exact:
                    index.raise_recall(vectors, queries.encode_queries(_texts_for_recall(recall_queries, passages)))
                index.save(index_path, provenance=provenance)
                opened.append(index)

            _on_main(accelerator, build)
    index = opened[0] if opened else FaissIndex.load(index_path)
    effort: dict[EffortFlag, int | None] = {"nprobe": nprobe, "ef_search": ef_search}
    log.info("%s: %s of %d dimensions, %s", index_path, plural(len(index), "vector"), index.dimension, index)
    return DenseRetriever(passages, queries, index, {flag: value for flag, value in effort.items() if value})


def _on_main(accelerator: Accelerator | None, function: Callable[[], T]) -> T:
    """Call a function on the main process, and return its result on all processes. It waits for the main process."""
    return function() if accelerator is None else call_on_main(accelerator, function)


def _embed(
    passages: PassageStore, encoder: Encoder, shards: VectorShards, accelerator: Accelerator | None
) -> StoredVectors | None:
    """Embed the passages that no shard has, a share on each process. Return all vectors on the main process.

    Blocks are formed from all missing passages in order: they, and the vectors, do not depend on the processes.
    """
    opened: list[StoredVectors] = []

    def missing_rows() -> NDArray[np.int64]:
        opened.append(shards.open(keys_of(track(passages, "hashing passages", unit="passages"))))
        return opened[0].missing

    missing = _on_main(accelerator, missing_rows)
    if not len(missing):
        return opened[0] if opened else None
    if len(missing) < len(passages):
        log.info("%s were embedded before", plural(len(passages) - len(missing), "passage"))
    size = block_size(len(passages))
    blocks = [missing[start : start + size] for start in range(0, len(missing), size)]
    own = blocks if accelerator is None else blocks[accelerator.process_index :: accelerator.num_processes]
    if own:
        to_save, to_embed = tee([passages[row] for row in block.tolist()] for block in own)
        for block, vectors in zip(to_save, encoder.encode_blocks(to_embed, sum(map(len, own))), strict=True):
            shards.save(keys_of(block), vectors, half=encoder.is_half)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return shards.open(opened[0].keys) if opened else None


def _texts_for_recall(questions: Sequence[str], passages: PassageStore) -> list[str]:
    """Return a sample of the questions; without any, of the first sentences of passages, which stand in for them."""
    number = len(questions or passages)
    rows = np.random.default_rng(0).choice(number, min(RECALL_QUERIES, number), replace=False)
    if questions:
        return [questions[row] for row in sorted(rows.tolist())]
    return [SENTENCE_END.split(passages[row].text.strip(), maxsplit=1)[0] for row in sorted(rows.tolist())]


def _check_writable(folder: Path) -> None:
    """Raise InputError if no file can be written into a folder, before anything is embedded."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        problem = f"expected a folder that the index can be written into, got {error.strerror}"
        raise InputError(f"{folder}: {problem}. {OTHER_PATH}") from error
