"""Build time, memory, search time and recall of FAISS factories over clustered vectors.

    python benchmarks/index.py --vectors 100000 --factories Flat IVF1264,SQ8 HNSW32

The vectors are unit vectors around random centres, 50 for each; queries are other vectors around them. Each factory is
built in a process of its own. Memory is that which the build added to the process, without mapped files. recall@10 is
against an exact search. The search effort is that which `build_index.py` sets.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from rqa.retrieval import FaissIndex

QUERIES = 1000


def write_vectors(path: Path, num_vectors: int, dimension: int) -> None:
    """Write `num_vectors` rows, and the queries after them."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(1, num_vectors // 50), dimension), np.float32)
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (num_vectors + QUERIES, dimension))
    for start in range(0, len(rows), 50_000):
        block = rows[start : start + 50_000]
        noise = rng.standard_normal(block.shape, np.float32)
        block[:] = centres[rng.integers(len(centres), size=len(block))] + 0.7 * noise
        block /= np.linalg.norm(block, axis=1, keepdims=True)


def own_memory() -> float:
    """Return the memory of this process that is not a mapped file, in MB."""
    values = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(values["RssAnon"].split()[0]) / 1024


def measure(path: Path, factory: str, folder: Path) -> dict[str, float | str]:
    """Build an index and search it."""
    vectors = np.load(path, mmap_mode="r")
    rows, queries = vectors[:-QUERIES], np.array(vectors[-QUERIES:])
    before, start = own_memory(), time.perf_counter()
    index = FaissIndex.build(rows, factory)
    build = time.perf_counter() - start
    memory = own_memory() - before
    index.raise_recall(rows, queries)
    index.save(folder, provenance={})
    size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
    start = time.perf_counter()
    for query in queries[:100]:
        index.search(query[None], 10)
    one = (time.perf_counter() - start) * 10
    start = time.perf_counter()
    index.search(queries, 10)
    return {
        "index": str(index),
        "build, s": round(build, 2),
        "memory, MB": round(memory),
        "file, MB": round(size),
        "ms a query, alone": round(one, 3),
        "ms a query, of 1,000": round(time.perf_counter() - start, 3),
    }


def main() -> None:
    """Print one line for each factory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--factories", nargs="+", default=["Flat", "IVF1264,SQ8", "HNSW32"])
    parser.add_argument("--path", type=Path, help="vectors that were written before; builds one factory")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        if args.path:
            print(json.dumps(measure(args.path, args.factories[0], Path(folder, "index"))))
            return
        path = Path(folder, "vectors.npy")
        write_vectors(path, args.vectors, args.dimension)
        for factory in args.factories:
            command = [sys.executable, __file__, "--path", str(path), "--factories", factory]
            line = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
            numbers = {
                name: value if isinstance(value, str) else round(value, 3) for name, value in json.loads(line).items()
            }
            print(f"{args.vectors:,} x {args.dimension}:", json.dumps(numbers), flush=True)


if __name__ == "__main__":
    main()
