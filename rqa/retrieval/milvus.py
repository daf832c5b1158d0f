"""Vectors in a database: Milvus on one machine or many, or Milvus Lite in a folder of this machine.

A collection holds id, hash of the content and vector of each passage; texts stay in the corpus. Its name contains
hashes of encoder and corpus: vectors of different inputs never mix, and a collection in use never changes.
pymilvus is imported inside functions: it is an extra.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rqa.atomic_files import folder_lock
from rqa.data.corpus import PassageStore
from rqa.data.records import Passage
from rqa.endpoint.address import is_url, read_key
from rqa.endpoint.redaction import without_key
from rqa.errors import InputError
from rqa.retrieval.dense import DenseRetriever
from rqa.retrieval.encoder import Encoder, check_dimensions, open_encoders
from rqa.retrieval.index import EXTRA_CANDIDATES, JSON, MAX_FLAT, OTHER_PATH, EffortFlag, Floats, Rows, StaleIndexError
from rqa.terminal import Progress, plural

log = logging.getLogger(__name__)

FORMAT = 1  # of a collection
LITE = "milvus.db"  # pymilvus recognizes a folder of Milvus Lite by the end of its name
TIMEOUT = 60.0  # seconds of a call; pymilvus repeats a failed one until then, at most 3 s apart
CONNECT_TIMEOUT = 10.0  # seconds
BLOCK = 1024  # passages that are embedded, then written: at 4,096 dimensions 16 MiB, a quarter of a server's limit
MAX_HITS = 16384  # Milvus returns no more for a query
NOT_FOUND = 100  # Milvus's code of a missing collection
EF = 256  # nodes that a search of a graph visits, at least
REMEDY = "Delete the collection, then run recipes/build_index.py."


class MilvusDatabase:
    """A connection to the server at a URL, or to a folder. Errors are InputErrors without the key."""

    def __init__(self, store: str, key_name: str) -> None:
        os.environ.setdefault("PYTHON_DOTENV_DISABLED", "1")  # pymilvus would read variables from a file .env
        from pymilvus import MilvusClient

        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs errors with their traceback, then raises
        self.store, self.key_name, self._key, address = store, key_name, "", store
        logging.getLogger("grpc._server").setLevel(logging.CRITICAL)  # Milvus Lite lacks calls that pymilvus tries
        if is_url(store):
            self._key = read_key(key_name, store)
        else:
            folder = Path(store)
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"--store {store}: expected a URL or a folder, got {error.strerror}") from error
            address = str(folder / LITE)
        with self.errors():
            self.client = MilvusClient(address, token=self._key, timeout=CONNECT_TIMEOUT)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise errors of the database inside the block as InputErrors."""
        from grpc import RpcError
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except (MilvusException, RpcError) as error:
            raise InputError(f"--store {self.store}: {self._problem(error)}") from error

    def _problem(self, error: Any) -> str:
        """Return the message of an error, and its remedy."""
        from grpc import RpcError

        if isinstance(error.__cause__, RpcError):  # the reason of a failed connection
            error = error.__cause__
        code = error.code() if callable(error.code) else error.code
        details = error.details() if hasattr(error, "details") else error.message
        text = without_key(f"{getattr(code, 'name', code)}: {details}", self._key)
        if "UNAUTHENTICATED" in text or "PERMISSION_DENIED" in text:
            return f"{text}. Set {self.key_name} to a key of the server: a token, or USER:PASSWORD"
        if code == NOT_FOUND:
            return f"{text}. The collection was deleted: run recipes/build_index.py"
        if is_url(self.store):
            return f"{text}. Check that the server runs, or change --store"
        return f"{text}. One process at a time opens a folder. For several, start a server: see docs/retrieval.md"


class MilvusIndex:
    """The vectors of a corpus in a collection, searched for the largest inner products, as `FaissIndex`.

    `provenance` describes its inputs. `fingerprint` is a hash of them and of the first vectors that were written.
    """

    def __init__(self, database: MilvusDatabase, name: str, passages: PassageStore, expected: dict[str, JSON]) -> None:
        self.database, self.name, self._passages, self.provenance = database, name, passages, expected
        with database.errors():
            info = database.client.describe_collection(name, timeout=TIMEOUT)
        stored = json.loads(info["properties"].get("rqa", "null"))
        if not isinstance(stored, dict) or stored.get("provenance") != expected:
            raise StaleIndexError(f"--store: expected in {name} {json.dumps(expected)}, got {stored}. {REMEDY}")
        self._ef = EF
        [self.dimension] = [field["params"]["dim"] for field in info["fields"] if field["name"] == "vector"]
        self.fingerprint = _hash([expected, stored.get("vectors")])

    def set_effort(self, flag: EffortFlag, value: int) -> None:
        """Set the number of nodes that a search of a graph visits. Raises InputError without a graph."""
        if flag != "ef_search" or self.provenance["factory"] == "Flat":
            raise InputError(f"--{flag}: expected a graph, got {self.provenance['factory']}. Remove the flag")
        self._ef = value

    def __len__(self) -> int:
        client = self.database.client
        with self.database.errors():
            client.load_collection(self.name, timeout=TIMEOUT)
            [row] = client.query(self.name, output_fields=["count(*)"], consistency_level="Strong", timeout=TIMEOUT)
        return int(row["count(*)"])

    def verify(self) -> None:
        """Raise StaleIndexError unless the collection holds each passage of the corpus once."""
        if (number := len(self)) != len(self._passages):
            expected = plural(len(self._passages), "vector")
            raise StaleIndexError(f"--store: expected in {self.name} {expected}, got {number:,}. {REMEDY}")

    def stored_rows(self) -> Rows:
        """Return the rows of the corpus that are in the collection, in order."""
        is_stored = np.zeros(len(self._passages), bool)
        with Progress("reading the ids of stored vectors", unit="ids") as progress, self.database.errors():
            options = {"batch_size": BLOCK, "output_fields": ["id"], "consistency_level": "Strong", "timeout": TIMEOUT}
            batches = self.database.client.query_iterator(self.name, **options)
            while batch := batches.next():
                is_stored[self._rows_of([row["id"] for row in batch])] = True
                progress.advance(len(batch))
            batches.close()
        return np.flatnonzero(is_stored)

    def search(self, queries: Floats, k: int) -> tuple[Floats, Rows]:
        """Return scores (n, k) and rows (n, k) of the k best vectors, best first, as `FaissIndex.search`.

        Ties are in order of row: if equal scores continue past the last hit, more are requested.
        """
        if queries.shape[1] != self.dimension:
            raise InputError(f"queries: expected the dimension of the index, {self.dimension}, got {queries.shape[1]}.")
        scores, rows = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        most = min(len(self._passages), MAX_HITS)
        width = min(k, len(self._passages))
        if width > most:
            raise InputError(f"--store: expected at most {MAX_HITS:,} passages of a question, got {k:,}")
        waiting, limit = np.arange(len(queries)), min(width + EXTRA_CANDIDATES, most)
        while len(waiting):
            unsettled = []
            for i, (hit_rows, hit_scores) in zip(waiting, self._hits(queries[waiting], limit), strict=True):
                if limit < most and len(hit_rows) == limit and hit_scores[-1] == hit_scores[width - 1]:
                    unsettled.append(i)
                order = np.lexsort((hit_rows, -hit_scores))[:width]
                scores[i, : len(order)], rows[i, : len(order)] = hit_scores[order], hit_rows[order]
            waiting, limit = np.array(unsettled, np.int64), min(2 * limit, most)
        return scores, rows

    def _hits(self, queries: Floats, limit: int) -> list[tuple[Rows, Floats]]:
        """Return rows and scores of the first `limit` hits of each query, best first."""
        _, _, searching = _index_parameters(str(self.provenance["factory"]), max(self._ef, limit))
        with self.database.errors():
            found = self.database.client.search(
                self.name,
                data=list(queries),
                anns_field="vector",
                limit=limit,
                output_fields=["id"],
                search_params={"metric_type": "IP", "params": searching},
                consistency_level="Strong",
                timeout=TIMEOUT,
            )
        return [
            (self._rows_of([hit["id"] for hit in hits]), np.array([hit["distance"] for hit in hits], np.float32))
            for hits in found
        ]

    def _rows_of(self, ids: Sequence[str]) -> Rows:
        rows = [self._passages.row_of(passage_id) for passage_id in ids]
        if None in rows:
            unknown = ids[rows.index(None)]
            raise StaleIndexError(f"--store: expected in {self.name} ids of the corpus, got {unknown}. {REMEDY}")
        return np.array(rows, np.int64)

    def add(self, passages: Sequence[Passage], vectors: Floats) -> None:
        """Write vectors. Passages that are there are replaced."""
        rows = [
            {"id": passage.id, "content": _content_hash(passage), "vector": vector}
            for passage, vector in zip(passages, vectors, strict=True)
        ]
        with self.database.errors():
            self.database.client.upsert(self.name, rows, timeout=TIMEOUT)

    def wait(self) -> None:
        """Wait until the database has indexed all vectors."""
        with Progress("indexing the vectors", len(self._passages), unit="vectors") as progress:
            while True:
                with self.database.errors():
                    state = self.database.client.describe_index(self.name, "vector", timeout=TIMEOUT)
                if state["state"] == "Failed":
                    raise InputError(f"--store: the database could not index {self.name}. {REMEDY}")
                progress.advance(int(state["indexed_rows"]) - progress.done)
                if not int(state["pending_index_rows"]):
                    return
                time.sleep(1)


def open_milvus_retriever(
    passages: PassageStore,
    embedding_model: str,
    index_path: str | Path,
    *,
    store: str,
    device: torch.device,
    key_name: str = "MILVUS_TOKEN",
    query_encoder: str = "",
    query_prefix: str | None = None,
    passage_prefix: str | None = None,
    index_factory: str = "auto",
    ef_search: int | None = None,
    embedding_batch_size: int = 64,
) -> DenseRetriever:
    """Return a retriever over `passages` with vectors in the database `store`, a URL or a folder.

    Passages that the database lacks are embedded and written; one process of this machine writes, others wait. Vectors
    of the same encoder in collections of other corpora are copied. Raises InputError if the database cannot be used.
    """
    options: dict[str, Any] = {"query_prefix": query_prefix, "passage_prefix": passage_prefix, "device": device}
    encoder, queries = open_encoders(embedding_model, query_encoder, batch_size=embedding_batch_size, **options)
    inputs: dict[str, JSON] = {"format": FORMAT, **encoder.provenance()}
    if index_factory == "auto":
        index_factory = "Flat" if len(passages) <= MAX_FLAT else "HNSW32"
    provenance: dict[str, JSON] = {**inputs, "corpus": passages.fingerprint, "factory": index_factory}
    name = f"{(prefix := f'rqa_{_hash(inputs)}_')}{_hash(provenance)}"
    with folder_lock(Path(index_path), "the index", OTHER_PATH):
        database = MilvusDatabase(store, key_name)
        with database.errors():
            collections = [each for each in database.client.list_collections() if each.startswith(prefix)]
        others = [each for each in collections if each != name]
        if name not in collections:
            check_dimensions(encoder, queries)
        index = _complete(database, name, others, passages, encoder, provenance)
    log.info(
        "--store %s: collection %s, %s of %d dimensions", store, name, plural(len(passages), "vector"), index.dimension
    )
    return DenseRetriever(passages, queries, index, {"ef_search": ef_search} if ef_search else None)


def _complete(
    database: MilvusDatabase,
    name: str,
    others: Sequence[str],
    passages: PassageStore,
    encoder: Encoder,
    provenance: dict[str, JSON],
) -> MilvusIndex:
    """Return the index of all passages. Those that its collection lacks are embedded, or copied from others."""
    with database.errors():
        exists = database.client.has_collection(name, timeout=TIMEOUT)
    index = MilvusIndex(database, name, passages, provenance) if exists else None
    if index is None or len(index) < len(passages):
        stored = index.stored_rows() if index else np.zeros(0, np.int64)
        missing, num_copied = np.setdiff1d(np.arange(len(passages)), stored), 0
        log.info("--store: %s to write, %d are in %s", plural(len(missing), "vector"), len(stored), name)
        copies = _Copies(database, others)
        with Progress("writing vectors", len(missing), unit="vectors") as progress:
            for start in range(0, len(missing), BLOCK):
                block = [passages[row] for row in missing[start : start + BLOCK].tolist()]
                vectors = copies.vectors(block)
                num_copied += len(vectors)
                if new := [passage for passage in block if passage.id not in vectors]:
                    vectors |= dict(zip((each.id for each in new), encoder.encode_passages(new), strict=True))
                matrix = np.stack([vectors[passage.id] for passage in block])
                if index is None:
                    _create(database, name, matrix, provenance)
                    index = MilvusIndex(database, name, passages, provenance)
                index.add(block, matrix)
                progress.advance(len(block))
        assert index is not None  # a corpus has at least one passage
        log.info("--store: %d embedded, %d copied from other collections", len(missing) - num_copied, num_copied)
        with database.errors():
            database.client.flush(name, timeout=TIMEOUT)
    index.verify()
    index.wait()
    return index


class _Copies:
    """Vectors of the same encoder in collections of other corpora."""

    def __init__(self, database: MilvusDatabase, names: Sequence[str]) -> None:
        self.database, self.names = database, names
        with database.errors():
            for name in names:
                database.client.load_collection(name, timeout=TIMEOUT)

    def vectors(self, passages: Sequence[Passage]) -> dict[str, Floats]:
        """Return the vectors of those `passages` that a collection has with the same content, by id."""
        vectors: dict[str, Floats] = {}
        for name in self.names:
            contents = {passage.id: _content_hash(passage) for passage in passages if passage.id not in vectors}
            if not contents:
                break
            with self.database.errors():
                rows = self.database.client.get(
                    name, ids=[*contents], output_fields=["content", "vector"], timeout=TIMEOUT
                )
            same = [row for row in rows if row["content"] == contents[row["id"]]]
            vectors |= {row["id"]: np.array(row["vector"], np.float32) for row in same}
        return vectors


def _create(database: MilvusDatabase, name: str, vectors: Floats, provenance: Mapping[str, JSON]) -> None:
    """Create a collection, before its first vectors are written."""
    from pymilvus import DataType

    schema = database.client.create_schema(auto_id=False)
    schema.add_field("id", DataType.VARCHAR, max_length=32, is_primary=True)
    schema.add_field("content", DataType.VARCHAR, max_length=16)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
    kind, building, _ = _index_parameters(str(provenance["factory"]), EF)
    index = database.client.prepare_index_params()
    index.add_index("vector", index_name="vector", index_type=kind, metric_type="IP", params=building)
    stored = {"provenance": provenance, "vectors": hashlib.sha256(vectors.tobytes()).hexdigest()[:16]}
    options = {"consistency_level": "Strong", "properties": {"rqa": json.dumps(stored)}, "timeout": TIMEOUT}
    with database.errors():
        database.client.create_collection(name, schema=schema, index_params=index, **options)


def _index_parameters(factory: str, ef: int) -> tuple[str, dict[str, int], dict[str, int]]:
    """Return Milvus's type of index for Flat or HNSW32, and the parameters to build and to search it."""
    if factory == "Flat":
        return "FLAT", {}, {}
    return "HNSW", {"M": int(factory.removeprefix("HNSW")), "efConstruction": 200}, {"ef": ef}


def _content_hash(passage: Passage) -> str:
    """Return a hash of the embedded text: passages with the same id may have other titles."""
    return hashlib.sha256(passage.content.encode()).hexdigest()[:16]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
