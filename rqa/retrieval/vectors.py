"""The vectors of embedded passages on the disk, in shards: no passage is embedded twice, also after a kill.

Legend: n passages, D embedding size. A shard is a .npy file of rows (key, vector), named by its SHA-256. The key of a
passage is the hash of its content. A shard is renamed into the folder when it is complete.
"""

import hashlib
import json
import logging
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rqa.atomic_files import atomic_file, sha256_of
from rqa.data.records import Passage
from rqa.terminal import track

log = logging.getLogger(__name__)

KEY_BYTES = 16
MAX_BLOCK, MIN_BLOCK = 50_000, 500  # passages that a killed process embeds again, at most
BLOCKS = 64  # at least, of a corpus of average size: enough to divide between processes


def block_size(num_passages: int) -> int:
    """Return the passages of a block. It depends on the corpus alone: every launch forms the same blocks."""
    return min(MAX_BLOCK, max(MIN_BLOCK, -(-num_passages // BLOCKS)))


def keys_of(passages: Iterable[Passage]) -> NDArray[np.bytes_]:
    """Return the key of each passage (n,)."""
    digests = [hashlib.sha256(passage.content.encode()).digest()[:KEY_BYTES] for passage in passages]
    return np.array(digests, f"S{KEY_BYTES}")


class VectorShards:
    """The shards in one folder: vectors of one encoder, with one prefix.

    Vectors have half precision if they were computed in less: float16 rounds an eighth as much as bfloat16.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, object]) -> None:
        name = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = folder / name

    def save(self, keys: NDArray[np.bytes_], vectors: NDArray[np.float32], *, half: bool) -> None:
        """Write the vectors (n, D) of a block as a shard."""
        is_small = float(np.abs(vectors).max(initial=0)) < float(np.finfo(np.float16).max)
        number = np.float16 if half and is_small else np.float32
        row = np.dtype([("key", keys.dtype), ("vector", number, vectors.shape[1:])])
        rows = np.empty(len(keys), row)
        rows["key"], rows["vector"] = keys, vectors
        unnamed = self.folder / f".{secrets.token_hex(8)}.new"  # processes write at once
        with atomic_file(unnamed) as file:
            np.save(file, rows, allow_pickle=False)
        unnamed.rename(self.folder / f"{sha256_of(unnamed)}.npy")

    def open(self, keys: NDArray[np.bytes_]) -> "StoredVectors":
        """Return the stored vectors of these keys, after comparing each shard with its hash. Damaged ones are deleted.

        No process may save during the call: the unnamed files of killed processes are deleted too.
        """
        for unnamed in self.folder.glob(".*"):
            unnamed.unlink()
        shards = []
        for path in track(sorted(self.folder.glob("*.npy")), "verifying embedded passages", unit="files"):
            if sha256_of(path) == path.stem:
                shards.append(np.load(path, mmap_mode="r", allow_pickle=False))
            else:
                log.warning("%s: damaged, and deleted: its passages are embedded again", path)
                path.unlink()
        return StoredVectors(keys, shards)


class StoredVectors:
    """The rows of a matrix (n, D) that lies in shards: `vectors[rows]` is a float32 array, as of NumPy.

    `missing` are the rows that no shard has. Memory holds 24 bytes for each row.
    """

    def __init__(self, keys: NDArray[np.bytes_], shards: list[NDArray[np.void]]) -> None:
        self.keys, self._shards = keys, shards
        self._shard, self._place = np.full(len(keys), -1, np.int32), np.empty(len(keys), np.int32)
        order = np.argsort(keys)
        for number, shard in enumerate(shards):
            ranks = np.searchsorted(keys, shard["key"], sorter=order).clip(max=len(keys) - 1)
            is_found = keys[order[ranks]] == shard["key"]
            rows = order[ranks[is_found]]
            self._shard[rows], self._place[rows] = number, np.flatnonzero(is_found)
        self.missing: NDArray[np.int64] = np.flatnonzero(self._shard < 0)

    @property
    def shape(self) -> tuple[int, int]:
        """The number of rows, and their dimension."""
        return len(self._shard), self._shards[0]["vector"].shape[1]

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        shard_of, place_of = self._shard[rows], self._place[rows]
        vectors = np.empty((len(shard_of), self.shape[1]), np.float32)
        for number in np.unique(shard_of):
            is_here = shard_of == number
            vectors[is_here] = self._shards[number]["vector"][place_of[is_here]]
        return vectors
