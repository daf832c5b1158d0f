"""The cache of a corpus: equal to a fresh reading by any number of processes; read again if it is damaged."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from world import launch_environment

from rqa.data import corpus_cache, jsonl, scan_workers
from rqa.data.corpus import open_passages
from rqa.data.corpus_table import Table
from rqa.data.data_file import open_data
from rqa.data.file_report import FileReport
from rqa.data.jsonl import read_rows
from rqa.data.records import Passage, read_passage
from rqa.errors import InputError

OPEN = "import sys; from pathlib import Path; from rqa.data import open_passages; "
OPEN += "print(open_passages(sys.argv[1], cache_dir=Path(sys.argv[2])).fingerprint)"
WORDS = ["a", "B ", "\u00e9", "e\u0301", "\u2028", "\U0001f600", "x" * 50, "  ", "\t", "\\", '"', "\x85"]


def random_corpus(seed, size=200):
    """Return the bytes of rows with duplicates, other spaces and compositions, empty texts and unread fields."""
    rng, lines = random.Random(seed), []
    for i in range(size):
        text = " ".join(rng.choices(WORDS, k=rng.randint(0, 4)))
        metadata = {"title": rng.choice(["", "T", " ", f"t{i}", None]), "source": rng.choice(["", f"s{i % 7}", None])}
        row = {"page_content": rng.choice([text, f"row {i}"])}
        row |= rng.choice([{}, {"metadata": metadata}, {"metadata": None}, {"metadata": metadata | {"titel": "x"}}])
        row |= rng.choice([{}, {"id": i}, {"fmt_content": "f"}, {"extra": ""}])
        line = json.dumps(row, ensure_ascii=rng.random() < 0.5).encode()
        lines.append(line + rng.choice([b"\n", b"\r\n", b" \n"]))
    return rng.choice([b"", b"\xef\xbb\xbf"]) + b"".join(lines) + rng.choice([b"", b"\n", b" \n\n"])


def one_by_one(path):
    """Return distinct passages with all their sources, row by row, as `read_rows` reads them, and the report."""
    report, passages, sources = FileReport(path), {}, {}
    for _, _, _, row in read_rows(path, open_data(path), report):
        passage = read_passage(row)
        if row.problems:
            if row.is_blank("page_content") and len(row.problems) == 1:
                row.problems.clear()
                row.note("passages without text are left out")
            continue
        first = passages.setdefault(passage.id, passage)
        sources.setdefault(first.id, {}).update(dict.fromkeys(passage.sources))
    return [(p.text, p.title, tuple(sources[p.id])) for p in passages.values()], report


def content(store):
    return [(each.text, each.title, each.sources) for each in store]


def counts(report):
    return (report.state(), report.bad_rows, report.num_bad_rows, sorted(report.misnamed_fields), report.error.problems)


@pytest.mark.parametrize("seed", range(6))
def test_any_reading_equals_one_row_at_a_time(tmp_path, monkeypatch, seed):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(random_corpus(seed))
    if seed % 2:
        path.write_bytes(path.read_bytes() + b'\n{"page_content": 5}\n\xff\n[]\n{"text": "a"}\n{"page_content": "z"}\n')
    expected, expected_report = one_by_one(path)
    for block_bytes in (64, 1000, 10**6):
        monkeypatch.setattr(jsonl, "BLOCK_BYTES", block_bytes)
        for _ in range(2):
            report = FileReport(path)
            store = open_passages(path, report, cache_dir=tmp_path / "cache")
            assert content(store) == expected
            assert counts(report) == counts(expected_report)
            assert [store.row_of(each.id) for each in store] == [*range(len(store))]
            assert store.row_of(Passage("absent").id) is None
        assert bool([*tmp_path.glob("cache/*/manifest.json")]) == (seed % 2 == 0)
        shutil.rmtree(tmp_path / "cache")


@pytest.mark.launch
@pytest.mark.parametrize("seed", [0, 1])
def test_any_number_of_processes_reads_the_same(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(jsonl, "BLOCK_BYTES", 500)
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(random_corpus(seed, 100) + b'\n{"page_content": 5}\n' * seed)
    readings = []
    for num_workers in (1, 2, 3):
        report = FileReport(path)
        store = open_passages(path, report, num_workers=num_workers)
        readings.append((content(store), store.fingerprint, store.duplicates, counts(report)))
    assert readings[0] == readings[1] == readings[2]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    rows = [
        {"page_content": f"Passage {i % 90}", "metadata": {"source": f"s{i}", "title": f"t{i}"}} for i in range(100)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def scans(monkeypatch):
    """The number of times that a corpus is read."""
    scans, plain = [], open_passages.__globals__["scan_parts"]
    monkeypatch.setitem(open_passages.__globals__, "scan_parts", lambda *a, **k: scans.append(1) or plain(*a, **k))
    return scans


def test_a_corpus_is_read_once(corpus, tmp_path, scans, caplog):
    corpus.write_bytes(corpus.read_bytes() + b'{"page_content": " ", "titel": "x"}\n')
    stores, logs = [], []
    for _ in range(3):
        caplog.clear()
        stores.append(open_passages(corpus, cache_dir=tmp_path / "cache"))
        logs.append(caplog.messages)
    assert len(scans) == 1
    assert content(stores[0]) == content(stores[1]) == content(open_passages(corpus))
    assert logs[0] == logs[1]
    assert any("passages without text" in line for line in logs[0])
    assert all(isinstance(getattr(stores[1]._table, name), np.memmap) for name in ("starts", "id_high", "id_rows"))


def files_of(cache):
    return sorted(path for path in cache.rglob("*") if path.is_file())


def test_a_damaged_cache_is_built_again(corpus, tmp_path, scans, caplog):
    cache = tmp_path / "cache"
    expected = content(open_passages(corpus, cache_dir=cache))
    sound = {path: path.read_bytes() for path in files_of(cache)}
    assert len(sound) == len(Table.paths(cache)) + 1
    rng, num_scans = random.Random(0), 1
    for path, data in sound.items():
        for position in {0, len(data) - 1, *(rng.randrange(len(data)) for _ in range(2))}:
            changed = bytearray(data)
            changed[position] ^= 1 << rng.randrange(8)
            path.write_bytes(changed)
            caplog.clear()
            assert content(open_passages(corpus, cache_dir=cache)) == expected
            num_scans += 1
            assert len(scans) == num_scans, (path, position)
            assert caplog.text.count("the corpus is read again") == 1
        for rest in (data[:-2], None):
            path.unlink()
            if rest is not None:
                path.write_bytes(rest)
            assert content(open_passages(corpus, cache_dir=cache)) == expected
            num_scans += 1
            assert len(scans) == num_scans


def keep_time(path, data):
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_changed_corpus_is_read_again(corpus, tmp_path, scans):
    open_passages(corpus, cache_dir=tmp_path / "cache")
    for write in (Path.write_bytes, keep_time):
        write(corpus, corpus.read_bytes().replace(b"Passage 7", b"Message 7").replace(b"sage 8", b"SAGE 8"))
        assert content(open_passages(corpus, cache_dir=tmp_path / "cache")) == content(open_passages(corpus))
        write(corpus, corpus.read_bytes().replace(b"age 8", b"AGE 8"))
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(corpus.read_bytes())
    open_passages(corpus, cache_dir=tmp_path / "cache")
    num_scans = len(scans)
    assert content(open_passages(copy, cache_dir=tmp_path / "cache")) == content(open_passages(corpus))
    assert len(scans) == num_scans + 1  # the one without a cache


@pytest.fixture
def few_samples(monkeypatch):
    monkeypatch.setattr(corpus_cache, "_SAMPLE_BYTES", 16)
    monkeypatch.setattr(corpus_cache, "_NUM_SAMPLES", 3)


def test_a_change_between_the_samples_is_found_at_access_and_by_verify(corpus, tmp_path, scans, few_samples):
    cache = tmp_path / "cache"
    data = corpus.read_bytes()
    open_passages(corpus, cache_dir=cache)
    corpus.write_bytes(changed := data.replace(b"Passage 30", b"Message 30"))  # another time: all is compared
    assert open_passages(corpus, cache_dir=cache)[30].text == "Message 30"
    assert len(scans) == 2
    keep_time(corpus, data)
    store = open_passages(corpus, cache_dir=cache)
    assert len(scans) == 2
    with pytest.raises(InputError, match="changed while it was read"):
        store[30]
    assert open_passages(corpus, cache_dir=cache)[30].text == "Passage 30"  # as the message advises: start again
    assert len(scans) == 3
    keep_time(corpus, changed)
    assert open_passages(corpus, cache_dir=cache, verify=True)[30].text == "Message 30"


def test_a_copy_is_compared_once(corpus, tmp_path, scans, monkeypatch):
    cache, hashed, plain = tmp_path / "cache", [], corpus_cache.content_hash
    open_passages(corpus, cache_dir=cache)
    monkeypatch.setattr(corpus_cache, "content_hash", lambda data: hashed.append(1) or plain(data))
    os.utime(corpus)
    for expected in (1, 1):
        open_passages(corpus, cache_dir=cache)
        assert len(hashed) == expected
    open_passages(corpus, cache_dir=cache, verify=True)
    assert (len(hashed), len(scans)) == (2, 1)


def test_a_corpus_with_bad_rows_is_not_cached(corpus, tmp_path):
    corpus.write_bytes(corpus.read_bytes() + b"{}\n")
    for _ in range(2):
        with pytest.raises(InputError, match=r"corpus\.jsonl:101: "):
            open_passages(corpus, cache_dir=tmp_path / "cache")
    assert files_of(tmp_path / "cache") == []


def test_a_folder_that_cannot_be_written_costs_the_cache_alone(corpus, tmp_path, caplog):
    (tmp_path / "file").touch()
    assert len(open_passages(corpus, cache_dir=tmp_path / "file" / "cache")) == 90
    assert "the corpus is not cached" in caplog.text


def command(*arguments):
    return [sys.executable, "-c", *map(str, arguments)]


@pytest.mark.launch
def test_of_two_processes_one_reads_the_corpus(corpus, tmp_path):
    count = f"import rqa.data.corpus as c; p = c.scan_parts; log = open({str(tmp_path / 'log')!r}, 'a', 1); "
    count += (
        "c.scan_parts = lambda *a, **k: (log.write('x'), log.flush(), __import__('time').sleep(1), p(*a, **k))[-1]; "
    )
    run = command(count + OPEN, corpus, tmp_path / "cache")
    processes = [subprocess.Popen(run, env=launch_environment(), stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0].decode().strip() for process in processes]
    assert outputs == [open_passages(corpus).fingerprint] * 2
    assert (tmp_path / "log").read_text() == "x"


@pytest.mark.launch
@pytest.mark.parametrize("name", ["np.save", "write_manifest", "publish_folder"])
def test_a_killed_first_opening_leaves_a_cache_that_can_be_built(corpus, tmp_path, name, scans):
    kill = "import os, signal, numpy as np, rqa.data.corpus_cache as c; die = lambda *a: os.kill(os.getpid(), 9); "
    kill += f"{name if name.startswith('np') else 'c.' + name} = die; "
    run = command(kill + OPEN, corpus, tmp_path / "cache")
    assert subprocess.run(run, env=launch_environment(), timeout=60).returncode == -signal.SIGKILL
    for _ in range(2):
        assert len(open_passages(corpus, cache_dir=tmp_path / "cache")) == 90
    assert len(scans) == 1
    assert not [*tmp_path.glob("cache/.*")]


def memory_of(path, cache):
    """Return the private memory of a process before and after it opens a corpus, in bytes."""
    code = "import sys; from pathlib import Path; import numpy; import rqa.data.corpus as c; "
    code += "from multiprocessing.pool import ThreadPool\n"
    code += "def private(): return sum(int(l.split()[1]) for l in open('/proc/self/smaps_rollup') if 'Private' in l)\n"
    code += "c.open_passages(sys.argv[1], cache_dir=Path(sys.argv[2])); before = private()\n"
    code += "s = [c.open_passages(sys.argv[1], cache_dir=Path(sys.argv[2])) for _ in range(3)]\n"
    code += "s[0].row_of(s[1][5].id); print(private() - before)"
    run = subprocess.run(command(code, path, cache), env=launch_environment(), capture_output=True, check=True)
    return int(run.stdout) * 1024


@pytest.mark.launch
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads /proc")
def test_a_cached_corpus_needs_no_memory_of_its_own(tmp_path):
    """100,000 passages have 3.6 MB of arrays: three stores would have 11 MB."""
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(f'{{"page_content": "{i}"}}\n' for i in range(100_000)))
    open_passages(path, cache_dir=tmp_path / "cache")
    assert memory_of(path, tmp_path / "cache") < 2 * 10**6


def test_the_identity_of_text_with_any_white_space_is_that_of_the_definition():
    """The split is left out for printable text: no white space but " " may be printable."""
    num_spaces = 0
    for code in range(sys.maxunicode + 1):
        for text in (f"a{chr(code)}b", f"a {chr(code)}"):
            composed = unicodedata.normalize("NFC", text)
            if (normalized := " ".join(composed.split())) != composed:
                num_spaces += 1
                assert Passage(text).id == hashlib.sha256(normalized.encode()).hexdigest()[:32], code
    assert num_spaces > 40


@pytest.mark.launch
def test_a_process_that_ends_early_is_an_error(corpus, monkeypatch):
    monkeypatch.setattr(jsonl, "BLOCK_BYTES", 100)
    monkeypatch.setattr(scan_workers, "_COMMAND", "import os; os._exit(3)")
    with pytest.raises(InputError, match=r"reading the corpus: .*status 3"):
        open_passages(corpus, num_workers=2)
