"""Blocks of a corpus, scanned in their order by several processes, which import nothing but the scan."""

import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from queue import SimpleQueue
from typing import IO, Any, TypeVar

from rqa.data.passage_rows import Block, RowFormat, scan_block
from rqa.errors import InputError

T = TypeVar("T")
Worker = subprocess.Popen[bytes]
MIN_PARALLEL_BYTES = 2**26  # of a corpus: a process needs a fraction of a second to start
MAX_WORKERS = 16  # one process reads and merges for them all
_COMMAND = "from rqa.data.scan_workers import work; work()"


def default_workers(size: int) -> int:
    """Return the number of processes for a corpus of some bytes; 1 is this process."""
    return min(MAX_WORKERS, len(os.sched_getaffinity(0))) if size >= MIN_PARALLEL_BYTES else 1


def scan_blocks(
    blocks: Iterable[tuple[T, bytes, RowFormat]], num_workers: int
) -> Generator[tuple[T, Block], None, None]:
    """Yield each key with the scan of its block, in order. At most two blocks for each worker are in memory.

    This process scans the first block, and the others if there is one worker.
    """
    blocks = iter(blocks)
    for key, data, row_format in blocks if num_workers == 1 else islice(blocks, 1):
        yield key, scan_block(data, row_format)
    with ExitStack() as stack:
        idle: SimpleQueue[Worker] = SimpleQueue()
        threads = stack.enter_context(ThreadPoolExecutor(num_workers))
        pending: deque[tuple[T, Future[Block]]] = deque()
        for count, (key, data, row_format) in enumerate(blocks):
            if count < num_workers:
                worker = stack.enter_context(_worker())
                idle.put(worker)
            pending.append((key, threads.submit(_scan, idle, data, row_format)))
            if len(pending) == 2 * num_workers:
                key, future = pending.popleft()
                yield key, future.result()
        for key, future in pending:
            yield key, future.result()


@contextmanager
def _worker() -> Iterator[Worker]:
    """Run a process without a main module: those of `multiprocessing` would import the recipe again."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _COMMAND]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    try:
        yield process
    finally:
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # the rest of a block for a process that has ended
                if pipe:
                    pipe.close()
        process.wait()


def _scan(idle: SimpleQueue[Worker], data: bytes, row_format: RowFormat) -> Block:
    worker = idle.get()
    assert worker.stdin
    assert worker.stdout
    try:
        _send(worker.stdin, (data, row_format))
        block: Block = _receive(worker.stdout)
    except (OSError, EOFError) as error:
        raise InputError(
            f"reading the corpus: expected the result of process {worker.pid}, got status {worker.wait()}. "
            "Start again; the system may have ended it for lack of memory."
        ) from error
    finally:
        idle.put(worker)
    return block


def work() -> None:
    """Scan blocks from the standard input until it ends, and write the results to the standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ends with its parent, which closes the pipe
    while True:
        try:
            data, row_format = _receive(sys.stdin.buffer)
        except EOFError:
            return
        _send(sys.stdout.buffer, scan_block(data, row_format))


def _send(pipe: IO[bytes], value: Any) -> None:
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    pipe.write(len(data).to_bytes(8, "little"))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    length = pipe.read(8)
    if len(length) < 8:
        raise EOFError
    return pickle.loads(pipe.read(int.from_bytes(length, "little")))
