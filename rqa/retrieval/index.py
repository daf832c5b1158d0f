"""The vector index: the rows of a matrix with the largest inner product with a query.

Legend: n rows or queries, D dimension, k neighbours. A folder holds index-<16 hexadecimal digits of its SHA-256>.faiss
and manifest.json, with a checksum of each block. A new index never overwrites the old file; the new manifest makes it
current.
FAISS is imported inside functions: on macOS its OpenMP runtime can clash with that of torch.
"""

import errno
import hashlib
import json
import logging
import math
import re
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rqa.atomic_files import atomic_file, flush, read_manifest, write_manifest
from rqa.errors import InputError
from rqa.retrieval.verification import Checksums, Verification

log = logging.getLogger(__name__)
JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
Floats: TypeAlias = NDArray[np.float32]
Rows: TypeAlias = NDArray[np.int64]
EffortFlag: TypeAlias = Literal["nprobe", "ef_search"]
FORMAT = 3
EXTRA_CANDIDATES = 16  # beyond k: 8 already sufficed on every clustered set of 100,000 unit vectors tried
MAX_NORM = 2.0**63  # no inner product of two such vectors overflows float32
DATA_FILES = f"index-{'[0-9a-f]' * 16}.faiss"
VECTORS = "vectors"  # the folder of embedded passages, inside that of the index
NEIGHBOURS = (VECTORS, "corpus", "bm25-*", "retrieved")  # folders of other modules in the folder of an index
OTHER_PATH = "Choose another --full_dataset_index_path."
REMEDY = "Delete the folder to rebuild the index, or choose another path."
STALE_REMEDY = (
    "recipes/build_index.py --rebuild true replaces it, and embeds new passages alone. Or choose another path."
)
HASH = re.compile(r"[0-9a-f]{32,}")
MAX_FLAT = 200_000  # rows that `auto` searches exactly
BLOCK_ROWS = 50_000  # read into memory at a time
RECALL_BLOCK_ROWS = 8_192  # scored for all queries at a time
TRAINING_ROWS = 100_000  # of an index that is trained; FAISS recommends 39 for each list
TRAINING_ROWS_PER_LIST = 50
RECALL_AT, MIN_RECALL = 10, 0.95
MIN_GAIN = 0.002  # of twice the search effort; below, the codes limit recall
MAX_EF_SEARCH = 1024  # beyond, a search of a graph is hardly faster than an exact one


@runtime_checkable
class Matrix(Protocol):
    """A matrix (n, D) of which rows are read on access: an array, or `StoredVectors`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of rows and of columns."""

    def __getitem__(self, rows: Rows, /) -> Any:
        """Return these rows as an array."""


class DamagedIndexError(InputError):
    """The folder holds no complete index of this format."""


class StaleIndexError(InputError):
    """The index was built from other inputs than expected."""


class FaissIndex:
    """Vectors searched for the largest inner products; made by `build` or `load`.

    `provenance` describes the inputs of the index. `fingerprint` is the SHA-256 of its file, in hexadecimal. Both are
    empty until the index is saved or loaded.
    """

    def __init__(self, index: Any, factory: str, max_norm: float):
        import faiss

        self.factory, self.fingerprint = factory, ""
        self.recall: float | None = None  # of the best 10 rows, measured by `raise_recall`
        self.dimension: int = index.d
        self.provenance: dict[str, JSON] = {}
        self._index = index
        self._max_norm = max_norm  # largest Euclidean norm of a row: it bounds FAISS's rounding
        self._verification: Verification | None = None  # of a loaded file
        self._vectors: Floats | None = None
        if isinstance(index, faiss.IndexFlat):  # a view of FAISS's memory or of the mapped file, never a copy
            self._vectors = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(-1, index.d)

    @classmethod
    def build(cls, vectors: "ArrayLike | Matrix", factory: str = "Flat") -> Self:
        """Return an index of `vectors` (n, D), converted to float32 block by block.

        For cosine similarity normalize vectors and queries first. `factory` is a FAISS factory string such as "Flat",
        "IVF1024,SQ8" or "HNSW32"; see `choose_factory`. Of many rows a sample trains the index. A search reads the
        square root of the number of IVF lists, but at least 8; see `raise_recall`.
        Raises InputError if `vectors` is not a matrix of finite numbers, or if FAISS cannot build the factory from it.
        """
        import faiss

        from rqa.terminal import Progress  # not needed to search an index

        matrix = vectors if isinstance(vectors, Matrix) else np.asarray(vectors)
        if len(matrix.shape) != 2 or not matrix.shape[1]:
            raise InputError(f"vectors: expected an array (rows, dimension), got shape {matrix.shape}.")
        num_rows, dimension = matrix.shape
        if not num_rows:
            raise InputError("vectors: expected at least 1 row, got 0.")
        max_norm = 0.0
        try:
            index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
            _set_search_effort(index)
            if not index.is_trained:
                sample = _training_rows(index, num_rows)
                with Progress(f"training the index on {len(sample):,} vectors"):
                    index.train(_checked(matrix[sample], "vectors", sample)[0])
            with Progress("building the index", num_rows, unit="vectors") as progress:
                for start in range(0, num_rows, BLOCK_ROWS):
                    rows = np.arange(start, min(start + BLOCK_ROWS, num_rows))
                    block, norms = _checked(matrix[rows], "vectors", rows)
                    index.add(block)
                    max_norm = max(max_norm, float(norms.max()))
                    progress.advance(len(rows))
        except RuntimeError as error:
            raise InputError(
                f"--index_factory: expected a factory for {num_rows} vectors of dimension {dimension}, got "
                f'"{factory}": {str(error).rsplit(": ", 1)[-1]}. Choose another factory, such as Flat, or add vectors.'
            ) from error
        return cls(index, factory, max_norm)

    @property
    def is_exact(self) -> bool:
        """Return True if a search scores every row exactly."""
        return self._vectors is not None

    def raise_recall(self, vectors: "ArrayLike | Matrix", queries: ArrayLike) -> None:
        """Measure `recall`, the share of the best 10 rows that a search finds, for queries (n, D) over `vectors`.

        An IVF index reads twice as many lists, and an HNSW graph twice as many candidates, until it is MIN_RECALL, all
        are read, or it stays nearly the same. A Flat index has no `recall`: it is exact.
        """
        from rqa.terminal import Progress

        if self.is_exact:
            return
        k = min(RECALL_AT, len(self))
        best = _exact_rows(vectors if isinstance(vectors, Matrix) else np.asarray(vectors), np.asarray(queries), k)
        with Progress("measuring recall"):
            before = -1.0
            while True:
                rows = self.search(queries, k)[1]
                found = [len({*a} & {*b}) for a, b in zip(rows.tolist(), best.tolist(), strict=True)]
                self.recall = sum(found) / best.size
                effort = self.effort
                if self.recall >= MIN_RECALL or effort is None or effort[1] >= effort[2]:
                    break
                if self.recall < before + MIN_GAIN:
                    break
                before = self.recall
                self.set_effort(effort[0], min(2 * effort[1], effort[2]))
        if self.recall < MIN_RECALL:
            log.warning("index: %s, below %s. Choose a factory with longer codes, or Flat", self, MIN_RECALL)

    @property
    def effort(self) -> tuple[EffortFlag, int, int] | None:
        """The flag of the search effort, its value and the largest value; None if the index has none."""
        import faiss

        if (lists := faiss.try_extract_index_ivf(self._index)) is not None:
            return "nprobe", lists.nprobe, lists.nlist
        graph = self._graph()
        return None if graph is None else ("ef_search", graph.efSearch, max(MAX_EF_SEARCH, graph.efSearch))

    def set_effort(self, flag: EffortFlag, value: int) -> None:
        """Set the number of IVF lists, or of candidates of HNSW, that a search reads. Raises InputError without."""
        import faiss

        if self.effort is None or self.effort[0] != flag:
            kind = {"nprobe": "an IVF index", "ef_search": "an HNSW index"}[flag]
            raise InputError(f"--{flag}: expected {kind}, got {self.factory}. Remove the flag, or change the index")
        if flag == "nprobe":
            faiss.extract_index_ivf(self._index).nprobe = value
        else:
            self._graph().efSearch = value

    def _graph(self) -> Any:
        """Return the HNSW graph, None if there is none."""
        import faiss

        index = faiss.downcast_index(self._index)
        while isinstance(index, faiss.IndexPreTransform | faiss.IndexRefine):
            inner = index.index if isinstance(index, faiss.IndexPreTransform) else index.base_index
            index = faiss.downcast_index(inner)
        return getattr(index, "hnsw", None)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def __str__(self) -> str:
        """The factory, the search effort and the recall, in words."""
        effort = "" if self.effort is None else f", {self.effort[0]} {self.effort[1]}"
        unknown = "exact" if self.is_exact else f"recall@{RECALL_AT} not measured"
        recall = unknown if self.recall is None else f"recall@{RECALL_AT} {self.recall:.3f}"
        return f"{self.factory}{effort}, {recall}"

    def search(self, queries: ArrayLike, k: int) -> tuple[Floats, Rows]:
        """Return scores (n, k) and rows (n, k) of the k best rows for each of `queries` (n, D), best first.

        Ties are in order of row. A Flat index is exact and independent of the batch; others are as good as FAISS. If
        there are fewer than k hits, the tail has score -inf and row -1, which Python takes for the last row! One call
        for many queries is faster.
        Raises InputError if `queries` is not a matrix of finite numbers, D differs from the index's, or k < 1, and
        DamagedIndexError if the file was found damaged; `verify` waits until all of it has been read.
        """
        matrix, _ = _checked(queries, "queries")
        if matrix.shape[1] != self.dimension:
            raise InputError(f"queries: expected the dimension of the index, {self.dimension}, got {matrix.shape[1]}.")
        if k < 1:
            raise InputError(f"k: expected at least 1, got {k}.")
        width = min(k, len(self))
        vectors = self._vectors
        scores, rows = (
            self._search_approximately(matrix, width)
            if vectors is None
            else self._search_exactly(matrix, vectors, width)
        )
        if self._verification is not None:
            _check(self._verification)
        tail = ((0, 0), (0, k - width))
        return np.pad(scores, tail, constant_values=-np.inf), np.pad(rows, tail, constant_values=-1)

    def _search_approximately(self, queries: Floats, k: int) -> tuple[Floats, Rows]:
        scores, rows = self._index.search(queries, k)
        scores[rows < 0] = -np.inf
        order = np.lexsort((rows, -scores), axis=-1)
        return np.take_along_axis(scores, order, -1), np.take_along_axis(rows, order, -1)

    def _search_exactly(self, queries: Floats, vectors: Floats, k: int) -> tuple[Floats, Rows]:
        """Rank FAISS's candidates by exact scores, and fetch more if its rounding may have hidden a better row.

        FAISS errs by at most D roundings of |query| · |row|. A row that it left out can only matter if its last
        candidate is that close to the k-th best. In that case all rows that close are fetched.
        """
        import faiss

        # Below this number (queries times D, by default 128,000) FAISS scans row by row. Above it multiplies matrices,
        # which measured faster from 4 queries a thread on. The number affects speed alone, so it is not restored.
        faiss.cvar.distance_compute_blas_threshold = 4 * self.dimension * faiss.omp_get_max_threads()
        approximate, candidates = self._index.search(queries, min(k + EXTRA_CANDIDATES, len(self)))
        float32 = np.finfo(np.float32)  # eps is two roundings, which leaves room for those of this bound
        norms = np.linalg.norm(queries.astype(np.float64), axis=1)
        error_bounds = (self.dimension + 8) * (float32.eps * norms * self._max_norm + float32.tiny)
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        for i, query in enumerate(queries):
            scores[i], rows[i] = _best(vectors, query, candidates[i], k)
            floor = float(scores[i, -1]) - error_bounds[i]
            if k + EXTRA_CANDIDATES < len(self) and approximate[i, -1] >= floor:
                close = self._index.range_search(query[None], floor)[2]
                scores[i], rows[i] = _best(vectors, query, close, k)
        return scores, rows

    def verify(self) -> None:
        """Wait until every byte of the file was compared with its checksum. Raises DamagedIndexError."""
        if self._verification is not None:
            _check(self._verification, wait=True)

    def save(self, directory: str | Path, *, provenance: Mapping[str, JSON] = {}) -> None:
        """Write the index into the folder `directory`, which is created or whose older index is replaced.

        `provenance` describes the inputs of the index; `load` can compare it. If the process is killed, the folder
        holds the old or the new index. Processes that have the old index open keep it. No other process may save or
        load during the call. Other files in the folder are kept.
        Raises DamagedIndexError if the folder holds files but no index of this format.
        """
        import faiss

        directory = Path(directory)
        _read_manifest(directory)  # refuses foreign folders
        provenance = json.loads(json.dumps(provenance, allow_nan=False))
        digest, checksums = hashlib.sha256(), Checksums()
        unnamed = directory / ".index.new"  # the file's name contains its hash, which is known after the last block
        with atomic_file(unnamed) as file:

            def write(block: bytes) -> None:
                digest.update(block)
                checksums.update(block)
                file.write(block)

            writer = faiss.PyCallbackIOWriter  # type: ignore[attr-defined, unused-ignore]  # missing from FAISS's stubs
            faiss.write_index(self._index, writer(write))
        self.provenance, self.fingerprint = dict(provenance), digest.hexdigest()
        data = unnamed.replace(directory / f"index-{self.fingerprint[:16]}.faiss")
        flush(directory)
        write_manifest(directory / "manifest.json", self._manifest(data, checksums))
        for old in {*directory.glob(DATA_FILES)} - {data}:
            old.unlink()

    def _manifest(self, data: Path, checksums: Checksums) -> dict[str, Any]:
        import faiss

        lists = faiss.try_extract_index_ivf(self._index)
        return {
            "format": FORMAT,
            "rows": len(self),
            "dimension": self.dimension,
            "factory": self.factory,
            "nprobe": None if lists is None else lists.nprobe,  # for readers: FAISS keeps it in its own file
            "recall": self.recall,
            "metric": "inner_product",
            "max_norm": self._max_norm,
            "file": data.name,
            "size": data.stat().st_size,
            "sha256": self.fingerprint,
            "checksums": checksums.values,
            "provenance": self.provenance,
        }

    @classmethod
    def load(cls, directory: str | Path, *, verify: bool = False, provenance: Mapping[str, JSON] | None = None) -> Self:
        """Return the index in `directory`, mapped into memory: its pages are shared and read when searched.

        Manifest and size are checked. A thread compares the file with its checksums; searches raise DamagedIndexError
        once it found damage. With `verify`, or if the factory is not Flat, this waits for it: damaged lists and graphs
        can crash FAISS. A `provenance` that is not None must equal the saved one.
        Raises FileNotFoundError if no index was completed yet, DamagedIndexError and StaleIndexError.
        """
        import faiss

        directory = Path(directory)
        manifest = _read_manifest(directory)
        if manifest is None:
            raise FileNotFoundError(errno.ENOENT, "no index here yet", str(directory))
        data = directory / manifest["file"]
        _expect(data, "size", data.stat().st_size if data.exists() else "no file", manifest["size"])
        if provenance is not None:
            _check_provenance(directory, manifest, provenance)
        verification = Verification(data, manifest["checksums"])
        _check(verification, wait=verify or manifest["factory"] != "Flat")
        try:
            index = faiss.read_index(str(data), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise DamagedIndexError(f"{data}: expected a FAISS index, got {error}. {REMEDY}") from error
        _expect(data, "rows and dimension", (index.ntotal, index.d), (manifest["rows"], manifest["dimension"]))
        loaded = cls(index, manifest["factory"], manifest["max_norm"])
        loaded.provenance, loaded.fingerprint = manifest["provenance"], manifest["sha256"]
        loaded.recall = manifest.get("recall")
        loaded._verification = verification
        weakref.finalize(loaded, verification.stop)
        return loaded


def choose_factory(num_rows: int) -> str:
    """Return the factory of `auto`: Flat up to MAX_FLAT rows, then IVF lists of one byte a number.

    The number of lists is the power of two that is closest to four times the square root of the rows.
    """
    if num_rows <= MAX_FLAT:
        return "Flat"
    return f"IVF{2 ** round(math.log2(4 * math.sqrt(num_rows)))},SQ8"


def stored_factory(directory: Path) -> str | None:
    """Return the factory of the index in a folder, None if no index was completed yet. Raises DamagedIndexError."""
    manifest = _read_manifest(directory)
    return None if manifest is None else str(manifest["factory"])


def _training_rows(index: Any, num_rows: int) -> Rows:
    """Return the rows of the sample that trains an index, in their order: all if they are few."""
    import faiss

    lists = faiss.try_extract_index_ivf(index)
    size = max(TRAINING_ROWS, 0 if lists is None else TRAINING_ROWS_PER_LIST * lists.nlist)
    if num_rows <= size:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng(0).choice(num_rows, size, replace=False))


def _exact_rows(vectors: Matrix, queries: NDArray[Any], k: int) -> Rows:
    """Return the rows (n, k) of the k largest inner products of each query, in any order, block by block."""
    from rqa.terminal import Progress

    queries = queries.astype(np.float32)
    scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    with Progress("searching exactly, to measure recall", vectors.shape[0], unit="vectors") as progress:
        for start in range(0, vectors.shape[0], RECALL_BLOCK_ROWS):
            block = np.arange(start, min(start + RECALL_BLOCK_ROWS, vectors.shape[0]))
            products = queries @ np.asarray(vectors[block], np.float32).T
            scores = np.concatenate([scores, products], axis=1)
            rows = np.concatenate([rows, np.broadcast_to(block, products.shape)], axis=1)
            best = np.argpartition(-scores, min(k, scores.shape[1]) - 1, axis=1)[:, :k]
            scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
            progress.advance(len(block))
    return rows


def _checked(values: ArrayLike, name: str, numbers: Rows | None = None) -> tuple[Floats, NDArray[np.float64]]:
    """Return `values` as a matrix (n, D) and the Euclidean norm of each row (n,). `numbers` are those of the rows."""
    matrix = np.ascontiguousarray(values, dtype=np.float32)
    if matrix.ndim != 2 or not matrix.shape[1]:
        raise InputError(f"{name}: expected an array (rows, dimension), got shape {np.shape(values)}.")
    norms = np.sqrt(np.einsum("nd,nd->n", matrix, matrix, dtype=np.float64))
    bad = np.flatnonzero(~(norms <= MAX_NORM))  # NaN too is not <=
    if bad.size:
        raise InputError(
            f"{name}: expected finite numbers, got NaN, infinity or a number beyond 1e18 in row "
            f"{bad[0] if numbers is None else numbers[bad[0]]} and "
            f"{bad.size - 1} more of {len(matrix)}. Check the embedding model."
        )
    return matrix, norms


def _set_search_effort(index: Any) -> None:
    """Set how much of an approximate index a search reads: the default of FAISS is the least."""
    import faiss

    if isinstance(index, faiss.IndexRefine):
        index.k_factor = 10  # candidates scored again per hit; at FAISS's 1, recall with 4-bit codes was 0.32, now 0.99
    if (lists := faiss.try_extract_index_ivf(index)) is not None:
        lists.nprobe = min(lists.nlist, max(8, math.isqrt(lists.nlist)))


def _best(vectors: Floats, query: Floats, candidates: Rows, k: int) -> tuple[Floats, Rows]:
    """Return the exact scores (k,) and the rows (k,) of the best of `candidates`, ties by row.

    Products of float32 are exact in float64. Each row is summed by itself: in a matrix product the order of additions,
    and with it the last digit, would depend on the shape.
    """
    blocks = np.array_split(candidates, 1 + len(candidates) // 4096)  # bounds memory if most rows are duplicates
    exact = [(vectors[block] * query.astype(np.float64)).sum(axis=1).astype(np.float32) for block in blocks]
    scores = np.concatenate(exact)
    order = np.lexsort((candidates, -scores))[:k]
    return scores[order], candidates[order]


def _read_manifest(directory: Path) -> dict[str, Any] | None:
    """Return the manifest, or None if no index was completed yet. Raise DamagedIndexError for anything else."""
    path = directory / "manifest.json"
    if not path.exists():
        entries = directory.iterdir() if directory.is_dir() else [directory] if directory.exists() else []
        own = (".*", DATA_FILES, *NEIGHBOURS)
        foreign = [entry.name for entry in entries if not any(map(entry.match, own))]
        _expect(directory, "files", sorted(foreign), [])
        return None
    try:
        manifest = read_manifest(path)
    except (ValueError, RecursionError) as error:
        raise DamagedIndexError(f"{path}: expected the manifest of an index: {error}. {REMEDY}") from error
    if "provenance" not in manifest:
        raise DamagedIndexError(f"{path}: expected the manifest of an index, got another one. {REMEDY}")
    number = manifest.get("rqa_index", manifest.get("format"))  # until format 1 the field was "rqa_index"
    if number != FORMAT:
        update = "Update rqa, or: " if isinstance(number, int) and number > FORMAT else ""
        raise DamagedIndexError(f"{path}: expected index format {FORMAT}, got {number}. {update}{REMEDY}")
    return manifest


def _check_provenance(directory: Path, manifest: Mapping[str, Any], expected: Mapping[str, JSON]) -> None:
    stored, lines = manifest["provenance"], []
    for key in sorted({*stored, *expected}):  # compared as JSON, where a tuple is a list, and 1 is not true
        old, new = (json.dumps(side[key], sort_keys=True) if key in side else "none" for side in (stored, expected))
        if old != new:
            expected_text, found_text = (HASH.sub(lambda found: found[0][:12], text) for text in (new, old))
            lines.append(f"  {key}: expected {expected_text}, got {found_text}")
    if lines:
        size = f"{manifest['rows']} vectors of dimension {manifest['dimension']}"
        raise StaleIndexError("\n".join([f"{directory}: the index ({size}) has other inputs:", *lines, STALE_REMEDY]))


def _check(verification: Verification, *, wait: bool = False) -> None:
    """Raise DamagedIndexError if the verification found damage, in all of the file if `wait`."""
    if wait:
        verification.wait()
    if verification.problem:
        raise DamagedIndexError(f"{verification.path}: expected the saved bytes, got {verification.problem}. {REMEDY}")


def _expect(path: Path, name: str, actual: object, expected: object) -> None:
    if actual != expected:
        raise DamagedIndexError(f"{path}: expected {name} {expected}, got {actual}. {REMEDY}")
