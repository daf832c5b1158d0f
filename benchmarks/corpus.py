"""Measure the openings of a corpus: the first, and a later one, with the memory of its process.

    python benchmarks/corpus.py --passages 10000 100000 1000000

With --source DIR the first opening is also that of the package `rqa` in another folder, such as an older version.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

OPEN = """
import inspect, json, os, random, resource, sys, time
from pathlib import Path
from rqa.data.corpus import open_passages

def private():
    return sum(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if "Private" in line) * 1024

has_cache = "cache_dir" in inspect.signature(open_passages).parameters
options = {"cache_dir": Path(sys.argv[2])} if has_cache and sys.argv[2] else {}
cpu_before = sum(os.times()[:4])
before, start = private(), time.perf_counter()
store = open_passages(sys.argv[1], **options)
seconds, after = time.perf_counter() - start, private()
cpu_seconds = sum(os.times()[:4]) - cpu_before
rows = random.Random(0).sample(range(len(store)), min(len(store), 10_000))
ids = [store[row].id for row in rows]
start = time.perf_counter()
assert [store.row_of(each) for each in ids] == rows
look_up = (time.perf_counter() - start) / len(ids)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps([seconds, cpu_seconds, after - before, peak, look_up, store.fingerprint]))
"""


def write_corpus(path: Path, num_passages: int) -> None:
    """Write passages of about 500 bytes."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]
    with path.open("w", encoding="utf-8") as file:
        for i in range(num_passages):
            text = f"{' '.join(rng.choices(words, k=65))}{' é—ü' * (i % 50 == 0)} {i}"
            metadata = {"source": f"doc-{i // 10}.html", "title": f"Title {i // 10}"}
            file.write(json.dumps({"page_content": text, "metadata": metadata}, ensure_ascii=False) + "\n")


def measure(path: Path, cache: Path | str, source: Path) -> str:
    """Open a corpus in a process of its own, print its numbers, and return the fingerprint."""
    environment = {**os.environ, "PYTHONPATH": str(source)}
    command = [sys.executable, "-c", OPEN, str(path), str(cache)]
    result = subprocess.run(command, env=environment, cwd=source, check=True, stdout=subprocess.PIPE).stdout
    seconds, cpu_seconds, private, peak, look_up, fingerprint = json.loads(result)
    print(
        f"{seconds:8.2f} s, {cpu_seconds:8.2f} s of cores {private / 2**20:8.1f} MB private "
        f"{peak / 2**20:8.1f} MB at the peak {look_up * 1e6:6.2f} us a look-up"
    )
    return str(fingerprint)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--source", type=Path)
    args = parser.parse_args()
    own = Path(__file__).absolute().parents[1]
    with TemporaryDirectory() as folder:
        path, cache = Path(folder, "corpus.jsonl"), Path(folder, "cache")
        for num_passages in args.passages:
            write_corpus(path, num_passages)
            openings: list[tuple[str, Path | str, Path]] = [("first", cache, own), ("later", cache, own)]
            if args.source:
                openings.insert(0, ("other version", "", args.source.absolute()))
            fingerprints = set()
            for name, cache_dir, source in openings:
                print(f"{num_passages:10,} passages, {name:13}", end=" ", flush=True)
                fingerprints.add(measure(path, cache_dir, source))
            if len(fingerprints) > 1:
                raise SystemExit(f"expected one fingerprint, got {fingerprints}")
            shutil.rmtree(cache)


if __name__ == "__main__":
    main()
