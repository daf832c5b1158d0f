"""Tests of the tests: without the code that a promise rests on, its test must fail.

    python tests/mutants.py [WORD …] [--fast] [--shard I/N]

For each promise of PROMISES its test runs in a copy of the project, once with the code as it is, and once without each
protection. Words select the promises and protections that contain one of them. --fast leaves out promises whose test
takes over a minute. --shard 2/3 runs the second third. Results are kept under runs/: a run that was stopped continues,
until a file of the project changes. The seconds of each test go to tests/README.md.
"""

import argparse
import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from mutation import ROOT, Promise, Without
from promises import PROMISES

TABLE = ROOT / "tests" / "README.md"
RESULTS = ROOT / "runs" / "mutants"
SLOW_SECONDS = 60  # --fast leaves out slower tests
PR_SET_CHILD_SUBREAPER = 36  # option of Linux' prctl


def run(project: Path, test: str, timeout: float | None = None) -> tuple[str, float]:
    """Run a test in a copy of the project; return "green", "red" or "broken" (not run), and its seconds."""
    environment = {**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "slow or not slow"]
    start = time.perf_counter()
    try:
        status = subprocess.run(
            [*command, f"tests/{test}"],
            cwd=project,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=timeout,
        ).returncode
    except subprocess.TimeoutExpired:  # without its protection a test may not end
        status = 1
    seconds = time.perf_counter() - start
    for orphan in psutil.Process().children(recursive=True):  # they would wait for a process that has ended
        orphan.kill()
        orphan.wait()
    return {0: "green", 1: "red"}.get(status, "broken"), seconds


def table(seconds: Mapping[str, float]) -> str:
    """Return tests/README.md, with the seconds of each promise by its text, 0 if unknown."""
    rows = [
        f"| {promise.text} | `{promise.test}` | {seconds.get(promise.text, 0):.0f} "
        f"| {'; '.join(without.protection for without in promise.protections)} |"
        for promise in PROMISES
    ]
    return "\n".join([HEADER, *rows, ""])


HEADER = """# Promises, and the test of each

Each test causes the fault. `python tests/mutants.py` removes one protection after the other from a copy of the project,
and its test must fail without it. The command also writes this table. Seconds are those of the test alone, with its
start, on two cores without a GPU.

| Promise | Test | Seconds | Fails without |
| --- | --- | ---: | --- |"""


def seconds_in_table() -> dict[str, float]:
    text = TABLE.read_text(encoding="utf-8") if TABLE.exists() else ""
    return {promise: float(took) for promise, took in re.findall(r"^\| (.+?) \| `.+?` \| (\d+) \|", text, re.MULTILINE)}


class Results:
    """Results of this state of the project, in a file to which several runs append."""

    def __init__(self, files: Sequence[str]) -> None:
        digest = hashlib.sha256()
        for name in sorted(files):
            if ROOT / name != TABLE:
                digest.update(name.encode() + (ROOT / name).read_bytes())
        self.path = RESULTS / f"{digest.hexdigest()[:16]}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()

    def read(self) -> dict[tuple[str, str], tuple[str, float]]:
        """Return (color, seconds) by promise and protection; "" is the code as it is."""
        rows = map(json.loads, self.path.read_text(encoding="utf-8").splitlines())
        return {(row["promise"], row["without"]): (row["color"], row["seconds"]) for row in rows}

    def add(self, promise: str, without: str, color: str, seconds: float) -> None:
        row = {"promise": promise, "without": without, "color": color, "seconds": round(seconds, 1)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def selected(words: Sequence[str], shard: str, *, fast: bool) -> Iterator[tuple[Promise, list[Without]]]:
    """Yield the promises of this run, with their protections."""
    number, parts = map(int, shard.split("/"))
    slow = {text for text, seconds in seconds_in_table().items() if seconds > SLOW_SECONDS} if fast else set()
    for index, promise in enumerate(PROMISES):
        if promise.text in slow or index % parts != number - 1:
            continue
        chosen = [
            without
            for without in promise.protections
            if not words or any(word in f"{promise.text} {promise.test} {without.protection}" for word in words)
        ]
        if chosen:
            yield promise, chosen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD", help="part of a promise, a test or a protection")
    parser.add_argument("--fast", action="store_true", help=f"leave out tests of more than {SLOW_SECONDS} seconds")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="part I of N; default: 1/1")
    flags = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans of a failed test become children of this process
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    names = [name for name in listed if (ROOT / name).is_file()]
    results, wrong = Results(names), []
    with TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        for name in names:
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, project / name)

        def color_of(promise: Promise, without: Without | None, timeout: float | None = None) -> str:
            """Return the result of a test, from an earlier run or from this one."""
            name = without.protection if without else ""
            known = results.read().get((promise.text, name))
            if known is None:
                if without is None:
                    known = run(project, promise.test)
                else:
                    path = project / without.path
                    whole = path.read_text(encoding="utf-8")
                    path.write_text(without.applied(whole), encoding="utf-8")
                    known = run(project, promise.test, timeout)
                    path.write_text(whole, encoding="utf-8")
                results.add(promise.text, name, *known)
            color, seconds = known
            print(f"{'  without ' * bool(name)}{name or promise.text}: {color}, {seconds:.0f} s", flush=True)
            return color

        for promise, chosen in selected(flags.words, flags.shard, fast=flags.fast):
            if color_of(promise, None) != "green":
                wrong.append(f"{promise.text}: not green")
                continue
            timeout = 60 + 10 * results.read()[promise.text, ""][1]
            colors = {without.protection: color_of(promise, without, timeout) for without in chosen}
            wrong += [f"{promise.text}: {color} without: {name}" for name, color in colors.items() if color != "red"]
    measured = {text: took for (text, without), (color, took) in results.read().items() if not without}
    TABLE.write_text(table(seconds_in_table() | measured), encoding="utf-8")
    print(*(wrong or ["every promise is kept, and its test fails without each protection"]), sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
