"""data_file: regular files only, memory that does not grow with the text, and the bytes of one state of a file."""

import gzip
import json
import os
import random
import resource
import signal
import socket
import tracemalloc
from functools import partial
from pathlib import Path

import pytest

from rqa.data import data_file
from rqa.data.corpus import open_passages
from rqa.data.data_file import check_file, open_data, read_all
from rqa.data.jsonl import read_rows
from rqa.data.records import load_examples
from rqa.errors import InputError

ROW = {"page_content": "A passage.", "question": "Who?", "gold_answer": "She.", "gold_docs": [], "metadata": {}}


def refusal(read, path):
    with pytest.raises(InputError) as refused:
        read(path)
    message = str(refused.value)
    assert message.startswith(str(path))
    return message


# Other files than regular ones


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def listening(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.fixture
def within_seconds():
    """End a test that waits: opening a pipe would wait for its writer."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waited"))
    signal.alarm(20)
    yield
    signal.alarm(0)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".pkl", ".json"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (pipe, "got a named pipe"),
        (device, "got a device"),
        (listening, "got an error"),
        (Path.mkdir, "Is a directory"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
)
def test_other_files_are_refused_at_once(tmp_path, monkeypatch, within_seconds, make, reason, ending):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    path = Path(f"file{ending}")
    make(path)
    readers = (
        [load_examples]
        if ending == ".json"
        else [open_passages]
        if ending == ".pkl"
        else [load_examples, open_passages]
    )
    for read in (*readers, open_data, lambda path: check_file(path, (ending,))):
        assert reason in refusal(read, path)


def test_a_link_to_a_file_is_read(tmp_path):
    (tmp_path / "corpus").write_text(json.dumps(ROW))
    (tmp_path / "link.jsonl").symlink_to("corpus")
    assert len(open_passages(tmp_path / "link.jsonl")) == 1


# Bytes


@pytest.mark.parametrize("name", ["f.txt", "f.gz"])
def test_parts_of_a_file_equal_parts_of_its_bytes(tmp_path, name):
    rng = random.Random(0)
    content = rng.randbytes(3_000_000)  # more than a block
    path = tmp_path / name
    path.write_bytes(gzip.compress(content[:1000]) + gzip.compress(content[1000:]) if name == "f.gz" else content)
    data = open_data(path)
    assert len(data) == len(content)
    assert read_all(data) == data[:] == content
    for _ in range(200):
        start, end = (rng.randint(-10, len(content) + 10) for _ in range(2))
        assert data[start:end] == content[start:end]
    assert data[: 2**70] == content


def test_an_open_file_is_closed_with_its_last_reference(tmp_path):
    def count():
        return len(list(Path("/dev/fd").iterdir()))

    (tmp_path / "f.jsonl").write_text(json.dumps(ROW))
    (tmp_path / "f.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROW).encode()))
    before = count()
    stores = [open_passages(tmp_path / name) for name in ("f.jsonl", "f.jsonl.gz")]
    assert count() == before + 2
    del stores
    assert count() == before


@pytest.mark.parametrize("size", [10, 999, 1000, 1001, 5000])
def test_lines_do_not_depend_on_the_blocks(tmp_path, monkeypatch, size):
    rows = [{"page_content": "x" * (i * 37 % 400), "n": i} for i in range(100)]
    path = tmp_path / "f.jsonl"
    for end in ("", "\n"):
        path.write_text("\ufeff" + "\r\n".join(map(json.dumps, rows)) + end, encoding="utf-8")
        monkeypatch.setattr("rqa.data.jsonl.BLOCK_BYTES", size)
        data, content = open_data(path), path.read_bytes()
        found = list(read_rows(path, data))
        assert [(number, row.number("n")) for number, *_, row in found] == [(i + 1, i) for i in range(100)]
        for _, start, line, row in found:
            assert data[start : start + len(line)] == content[start : start + len(line)] == line
            assert json.loads(line) == row._values


# Bounds


@pytest.mark.parametrize("text", [json.dumps(ROW).encode() + b"\n", b"\0"])
def test_a_gzip_bomb_is_refused_in_little_memory(tmp_path, monkeypatch, text):
    """40 MB, which the compressed file is less than a 250th of."""
    monkeypatch.setattr(data_file, "_ALWAYS_ALLOWED", 10**6)
    path = tmp_path / "bomb.jsonl.gz"
    text *= 10**6 // len(text)
    with gzip.open(path, "wb") as file:
        for _ in range(40):
            file.write(text)
    assert path.stat().st_size < 160_000
    peak, message = peak_of(refusal, open_data, path)
    assert f"at most {data_file.MAX_EXPANSION} times the {path.stat().st_size:,} bytes" in message
    assert peak < 8 * 10**6


def peak_of(function, *arguments):
    """Return the peak of the memory that a call allocates, and its result."""
    tracemalloc.start()
    try:
        result = function(*arguments)
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


def test_a_small_file_of_equal_rows_is_no_bomb(tmp_path):
    """2,000 equal rows become 400 times as large: such files are made for a first try."""
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(ROW).encode() + b"\n") * 20_000))
    assert path.stat().st_size * data_file.MAX_EXPANSION < 20_000 * len(json.dumps(ROW))
    assert open_passages(path).duplicates == 19_999


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_memory_does_not_grow_with_the_text(tmp_path, ending):
    """Rows of 100 kB: 20 MB of text, of which a store keeps the places and ids of 200 passages."""
    rng, path = random.Random(0), tmp_path / f"corpus{ending}"
    lines = [json.dumps({"page_content": f"{i} {rng.randbytes(50_000).hex()}"}).encode() + b"\n" for i in range(200)]
    path.write_bytes(b"".join(lines) if ending == ".jsonl" else gzip.compress(b"".join(lines), 1))
    del lines
    peak, store = peak_of(open_passages, path)
    assert len(store) == 200
    assert peak < 8_000_000


@pytest.mark.parametrize("read", [open_passages, load_examples])
def test_a_line_without_end_is_refused_in_little_memory(tmp_path, read):
    """A file of 1 TB without content takes no space on the disk."""
    path = tmp_path / "f.jsonl"
    with path.open("wb") as file:
        file.write(b'{"page_content": "a"}\n{"page_content": "')
        file.truncate(10**12)
    peak, message = peak_of(refusal, read, path)
    assert message.startswith(f"{path}:2: expected lines of at most 16,777,216 bytes")
    assert peak < 10**8


@pytest.mark.parametrize(("name", "read"), [("f.json", load_examples), ("f.pkl", open_passages)])
def test_a_file_beyond_the_memory_is_refused(tmp_path, name, read):
    path = tmp_path / name
    with path.open("wb") as file:
        file.write(b"[")
        file.truncate(10**13)
    message = refusal(read, path)
    assert "half of the memory" in message
    assert "10,000,000,000,000 bytes" in message


def test_a_full_disk_of_temporary_files_is_named(tmp_path, monkeypatch):
    path = tmp_path / "f.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(ROW).encode()))
    monkeypatch.setattr(data_file.tempfile, "TemporaryFile", partial(Path("/dev/full").open, "wb"))
    message = refusal(open_passages, path)
    assert "No space left on device" in message
    assert "TMPDIR" in message


# Damaged and hostile bytes


def mutate(rng, data):
    """Change, insert, remove or repeat bytes at one to four places."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(changed) + 1)
        end = min(len(changed), start + rng.choice([0, 1, 4, 50, 10**6]))
        changed[start:end] = rng.choice(
            [rng.randbytes(rng.randint(0, 5)), b"", bytes(changed[start:end]) * 3, rng.choice(PIECES)]
        )
    return bytes(changed)


PIECES = [b"\n", b"\r\n", b"\xef\xbb\xbf", b"\x00", b"\xff", b"\x1f\x8b\x08"]
PIECES += [b"\\ud800", b"NaN", b"1e999", b'"', b"{}", b"[" * 5000]
ROWS = [ROW | {"page_content": f"Passage {i} \u00e9 \U0001f600 " * i, "metadata": {"title": "T"}} for i in range(5)]


def read_mutated(folder, seed, number):
    """Return the number of mutated files that were read; the others are refused."""
    rng, num_read = random.Random(seed), 0
    lines = "\n".join(json.dumps(row, ensure_ascii=bool(i % 2)) for i, row in enumerate(ROWS)).encode()
    sources = {".jsonl": lines, ".json": json.dumps(ROWS, indent=1).encode(), ".jsonl.gz": gzip.compress(lines)}
    for _ in range(number):
        ending = rng.choice(list(sources))
        content = mutate(rng, lines if ending == ".jsonl.gz" and rng.random() < 0.7 else sources[ending])
        if ending == ".jsonl.gz" and not content.startswith(b"\x1f\x8b"):
            content = gzip.compress(content, 1)
        path = folder / f"f{ending}"
        path.write_bytes(content)
        for read in (load_examples,) if ending == ".json" else (load_examples, open_passages):
            try:
                assert all(row.id for row in read(path))
            except InputError:
                continue
            num_read += 1
    return num_read


def in_little_memory(function, *arguments):
    """Call a function in a child that may allocate 500 MB, and return its result, a small number."""
    child = os.fork()
    if child == 0:
        status = 255
        try:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + 500 * 2**20,) * 2)
            status = function(*arguments)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("seed", range(2))
def test_a_mutated_file_is_read_or_refused(tmp_path, seed):
    assert 10 < in_little_memory(read_mutated, tmp_path, seed, 200) < 250


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_thousands_of_mutated_files_are_read_or_refused(tmp_path, seed):
    assert 10 < in_little_memory(read_mutated, tmp_path, seed, 250) < 250
