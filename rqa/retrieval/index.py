"""The vector index: which rows of a matrix have the largest inner product with a query.

Legend: n rows or queries, D dimension, k neighbours. A folder holds index-<16 hexadecimal digits of its SHA-256>.faiss,
so that a new index never overwrites the old one, and manifest.json, whose replacement is the moment of change.
FAISS is imported where it is used: on macOS its OpenMP runtime can clash with that of torch.
"""

import errno
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rqa.errors import InputError

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
Floats: TypeAlias = NDArray[np.float32]
Rows: TypeAlias = NDArray[np.int64]

FORMAT = 1
MARGIN = 16  # candidates beyond k: 8 already sufficed on every clustered set of 100,000 unit vectors tried
LONGEST = 2.0**63  # no inner product of two such vectors overflows float32
DATA_FILES = f"index-{'[0-9a-f]' * 16}.faiss"
REMEDY = "Delete the folder to have the index built anew, or choose another path."


class DamagedIndexError(InputError):
    """The folder holds something that is not a whole index of ours."""


class StaleIndexError(InputError):
    """The folder holds an index that was built from other inputs than those now given."""


class FaissIndex:
    """Vectors that can be searched for the largest inner products; made by `build` or `load`.

    `provenance` is what the index was said to be built from, and `fingerprint` the SHA-256 of its file in hexadecimal;
    both are empty until it is saved or loaded.
    """

    def __init__(self, index: Any, factory: str, longest: float):
        import faiss

        self.factory = factory
        self.dimension: int = index.d
        self.provenance: dict[str, JSON] = {}
        self.fingerprint = ""
        self._index = index
        self._longest = longest  # Euclidean length of the longest row: it bounds FAISS's rounding
        self._vectors: Floats | None = None
        if isinstance(index, faiss.IndexFlat):  # a view of FAISS's memory or of the mapped file, never a copy
            self._vectors = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(-1, index.d)

    @classmethod
    def build(cls, vectors: ArrayLike, factory: str = "Flat", *, nprobe: int | None = None) -> Self:
        """Index `vectors` (n, D) as float32; for cosine similarity normalise them, and the queries, before.

        `factory` is a FAISS factory string such as "Flat", "IVF1024,SQ8" or "HNSW32". `nprobe` is how many of an IVF
        index's lists a search reads; by default the square root of their number, but at least 8.

        Raises InputError where `vectors` is no matrix of finite numbers, or the factory cannot be built from it.
        """
        import faiss

        matrix, lengths = _checked(vectors, "vectors")
        if not len(matrix):
            raise InputError("vectors: found 0 rows, expected at least 1.")
        try:
            index = faiss.index_factory(matrix.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
            _set_effort(index, nprobe)
            index.train(matrix)
            index.add(matrix)
        except RuntimeError as error:
            raise InputError(
                f'index factory "{factory}" cannot be built from {len(matrix)} vectors of dimension {matrix.shape[1]}: '
                f"{str(error).rsplit(': ', 1)[-1]}. Give more vectors, or choose another factory, such as Flat."
            ) from error
        return cls(index, factory, float(lengths.max()))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(self, queries: ArrayLike, k: int) -> tuple[Floats, Rows]:
        """Return the scores (n, k) and rows (n, k) of the k best of each of `queries` (n, D), best first, ties by row.

        A Flat index answers exactly, whatever else is in the batch; others as FAISS does. Where fewer than k rows are
        found, the tail has score -inf and row -1 (which Python takes for the last row!). Ask many queries in one call.

        Raises InputError where `queries` is no matrix of finite numbers, D differs from the index's, or k < 1.
        """
        matrix, _ = _checked(queries, "queries")
        if matrix.shape[1] != self.dimension:
            raise InputError(f"queries: found dimension {matrix.shape[1]}, expected the index's {self.dimension}.")
        if k < 1:
            raise InputError(f"k: found {k}, expected at least 1.")
        hits = min(k, len(self))
        if self._vectors is None:
            scores, rows = self._search_approximately(matrix, hits)
        else:
            scores, rows = self._search_exactly(matrix, self._vectors, hits)
        tail = ((0, 0), (0, k - hits))
        return np.pad(scores, tail, constant_values=-np.inf), np.pad(rows, tail, constant_values=-1)

    def _search_approximately(self, queries: Floats, k: int) -> tuple[Floats, Rows]:
        scores, rows = self._index.search(queries, k)
        scores[rows < 0] = -np.inf
        order = np.lexsort((rows, -scores), axis=-1)
        return np.take_along_axis(scores, order, -1), np.take_along_axis(rows, order, -1)

    def _search_exactly(self, queries: Floats, vectors: Floats, k: int) -> tuple[Floats, Rows]:
        """Rank FAISS's candidates by exact scores, and fetch more where its rounding may have hidden a better row.

        FAISS errs by at most D roundings of |query| · |row|. So a row that it left out can only matter if its last
        candidate comes that close to the k-th best; then all rows that come that close are fetched.
        """
        import faiss

        # FAISS scans row by row below this number (queries times D, by default 128,000), and multiplies matrices above,
        # which measured faster from 4 queries a thread on. It decides speed alone, so nothing needs the old value back.
        faiss.cvar.distance_compute_blas_threshold = 4 * self.dimension * faiss.omp_get_max_threads()
        approximate, candidates = self._index.search(queries, min(k + MARGIN, len(self)))
        float32 = np.finfo(np.float32)  # eps is two roundings, which leaves room for those of this bound
        lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
        doubt = (self.dimension + 8) * (float32.eps * lengths * self._longest + float32.tiny)
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        for i, query in enumerate(queries):
            scores[i], rows[i] = _best(vectors, query, candidates[i], k)
            floor = float(scores[i, -1]) - doubt[i]
            if k + MARGIN < len(self) and approximate[i, -1] >= floor:
                close = self._index.range_search(query[None], floor)[2]
                scores[i], rows[i] = _best(vectors, query, close, k)
        return scores, rows

    def save(self, directory: str | Path, *, provenance: Mapping[str, JSON] = {}) -> None:
        """Write the index into the folder `directory`, which is made, or whose older index is replaced.

        `provenance` says what the index was built from, for `load` to compare. Killed at any moment, the old index or
        the new one is there. Processes that have the old one open keep it; none may save or load meanwhile.

        Raises DamagedIndexError where the folder holds files but no index of ours; in one of ours other files stay.
        """
        import faiss

        directory = Path(directory)
        _read_manifest(directory)  # refuses what is not ours
        directory.mkdir(parents=True, exist_ok=True)
        partial = directory / ".index.partial"
        faiss.write_index(self._index, str(partial))
        self.provenance, self.fingerprint = json.loads(json.dumps(provenance, allow_nan=False)), _sha256(partial)
        data = directory / f"index-{self.fingerprint[:16]}.faiss"
        _commit(partial, data)
        manifest = self._manifest(data)
        partial.write_text(json.dumps(manifest | {"checksum": _checksum(manifest)}, indent=1))
        _commit(partial, directory / "manifest.json")
        for old in set(directory.glob(DATA_FILES)) - {data}:
            old.unlink()

    def _manifest(self, data: Path) -> dict[str, Any]:
        import faiss

        lists = faiss.try_extract_index_ivf(self._index)
        nprobe = None if lists is None else lists.nprobe  # for people to read: FAISS keeps it in its own file
        built = {"factory": self.factory, "nprobe": nprobe, "metric": "inner_product", "longest": self._longest}
        shape = {"rows": len(self), "dimension": self.dimension}
        file = {"file": data.name, "size": data.stat().st_size, "sha256": self.fingerprint}
        return {"rqa_index": FORMAT} | shape | built | file | {"provenance": self.provenance}

    @classmethod
    def load(cls, directory: str | Path, *, verify: bool = False, provenance: Mapping[str, JSON] | None = None) -> Self:
        """Map the index in `directory` into memory: its pages are read when searched, and shared between processes.

        Manifest and size are always checked; `verify` also reads and hashes the whole file. A `provenance` that is
        given must equal the one saved.

        Raises FileNotFoundError where no index was finished yet, DamagedIndexError and StaleIndexError.
        """
        import faiss

        directory = Path(directory)
        manifest = _read_manifest(directory)
        if manifest is None:
            raise FileNotFoundError(errno.ENOENT, "no index here yet", str(directory))
        data = directory / manifest["file"]
        _expect(data, "size", data.stat().st_size if data.exists() else "no file", manifest["size"])
        if provenance is not None:
            _check_provenance(directory, manifest["provenance"], provenance)
        if verify:
            _expect(data, "SHA-256", _sha256(data), manifest["sha256"])
        try:
            index = faiss.read_index(str(data), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise DamagedIndexError(f"{data}: FAISS cannot read it ({error}). {REMEDY}") from error
        _expect(data, "rows and dimension", (index.ntotal, index.d), (manifest["rows"], manifest["dimension"]))
        loaded = cls(index, manifest["factory"], manifest["longest"])
        loaded.provenance, loaded.fingerprint = manifest["provenance"], manifest["sha256"]
        return loaded


def _checked(values: ArrayLike, name: str) -> tuple[Floats, NDArray[np.float64]]:
    """Return `values` as a matrix (n, D) and the Euclidean length of each row (n,)."""
    matrix = np.ascontiguousarray(values, dtype=np.float32)
    if matrix.ndim != 2 or not matrix.shape[1]:
        raise InputError(f"{name}: found an array of shape {np.shape(values)}, expected (rows, dimension).")
    lengths = np.sqrt(np.einsum("nd,nd->n", matrix, matrix, dtype=np.float64))
    bad = np.flatnonzero(~(lengths <= LONGEST))  # NaN too is not <=
    if bad.size:
        found = f"row {bad[0]}, and {bad.size - 1} more of {len(matrix)}, hold NaN, infinity or a number beyond 1e18"
        raise InputError(f"{name}: {found}, expected finite numbers. Check the model that embedded them.")
    return matrix, lengths


def _set_effort(index: Any, nprobe: int | None) -> None:
    """Say how much of an approximate index a search reads: by FAISS's own default, the least."""
    import faiss

    if isinstance(index, faiss.IndexRefine):
        index.k_factor = 10  # candidates re-scored per hit; at FAISS's 1, recall with 4-bit codes was 0.32, now 0.99
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None:
        nprobe = min(lists.nlist, max(8, math.isqrt(lists.nlist))) if nprobe is None else nprobe
        if not 1 <= nprobe <= lists.nlist:
            raise InputError(f"nprobe: found {nprobe}, expected 1 to {lists.nlist}, the number of lists.")
        lists.nprobe = nprobe
    elif nprobe is not None:
        raise InputError(f"nprobe: found {nprobe}, but only an IVF index has lists. Leave it out.")


def _best(vectors: Floats, query: Floats, candidates: Rows, k: int) -> tuple[Floats, Rows]:
    """Return the exact scores (k,) and the rows (k,) of the best of `candidates`, ties by row.

    Products of float32 are exact in float64. Each row is summed by itself: in a matrix product the order of additions,
    and with it the last digit, would depend on the shape.
    """
    blocks = np.array_split(candidates, 1 + len(candidates) // 4096)  # bounds memory where most rows are duplicates
    exact = [(vectors[block] * query.astype(np.float64)).sum(axis=1).astype(np.float32) for block in blocks]
    scores = np.concatenate(exact)
    order = np.lexsort((candidates, -scores))[:k]
    return scores[order], candidates[order]


def _read_manifest(directory: Path) -> dict[str, Any] | None:
    """Return the manifest, None where no index was finished yet; refuse what is not ours."""
    path = directory / "manifest.json"
    if not path.exists():
        entries = directory.iterdir() if directory.is_dir() else [directory] if directory.exists() else []
        foreign = [entry.name for entry in entries if not (entry.match(".*") or entry.match(DATA_FILES))]
        _expect(directory, "files", sorted(foreign), [])
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        version, checksum = manifest["rqa_index"], manifest.pop("checksum")
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise DamagedIndexError(f"{path}: expected the manifest of an index, found something else. {REMEDY}") from error
    if version != FORMAT:
        raise DamagedIndexError(f"{path}: found index format {version}, this rqa reads {FORMAT}. Update rqa. {REMEDY}")
    _expect(path, "checksum", checksum, _checksum(manifest))
    return manifest


def _check_provenance(directory: Path, stored: Mapping[str, JSON], given: Mapping[str, JSON]) -> None:
    lines = []
    for key in sorted({*stored, *given}):  # compared as JSON, where a tuple is a list, and 1 is not true
        old, new = (json.dumps(side[key], sort_keys=True) if key in side else "nothing" for side in (stored, given))
        if old != new:
            lines.append(f"  {key}: the index has {old}, now given is {new}")
    if lines:
        raise StaleIndexError("\n".join([f"{directory}: the index was built from something else:", *lines, REMEDY]))


def _expect(path: Path, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise DamagedIndexError(f"{path}: found {what} {found}, expected {expected}. {REMEDY}")


def _checksum(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _commit(partial: Path, final: Path) -> None:
    """Give a finished file its name, so that after a crash all of it is there or nothing."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
