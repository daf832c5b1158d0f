"""index: FAISS and NumPy agree, and a folder without a complete index of this format is refused."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqa.atomic_files import read_manifest, write_manifest
from rqa.errors import InputError
from rqa.retrieval import verification
from rqa.retrieval.index import FORMAT, DamagedIndexError, FaissIndex, StaleIndexError, choose_factory

PROVENANCE = {"corpus": "3f2a", "model": {"name": "e5", "prefixes": ["query: ", "passage: "]}, "rows": 200}


def brute_force(vectors, queries, k):
    """Score every pair in float64, round to float32, order by score and then by row."""
    products = np.asarray(queries, np.float64)[:, None] * np.asarray(vectors, np.float64)[None]
    scores = products.sum(axis=-1).astype(np.float32)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, 1), rows


def assert_exact(index, vectors, queries, k):
    scores, rows = index.search(queries, k)
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)
    expected_scores, expected_rows = brute_force(vectors, queries, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


def unit(rng, rows, dimension):
    vectors = rng.standard_normal((rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clustered(rng, rows=4000, dimension=32):
    centres = unit(rng, 200, dimension)[rng.integers(200, size=rows)]
    vectors = centres + 0.6 * unit(rng, rows, dimension)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def recall(index, vectors, queries, k=10):
    rows, best = index.search(queries, k)[1], brute_force(vectors, queries, k)[1]
    return np.mean([len(set(a) & set(b)) / k for a, b in zip(rows, best, strict=True)])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def vectors(rng):
    return unit(rng, 200, 16)


@pytest.fixture
def saved(vectors, tmp_path):
    FaissIndex.build(vectors).save(tmp_path / "index", provenance=PROVENANCE)
    return tmp_path / "index"


def build_narrow(vectors, factory):
    """Return an IVF index that searches one list."""
    index = FaissIndex.build(vectors, factory)
    faiss.extract_index_ivf(index._index).nprobe = 1
    return index


def data_file(folder):
    (path,) = folder.glob("index-*.faiss")
    return path


# Flat equals NumPy


@given(st.data(), st.integers(1, 80), st.integers(1, 4), st.integers(1, 5), st.integers(1, 30))
@settings(max_examples=150)
def test_flat_equals_brute_force_on_small_integers_with_many_ties(data, n, dimension, queries, k):
    def matrix(rows):
        numbers = st.lists(st.integers(-2, 2), min_size=rows * dimension, max_size=rows * dimension)
        return np.array(data.draw(numbers), np.float32).reshape(rows, dimension)

    vectors = matrix(n)
    assert_exact(FaissIndex.build(vectors), vectors, matrix(queries), min(k, n))


@pytest.mark.parametrize("duplicates", [15, 16, 17, 500])
@pytest.mark.parametrize("k", [1, 10, 200])
def test_duplicates_beyond_the_extra_candidates_are_in_order_of_row(rng, duplicates, k):
    kinds = unit(rng, 3, 24)
    vectors = np.concatenate([unit(rng, 100, 24), np.repeat(kinds, duplicates, axis=0)])[
        rng.permutation(100 + 3 * duplicates)
    ]
    assert_exact(FaissIndex.build(vectors), vectors, np.concatenate([kinds, unit(rng, 5, 24)]), min(k, len(vectors)))


@pytest.mark.parametrize("scale", [1, 4096])
def test_near_duplicates_below_the_rounding_of_faiss_are_ranked_exactly(rng, scale):
    # 300 rows that differ in the last bits: float32 sums order them wrongly, exact scores do not
    vectors = np.repeat(unit(rng, 1, 512), 300, axis=0) + rng.integers(-2, 3, (300, 512)).astype(np.float32) * 2**-27
    queries = np.concatenate([vectors[:4], unit(rng, 4, 512)])
    assert_exact(FaissIndex.build(vectors * scale), vectors * scale, queries, 7)


@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1.0, 1e18])
def test_vectors_of_any_norm_are_ranked_exactly(rng, scale):
    vectors = unit(rng, 300, 8) * np.float32(scale)
    assert_exact(FaissIndex.build(vectors), vectors, unit(rng, 3, 8) * np.float32(scale), 5)


def test_a_very_long_row_among_short_ones_hides_nothing(rng):
    vectors = unit(rng, 300, 64)
    vectors[7] *= 1e7
    assert_exact(FaissIndex.build(vectors), vectors, unit(rng, 20, 64), 5)


def test_results_do_not_depend_on_the_batch(rng):
    vectors, queries = clustered(rng, 2000, 64), clustered(rng, 300, 64)
    index = FaissIndex.build(vectors)
    scores, rows = index.search(queries, 5)  # by matrix product; one by one row by row
    singles = [index.search(query[None], 5) for query in queries]
    np.testing.assert_array_equal(np.concatenate([single[0] for single in singles]), scores)
    np.testing.assert_array_equal(np.concatenate([single[1] for single in singles]), rows)


def test_flat_vectors_are_not_copied(saved):
    for index in (FaissIndex.load(saved), FaissIndex.build(np.eye(3))):
        assert not index._vectors.flags.owndata
        assert index._vectors.ctypes.data == int(index._index.get_xb())


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "HNSW8", "IVF4,Flat"])
def test_more_neighbours_than_rows_gives_a_marked_tail(rng, factory):
    scores, rows = FaissIndex.build(unit(rng, 5, 8), factory).search(unit(rng, 2, 8), 9)
    assert scores.shape == rows.shape == (2, 9)
    np.testing.assert_array_equal(np.sort(rows[:, :5]), np.tile(np.arange(5), (2, 1)))
    assert (rows[:, 5:] == -1).all()
    assert np.isneginf(scores[:, 5:]).all()


@pytest.mark.parametrize("factory", ["Flat", "SQ8"])
def test_no_queries_give_no_rows(vectors, factory):
    scores, rows = FaissIndex.build(vectors, factory).search(np.empty((0, 16)), 3)
    assert scores.shape == rows.shape == (0, 3)


# Other factories


@pytest.mark.parametrize(
    ("factory", "at_least"),
    [("IVF64,Flat", 0.85), ("HNSW32", 0.9), ("SQ8", 0.95), ("IVF64,SQ8", 0.85), ("IVF16,PQ8x4fs,RFlat", 0.85)],
)
def test_other_factories_have_high_recall_also_when_mapped(rng, tmp_path, factory, at_least):
    vectors = clustered(rng)
    queries = vectors[:100] + 0.3 * unit(rng, 100, 32)
    index = FaissIndex.build(vectors, factory)
    assert recall(index, vectors, queries) >= at_least
    index.save(tmp_path)
    for before, after in zip(index.search(queries, 10), FaissIndex.load(tmp_path).search(queries, 10), strict=True):
        np.testing.assert_array_equal(before, after)


def test_nprobe_is_saved_and_its_default_has_a_better_recall_than_one_list(rng, tmp_path):
    vectors, queries = clustered(rng), clustered(rng, 50)
    index, narrow = FaissIndex.build(vectors, "IVF144,Flat"), build_narrow(vectors, "IVF144,Flat")
    assert recall(narrow, vectors, queries) < 0.7 < recall(index, vectors, queries)
    for built, nprobe in ((index, 12), (narrow, 1)):
        built.save(tmp_path)
        assert json.loads((tmp_path / "manifest.json").read_bytes())["nprobe"] == nprobe
        assert faiss.extract_index_ivf(FaissIndex.load(tmp_path)._index).nprobe == nprobe


def test_missing_hits_of_an_approximate_search_are_at_the_end(rng):
    vectors = clustered(rng, 500)
    scores, rows = build_narrow(vectors, "IVF50,Flat").search(vectors[:20], 100)
    for score, row in zip(scores, rows, strict=True):
        hits = (row >= 0).sum()
        assert 0 < hits < 100
        assert (row[hits:] == -1).all()
        assert np.isneginf(score[hits:]).all()
        assert np.isfinite(score[:hits]).all()
        assert (np.diff(score[:hits]) <= 0).all()


def test_ties_of_an_approximate_search_are_in_order_of_row(rng):
    vectors = np.tile(unit(rng, 4, 8), (5, 1))
    np.testing.assert_array_equal(FaissIndex.build(vectors, "SQfp16").search(vectors[:1], 5)[1], [[0, 4, 8, 12, 16]])


# Save and load


@pytest.mark.parametrize("verify", [False, True])
def test_a_loaded_index_equals_the_saved_one(vectors, tmp_path, verify):
    index = FaissIndex.build(vectors)
    assert index.fingerprint == ""
    index.save(tmp_path / "new" / "folder", provenance={**PROVENANCE, "shape": (1, 2)})
    loaded = FaissIndex.load(tmp_path / "new" / "folder", verify=verify, provenance={"shape": (1, 2), **PROVENANCE})
    assert (len(loaded), loaded.dimension, loaded.factory) == (200, 16, "Flat")
    assert loaded.provenance == index.provenance == {**PROVENANCE, "shape": [1, 2]}
    assert loaded.fingerprint == index.fingerprint
    assert_exact(loaded, vectors, vectors[:9], 200)


def test_replacing_an_index_keeps_other_files(vectors, saved):
    (saved / "notes.txt").write_text("notes")
    mapped = FaissIndex.load(saved)
    FaissIndex.build(-vectors).save(saved)
    assert sorted(path.name for path in saved.iterdir()) == [data_file(saved).name, "manifest.json", "notes.txt"]
    assert_exact(FaissIndex.load(saved, verify=True), -vectors, vectors, 3)
    assert_exact(mapped, vectors, vectors, 3)  # an open old index stays valid
    mapped.save(saved)
    assert_exact(FaissIndex.load(saved, verify=True), vectors, vectors, 3)
    FaissIndex.load(saved).save(saved)  # replaces the file that is mapped
    assert_exact(FaissIndex.load(saved, verify=True), vectors, vectors, 3)


READER = """
import sys
from rqa.retrieval.index import FaissIndex
index = FaissIndex.load(sys.argv[1])
print([line.split()[1] for line in open("/proc/self/maps") if line.rstrip().endswith(".faiss")], flush=True)
sys.stdin.readline()
print(index.search(index._vectors[:20], 3)[1].tolist())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_two_processes_share_one_mapping(vectors, saved):
    def start():
        command = [sys.executable, "-c", READER, str(saved)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    readers = [start(), start()]
    assert [reader.stdout.readline() for reader in readers] == ["['r--s']\n"] * 2  # both alive, both shared mappings
    answers = [json.loads(reader.communicate("go\n", timeout=30)[0]) for reader in readers]
    assert answers == [brute_force(vectors, vectors[:20], 3)[1].tolist()] * 2


def save_and_die(index, folder, event):
    """Save in a child that kills itself before the `event`-th audited step; return True if it did."""
    child = os.fork()
    if child == 0:
        remaining = iter(range(event))

        def kill_at_event(name, _):
            if (
                name in {"open", "os.rename", "os.remove", "os.mkdir", "os.listdir", "os.scandir"}
                and next(remaining, None) is None
            ):
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill_at_event)
        index.save(folder)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_after_a_kill_the_old_or_the_new_index_is_complete(vectors, tmp_path):
    old, new = FaissIndex.build(vectors), FaissIndex.build(-vectors)
    new.save(tmp_path / "reference")
    old.save(tmp_path / "index")
    states, event = [], 0
    while save_and_die(new, tmp_path / "index", event):
        states.append(FaissIndex.load(tmp_path / "index", verify=True).fingerprint)
        old.save(tmp_path / "index")  # also removes the partial files of the killed process
        assert len(list((tmp_path / "index").iterdir())) == 2
        event += 1
    assert states == sorted(states, key=[old.fingerprint, new.fingerprint].index)
    assert states.count(old.fingerprint) >= 6
    assert states.count(new.fingerprint) >= 2


def test_after_a_killed_first_save_there_is_no_index_or_a_complete_one(vectors, tmp_path):
    index, event, outcomes = FaissIndex.build(vectors), 0, []
    while save_and_die(index, tmp_path / str(event), event):
        try:
            FaissIndex.load(tmp_path / str(event), verify=True)
            outcomes.append("complete")
        except FileNotFoundError:
            outcomes.append("none")
        index.save(tmp_path / str(event))
        assert_exact(FaissIndex.load(tmp_path / str(event), verify=True), vectors, vectors[:3], 3)
        event += 1
    assert outcomes == sorted(outcomes, reverse=True)
    assert set(outcomes) == {"none", "complete"}


def test_a_full_disk_keeps_the_old_index(vectors, saved, monkeypatch):
    def write_index(index, write):
        write(b"a part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(faiss, "PyCallbackIOWriter", lambda write: write)
    monkeypatch.setattr(faiss, "write_index", write_index)
    with pytest.raises(OSError, match="No space left"):
        FaissIndex.build(-vectors).save(saved)
    assert len(list(saved.iterdir())) == 2
    assert_exact(FaissIndex.load(saved, verify=True), vectors, vectors, 3)


@pytest.fixture
def gate(monkeypatch):
    """An event that reading any block but the first waits for."""
    gate, plain = threading.Event(), os.pread

    def pread(descriptor, size, start):
        assert start == 0 or gate.wait(10)
        return plain(descriptor, size, start)

    monkeypatch.setattr(verification, "os", SimpleNamespace(pread=pread))
    yield gate
    gate.set()


# Refusals


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((0, 4)), "got 0"),
        (np.zeros((4, 0)), r"shape \(4, 0\)"),
        (np.zeros(4), r"shape \(4,\)"),
        (np.zeros((2, 2, 2)), r"shape \(2, 2, 2\)"),
        ([[0, 0], [1, np.nan], [np.nan, 0]], "row 1 and 1 more of 3"),
        ([[0, 0], [0, 0], [-np.inf, 0]], "row 2 and 0 more"),
        ([[1e19, 0]], "row 0"),
    ],
)
def test_invalid_vectors_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        FaissIndex.build(wrong)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("Bogus", '200 vectors .* "Bogus": .*could not parse'),
        ("IVF1000,Flat", r"200 vectors .*points \(200\) .* clusters \(1000\)"),
        ("PQ4", r"200 vectors .*points \(200\) .* clusters \(256\)"),
        ("PQ5", "dimension 16, .*multiple"),
        ("IDMap,Flat", "add does not make sense"),
    ],
)
def test_an_invalid_factory_is_refused_with_the_reason(vectors, factory, message):
    with pytest.raises(InputError, match=message):
        FaissIndex.build(vectors, factory)


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (np.ones((2, 15)), 3, "16, got 15"),
        (np.ones(16), 3, r"shape \(16,\)"),
        (np.full((2, 16), np.nan), 3, "queries: .* row 0 and 1 more of 2"),
        (np.ones((2, 16)), 0, "k: .* got 0"),
    ],
)
@pytest.mark.parametrize("factory", ["Flat", "SQ8"])
def test_invalid_queries_are_refused(vectors, factory, queries, k, message):
    with pytest.raises(InputError, match=message):
        FaissIndex.build(vectors, factory).search(queries, k)


def test_a_missing_index_is_not_a_damaged_one(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="no index here yet"):
            FaissIndex.load(folder)


def test_every_flipped_byte_is_detected(saved):
    data, manifest = data_file(saved), saved / "manifest.json"
    for path in (data, manifest):
        content = path.read_bytes()
        for position in {0, 4, 12, len(content) // 2, len(content) - 20, len(content) - 3}:
            path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
            with pytest.raises(DamagedIndexError, match=r"Delete the folder"):
                FaissIndex.load(saved, verify=True)
        path.write_bytes(content)
    FaissIndex.load(saved, verify=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data + b"\0", r"expected size 12\d\d\d, got 12\d\d\d"),
        (lambda data: data[:-1], "expected size"),
        (lambda data: data[:0], "got 0"),
        (lambda data: b"?" * len(data), r"got damage between the bytes 0 and 12,\d\d\d"),
    ],
)
def test_a_data_file_of_another_size_or_kind_is_refused_without_verify(saved, change, message):
    data_file(saved).write_bytes(change(data_file(saved).read_bytes()))
    with pytest.raises(DamagedIndexError, match=message):
        FaissIndex.load(saved)


def test_a_file_that_faiss_does_not_read_is_refused(saved):
    content = b"?" * len(data_file(saved).read_bytes())
    data_file(saved).write_bytes(content)
    rewrite(saved, checksums=[zlib.crc32(content)])
    with pytest.raises(DamagedIndexError, match="expected a FAISS index"):
        FaissIndex.load(saved)


def test_checksums_do_not_depend_on_how_a_file_is_written(monkeypatch, rng):
    monkeypatch.setattr(verification, "BLOCK_BYTES", 100)
    content = rng.bytes(1234)
    expected = [zlib.crc32(content[start : start + 100]) for start in range(0, len(content), 100)]
    for size in (1, 99, 100, 101, 5000):
        checksums = verification.Checksums()
        for start in range(0, len(content), size):
            checksums.update(content[start : start + size])
        assert checksums.values == expected


@pytest.fixture
def in_blocks(vectors, tmp_path, monkeypatch):
    """Save an index of blocks of 1,000 bytes."""
    monkeypatch.setattr(verification, "BLOCK_BYTES", 1000)
    FaissIndex.build(vectors).save(tmp_path / "index")
    return tmp_path / "index"


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("position", [1000, 5555, -1])
def test_damage_after_the_first_block_is_found_in_the_background(in_blocks, position):
    flip(data_file(in_blocks), position)
    message = (
        r"index-\w+\.faiss: expected the saved bytes, got damage between the bytes \d+,000 and .*Delete the folder"
    )
    with pytest.raises(DamagedIndexError, match=message):
        FaissIndex.load(in_blocks).verify()


def test_a_search_fails_after_damage_was_found_and_not_before(in_blocks, vectors, gate):
    flip(data_file(in_blocks), -1)
    index = FaissIndex.load(in_blocks)
    index.search(vectors[:1], 3)
    gate.set()
    index._verification.wait()
    with pytest.raises(DamagedIndexError):
        index.search(vectors[:1], 3)


def test_verifying_waits_for_the_last_block_and_shows_progress(in_blocks, gate, progress):
    index = FaissIndex.load(in_blocks)
    with ThreadPoolExecutor() as pool:
        verified = pool.submit(index.verify)
        with pytest.raises(TimeoutError):
            verified.result(0.3)
        gate.set()
        verified.result(10)
    num_blocks = math.ceil(data_file(in_blocks).stat().st_size / 1000)
    assert ("verifying the index", num_blocks, num_blocks) in progress


def test_the_verification_of_a_released_index_ends(in_blocks, gate):
    index = FaissIndex.load(in_blocks)
    verification = index._verification
    del index
    gate.set()
    verification._thread.join(10)
    assert not verification._thread.is_alive()
    assert verification.num_verified <= 2


@pytest.mark.parametrize("factory", ["IVF4,Flat", "HNSW8", "SQ8"])
def test_lists_and_graphs_are_verified_before_faiss_reads_them(in_blocks, vectors, factory):
    """A damaged graph can crash the process."""
    FaissIndex.build(vectors, factory).save(in_blocks)
    flip(data_file(in_blocks), -1)
    with pytest.raises(DamagedIndexError, match="expected the saved bytes"):
        FaissIndex.load(in_blocks)


def test_a_file_that_cannot_be_read_any_more_is_damaged(in_blocks, gate):
    index = FaissIndex.load(in_blocks)
    os.truncate(data_file(in_blocks), 2500)
    gate.set()
    with pytest.raises(DamagedIndexError, match="got damage between the bytes 2,000 and 2,500"):
        index.verify()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("error", "reason"),
    [(OSError(errno.EIO, "Input/output error"), "Input/output error"), (MemoryError(), "could not be verified")],
)
def test_an_index_that_cannot_be_verified_is_refused(in_blocks, monkeypatch, error, reason):
    """The thread of the verification ends, and no block after the first was read."""

    def pread(descriptor, size, start):
        if start:
            raise error
        return os.pread(descriptor, size, start)

    monkeypatch.setattr(verification, "os", SimpleNamespace(pread=pread))
    with pytest.raises(DamagedIndexError, match=reason):
        FaissIndex.load(in_blocks).verify()


def test_a_manifest_without_its_data_file_is_refused(saved):
    data_file(saved).unlink()
    with pytest.raises(DamagedIndexError, match="got no file"):
        FaissIndex.load(saved)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "null", '"rqa_index"', '{"name": "an app"}', "[" * 100_000, "\xff"]
)
def test_a_foreign_manifest_is_neither_read_nor_replaced(vectors, saved, text):
    (saved / "manifest.json").write_text(text, encoding="latin-1")
    for attempt in (FaissIndex.load, FaissIndex.build(vectors).save):
        with pytest.raises(DamagedIndexError, match="expected the manifest of an index"):
            attempt(saved)
    assert (saved / "manifest.json").read_text(encoding="latin-1") == text


def test_a_manifest_of_something_else_is_neither_read_nor_replaced(vectors, tmp_path):
    """Checkpoints have a manifest with a format and a checksum too."""
    write_manifest(tmp_path / "manifest.json", {"format": FORMAT, "files": {}})
    for attempt in (FaissIndex.load, FaissIndex.build(vectors).save):
        with pytest.raises(DamagedIndexError, match="expected the manifest of an index"):
            attempt(tmp_path)
    assert read_manifest(tmp_path / "manifest.json") == {"format": FORMAT, "files": {}}


def rewrite(folder, *removed, **changes):
    manifest = read_manifest(folder / "manifest.json") | changes
    write_manifest(folder / "manifest.json", {name: manifest[name] for name in manifest if name not in removed})


@pytest.mark.parametrize(
    ("removed", "changes", "message"),
    [
        ((), {"format": FORMAT + 1}, rf"expected index format {FORMAT}, got {FORMAT + 1}\. Update rqa, or: Delete"),
        ((), {"format": FORMAT - 1}, rf"expected index format {FORMAT}, got {FORMAT - 1}\. Delete"),
        (("format",), {"rqa_index": 1}, f"expected index format {FORMAT}, got 1"),
        (("format",), {}, f"expected index format {FORMAT}, got None"),
        ((), {"rows": 199}, r"expected rows and dimension \(199, 16\), got \(200, 16\)"),
        ((), {"dimension": 8}, r"expected rows and dimension \(200, 8\), got \(200, 16\)"),
    ],
)
def test_a_manifest_of_another_index_is_refused(saved, removed, changes, message):
    rewrite(saved)
    FaissIndex.load(saved, verify=True)
    rewrite(saved, *removed, **changes)
    with pytest.raises(DamagedIndexError, match=message):
        FaissIndex.load(saved)


def test_a_foreign_folder_is_neither_read_nor_written(vectors, tmp_path):
    (tmp_path / "index.faiss").write_bytes(b"LangChain's")
    (tmp_path / "index.pkl").write_bytes(b"too")
    for attempt in (FaissIndex.load, FaissIndex.build(vectors).save):
        with pytest.raises(DamagedIndexError, match=r"got \['index.faiss', 'index.pkl'\]"):
            attempt(tmp_path)
        with pytest.raises(DamagedIndexError, match=r"index.pkl: expected files"):
            attempt(tmp_path / "index.pkl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.faiss", "index.pkl"]


def test_a_stale_index_is_refused_with_each_difference(saved):
    now = {"corpus": "77b1", "model": PROVENANCE["model"], "rows": 200, "pooling": "nothing"}
    with pytest.raises(StaleIndexError) as refusal:
        FaissIndex.load(saved, provenance=now)
    _, *differences, remedy = str(refusal.value).splitlines()
    assert differences == [
        '  corpus: expected "77b1", got "3f2a"',
        '  pooling: expected "nothing", got none',
    ]
    assert remedy.startswith("recipes/build_index.py --rebuild true replaces it")
    with pytest.raises(StaleIndexError, match="rows: expected true, got 200"):
        FaissIndex.load(saved, provenance={**PROVENANCE, "rows": True})


def test_provenance_that_is_not_json_is_refused_before_it_replaces_anything(vectors, saved):
    with pytest.raises(ValueError, match="JSON"):
        FaissIndex.build(-vectors).save(saved, provenance={"score": float("nan")})
    assert_exact(FaissIndex.load(saved, verify=True), vectors, vectors[:3], 3)


def test_importing_the_module_imports_only_numpy_of_other_packages():
    check = """
import sys
import numpy
before = {name.partition(".")[0] for name in sys.modules}
import rqa.retrieval.index
print(sorted({name.partition(".")[0] for name in sys.modules} - before - sys.stdlib_module_names))
print(sorted(name for name in sys.modules if name.startswith("rqa.") and name.count(".") == 1))
"""
    printed = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == ["['lazy_loader', 'rqa']", "['rqa.atomic_files', 'rqa.errors', 'rqa.retrieval']"]


# Blocks and recall


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "IVF16,SQ8", "IVF16,PQ8x4fs,RFlat"])
def test_an_index_built_in_blocks_equals_one_built_at_once(rng, tmp_path, monkeypatch, factory):
    vectors = clustered(rng)
    FaissIndex.build(vectors, factory).save(tmp_path / "once")
    monkeypatch.setattr("rqa.retrieval.index.BLOCK_ROWS", 333)
    FaissIndex.build(vectors, factory).save(tmp_path / "blocks")
    once, blocks = (data_file(tmp_path / name).read_bytes() for name in ("once", "blocks"))
    assert once == blocks


def test_a_bad_number_in_a_later_block_is_named_by_its_row(rng, monkeypatch):
    monkeypatch.setattr("rqa.retrieval.index.BLOCK_ROWS", 10)
    vectors = unit(rng, 35, 4)
    vectors[27] = np.nan
    with pytest.raises(InputError, match="row 27 and 0 more"):
        FaissIndex.build(vectors)


def test_a_sample_trains_the_index_of_many_rows(rng, monkeypatch):
    vectors, trained = clustered(rng), []
    monkeypatch.setattr("rqa.retrieval.index.TRAINING_ROWS", 1000)
    plain = faiss.IndexIVFFlat.train
    monkeypatch.setattr(faiss.IndexIVFFlat, "train", lambda self, rows: trained.append(rows) or plain(self, rows))
    index = FaissIndex.build(vectors, "IVF16,Flat")
    assert [rows.shape for rows in trained] == [(1000, 32)]
    assert len({row.tobytes() for row in trained[0]} & {row.tobytes() for row in vectors}) == 1000
    assert len(index) == len(vectors)


@pytest.mark.parametrize(("factory", "flag"), [("IVF144,Flat", "nprobe"), ("HNSW8", "ef_search")])
def test_recall_is_measured_and_raised(rng, tmp_path, monkeypatch, caplog, factory, flag):
    vectors, queries = clustered(rng), clustered(rng, 200)
    index = FaissIndex.build(vectors, factory)
    index.set_effort(flag, 1)
    assert recall(index, vectors, queries) < 0.7
    monkeypatch.setattr("rqa.retrieval.index.RECALL_BLOCK_ROWS", 999)
    index.raise_recall(vectors, queries)
    assert index.recall == pytest.approx(recall(index, vectors, queries))
    assert index.recall >= 0.95
    value = index.effort[1]
    assert value & (value - 1) == 0 or value == 144
    index.set_effort(flag, value // 2)
    assert recall(index, vectors, queries) < 0.95
    index.set_effort(flag, value)
    index.save(tmp_path)
    loaded = FaissIndex.load(tmp_path)
    assert (loaded.recall, loaded.effort) == (index.recall, index.effort)
    assert str(loaded) == f"{factory}, {flag} {value}, recall@10 {index.recall:.3f}"
    assert not caplog.messages


def test_a_low_recall_is_a_warning(rng, caplog):
    vectors = clustered(rng)
    index = FaissIndex.build(vectors, "IVF4,PQ4x4")
    index.raise_recall(vectors, vectors[:50])
    assert index.recall < 0.95
    assert index.effort == ("nprobe", 4, 4)
    [message] = caplog.messages
    assert f"recall@10 {index.recall:.3f}, below 0.95" in message


def test_an_exact_index_has_no_recall(vectors):
    index = FaissIndex.build(vectors)
    index.raise_recall(vectors, vectors)
    assert (index.recall, index.effort, str(index)) == (None, None, "Flat, exact")


@pytest.mark.parametrize(
    ("rows", "factory"),
    [(1, "Flat"), (200_000, "Flat"), (200_001, "IVF2048,SQ8"), (10**6, "IVF4096,SQ8"), (21 * 10**6, "IVF16384,SQ8")],
)
def test_auto_chooses_the_factory_by_size(rows, factory):
    assert choose_factory(rows) == factory
