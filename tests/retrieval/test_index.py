"""index: FAISS and NumPy agree, and a folder holds a whole index of ours or is refused."""

import json
import os
import signal
import subprocess
import sys

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqa.errors import InputError
from rqa.retrieval.index import FORMAT, DamagedIndexError, FaissIndex, StaleIndexError, _checksum

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
    found, best = index.search(queries, k)[1], brute_force(vectors, queries, k)[1]
    return np.mean([len(set(a) & set(b)) / k for a, b in zip(found, best, strict=True)])


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


def data_file(folder):
    (path,) = folder.glob("index-*.faiss")
    return path


# Flat equals NumPy


@given(st.data(), st.integers(1, 80), st.integers(1, 4), st.integers(1, 5), st.integers(1, 30))
@settings(max_examples=150, deadline=None)
def test_flat_equals_brute_force_on_small_integers_which_tie_all_the_time(data, n, dimension, queries, k):
    def matrix(rows):
        numbers = st.lists(st.integers(-2, 2), min_size=rows * dimension, max_size=rows * dimension)
        return np.array(data.draw(numbers), np.float32).reshape(rows, dimension)

    vectors, asked = matrix(n), matrix(queries)
    assert_exact(FaissIndex.build(vectors), vectors, asked, min(k, n))


@pytest.mark.parametrize("duplicates", [15, 16, 17, 500])
@pytest.mark.parametrize("k", [1, 10, 200])
def test_duplicates_beyond_the_margin_come_in_order_of_row(rng, duplicates, k):
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
def test_vectors_of_any_length_are_ranked_exactly(rng, scale):
    vectors = unit(rng, 300, 8) * np.float32(scale)
    assert_exact(FaissIndex.build(vectors), vectors, unit(rng, 3, 8) * np.float32(scale), 5)


def test_a_very_long_row_among_short_ones_hides_nothing(rng):
    vectors = unit(rng, 300, 64)
    vectors[7] *= 1e7
    assert_exact(FaissIndex.build(vectors), vectors, unit(rng, 20, 64), 5)


def test_the_answer_to_a_query_does_not_depend_on_its_batch(rng):
    vectors, queries = clustered(rng, 2000, 64), clustered(rng, 300, 64)
    index = FaissIndex.build(vectors)
    scores, rows = index.search(queries, 5)  # by matrix product; one by one row by row
    singles = [index.search(query[None], 5) for query in queries]
    np.testing.assert_array_equal(np.concatenate([single[0] for single in singles]), scores)
    np.testing.assert_array_equal(np.concatenate([single[1] for single in singles]), rows)


def test_the_flat_vectors_are_viewed_not_copied(saved):
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
def test_other_factories_find_most_neighbours_also_when_mapped(rng, tmp_path, factory, at_least):
    vectors = clustered(rng)
    queries = vectors[:100] + 0.3 * unit(rng, 100, 32)
    index = FaissIndex.build(vectors, factory)
    assert recall(index, vectors, queries) >= at_least
    index.save(tmp_path)
    for before, after in zip(index.search(queries, 10), FaissIndex.load(tmp_path).search(queries, 10), strict=True):
        np.testing.assert_array_equal(before, after)


def test_nprobe_is_kept_and_by_default_finds_what_one_list_misses(rng, tmp_path):
    vectors, queries = clustered(rng), clustered(rng, 50)
    index = FaissIndex.build(vectors, "IVF144,Flat")
    narrow = FaissIndex.build(vectors, "IVF144,Flat", nprobe=1)
    assert recall(narrow, vectors, queries) < 0.7 < recall(index, vectors, queries)
    for built, nprobe in ((index, 12), (narrow, 1)):
        built.save(tmp_path)
        assert json.loads((tmp_path / "manifest.json").read_bytes())["nprobe"] == nprobe
        assert faiss.extract_index_ivf(FaissIndex.load(tmp_path)._index).nprobe == nprobe


def test_hits_that_an_approximate_search_lacks_stand_at_the_end(rng):
    vectors = clustered(rng, 500)
    scores, rows = FaissIndex.build(vectors, "IVF50,Flat", nprobe=1).search(vectors[:20], 100)
    for score, row in zip(scores, rows, strict=True):
        hits = (row >= 0).sum()
        assert 0 < hits < 100
        assert (row[hits:] == -1).all()
        assert np.isneginf(score[hits:]).all()
        assert np.isfinite(score[:hits]).all()
        assert (np.diff(score[:hits]) <= 0).all()


def test_ties_of_an_approximate_search_come_in_order_of_row(rng):
    vectors = np.tile(unit(rng, 4, 8), (5, 1))
    np.testing.assert_array_equal(FaissIndex.build(vectors, "SQfp16").search(vectors[:1], 5)[1], [[0, 4, 8, 12, 16]])


# Save and load


@pytest.mark.parametrize("verify", [False, True])
def test_a_loaded_index_is_the_saved_one(vectors, tmp_path, verify):
    index = FaissIndex.build(vectors)
    assert index.fingerprint == ""
    index.save(tmp_path / "new" / "folder", provenance={**PROVENANCE, "shape": (1, 2)})
    loaded = FaissIndex.load(tmp_path / "new" / "folder", verify=verify, provenance={"shape": (1, 2), **PROVENANCE})
    assert (len(loaded), loaded.dimension, loaded.factory) == (200, 16, "Flat")
    assert loaded.provenance == index.provenance == {**PROVENANCE, "shape": [1, 2]}
    assert loaded.fingerprint == index.fingerprint
    assert_exact(loaded, vectors, vectors[:9], 200)


def test_replacing_an_index_leaves_one_index_and_the_files_of_others(vectors, saved):
    (saved / "notes.txt").write_text("mine")
    mapped = FaissIndex.load(saved)
    FaissIndex.build(-vectors).save(saved)
    assert sorted(path.name for path in saved.iterdir()) == [data_file(saved).name, "manifest.json", "notes.txt"]
    assert_exact(FaissIndex.load(saved, verify=True), -vectors, vectors, 3)
    assert_exact(mapped, vectors, vectors, 3)  # who has the old one open keeps it
    mapped.save(saved)
    assert_exact(FaissIndex.load(saved, verify=True), vectors, vectors, 3)
    FaissIndex.load(saved).save(saved)  # onto the very file that is mapped
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
    """Save in a child that kills itself before the `event`-th step that Python audits; tell if it did."""
    child = os.fork()
    if child == 0:
        seen = iter(range(event))

        def kill_at_event(name, _):
            if (
                name in {"open", "os.rename", "os.remove", "os.mkdir", "os.listdir", "os.scandir"}
                and next(seen, None) is None
            ):
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill_at_event)
        index.save(folder)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_killed_at_any_moment_the_old_or_the_new_index_is_whole(vectors, tmp_path):
    old, new = FaissIndex.build(vectors), FaissIndex.build(-vectors)
    new.save(tmp_path / "reference")
    old.save(tmp_path / "index")
    states, event = [], 0
    while save_and_die(new, tmp_path / "index", event):
        states.append(FaissIndex.load(tmp_path / "index", verify=True).fingerprint)
        old.save(tmp_path / "index")  # also clears what the killed one left
        assert len(list((tmp_path / "index").iterdir())) == 2
        event += 1
    assert states == sorted(states, key=[old.fingerprint, new.fingerprint].index)
    assert states.count(old.fingerprint) >= 6
    assert states.count(new.fingerprint) >= 2


def test_a_first_save_that_is_killed_leaves_none_or_a_whole_index_and_can_be_repeated(vectors, tmp_path):
    index, event, outcomes = FaissIndex.build(vectors), 0, []
    while save_and_die(index, tmp_path / str(event), event):
        try:
            FaissIndex.load(tmp_path / str(event), verify=True)
            outcomes.append("whole")
        except FileNotFoundError:
            outcomes.append("none")
        index.save(tmp_path / str(event))
        assert_exact(FaissIndex.load(tmp_path / str(event), verify=True), vectors, vectors[:3], 3)
        event += 1
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {"none", "whole"}


# Refusals


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((0, 4)), "found 0 rows"),
        (np.zeros((4, 0)), r"shape \(4, 0\)"),
        (np.zeros(4), r"shape \(4,\)"),
        (np.zeros((2, 2, 2)), r"shape \(2, 2, 2\)"),
        ([[0, 0], [1, np.nan], [np.nan, 0]], "row 1, and 1 more of 3"),
        ([[0, 0], [0, 0], [-np.inf, 0]], "row 2, and 0 more"),
        ([[1e19, 0]], "row 0"),
    ],
)
def test_vectors_that_cannot_be_searched_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        FaissIndex.build(wrong)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("Bogus", '"Bogus" .* could not parse'),
        ("IVF1000,Flat", r"200 vectors .*points \(200\) .* clusters \(1000\)"),
        ("PQ4", r"200 vectors .*points \(200\) .* clusters \(256\)"),
        ("PQ5", "dimension 16: .*multiple"),
        ("IDMap,Flat", "add does not make sense"),
    ],
)
def test_a_factory_that_cannot_be_built_is_refused_with_the_reason(vectors, factory, message):
    with pytest.raises(InputError, match=message):
        FaissIndex.build(vectors, factory)


@pytest.mark.parametrize(("factory", "nprobe"), [("Flat", 2), ("HNSW8", 2), ("IVF4,Flat", 0), ("IVF4,Flat", 5)])
def test_an_nprobe_that_means_nothing_is_refused(vectors, factory, nprobe):
    with pytest.raises(InputError, match=f"nprobe: found {nprobe}"):
        FaissIndex.build(vectors, factory, nprobe=nprobe)


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (np.ones((2, 15)), 3, "found dimension 15, expected the index's 16"),
        (np.ones(16), 3, r"shape \(16,\)"),
        (np.full((2, 16), np.nan), 3, "queries: row 0, and 1 more of 2"),
        (np.ones((2, 16)), 0, "k: found 0"),
    ],
)
@pytest.mark.parametrize("factory", ["Flat", "SQ8"])
def test_queries_that_cannot_be_answered_are_refused(vectors, factory, queries, k, message):
    with pytest.raises(InputError, match=message):
        FaissIndex.build(vectors, factory).search(queries, k)


def test_an_absent_index_is_no_damaged_one(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="no index here yet"):
            FaissIndex.load(folder)


def test_every_flipped_byte_is_found(saved):
    data, manifest = data_file(saved), saved / "manifest.json"
    for path in (data, manifest):
        whole = path.read_bytes()
        for position in {0, 4, 12, len(whole) // 2, len(whole) - 20, len(whole) - 3}:
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
            with pytest.raises(DamagedIndexError, match=r"Delete the folder"):
                FaissIndex.load(saved, verify=True)
        path.write_bytes(whole)
    FaissIndex.load(saved, verify=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda whole: whole + b"\0", r"found size 12\d\d\d, expected 12\d\d\d"),
        (lambda whole: whole[:-1], "found size"),
        (lambda whole: whole[:0], "found size 0"),
        (lambda whole: b"?" * len(whole), "FAISS cannot read it"),
    ],
)
def test_a_data_file_of_another_size_or_kind_is_refused_without_verify(saved, change, message):
    data_file(saved).write_bytes(change(data_file(saved).read_bytes()))
    with pytest.raises(DamagedIndexError, match=message):
        FaissIndex.load(saved)


def test_a_manifest_without_its_data_file_is_refused(saved):
    data_file(saved).unlink()
    with pytest.raises(DamagedIndexError, match="found size no file"):
        FaissIndex.load(saved)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "null", '"rqa_index"', '{"name": "an app"}', "[" * 100_000, "\xff"]
)
def test_a_manifest_that_is_not_ours_is_neither_read_nor_replaced(vectors, saved, text):
    (saved / "manifest.json").write_text(text, encoding="latin-1")
    for attempt in (FaissIndex.load, FaissIndex.build(vectors).save):
        with pytest.raises(DamagedIndexError, match="expected the manifest of an index"):
            attempt(saved)
    assert (saved / "manifest.json").read_text(encoding="latin-1") == text


def rewrite(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_bytes()) | changes
    manifest.pop("checksum")
    (folder / "manifest.json").write_text(json.dumps(manifest | {"checksum": _checksum(manifest)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rqa_index": FORMAT + 1}, f"found index format {FORMAT + 1}, this rqa reads {FORMAT}. Update rqa"),
        ({"rows": 199}, r"found rows and dimension \(200, 16\), expected \(199, 16\)"),
        ({"dimension": 8}, r"found rows and dimension \(200, 16\), expected \(200, 8\)"),
    ],
)
def test_a_manifest_that_speaks_of_another_index_is_refused(saved, changes, message):
    rewrite(saved)
    FaissIndex.load(saved, verify=True)
    rewrite(saved, **changes)
    with pytest.raises(DamagedIndexError, match=message):
        FaissIndex.load(saved)


def test_a_foreign_folder_is_neither_read_nor_written(vectors, tmp_path):
    (tmp_path / "index.faiss").write_bytes(b"LangChain's")
    (tmp_path / "index.pkl").write_bytes(b"too")
    for attempt in (FaissIndex.load, FaissIndex.build(vectors).save):
        with pytest.raises(DamagedIndexError, match=r"found files \['index.faiss', 'index.pkl'\]"):
            attempt(tmp_path)
        with pytest.raises(DamagedIndexError, match=r"index.pkl: found files"):
            attempt(tmp_path / "index.pkl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.faiss", "index.pkl"]


def test_a_stale_index_is_refused_with_each_difference(saved):
    now = {"corpus": "77b1", "model": PROVENANCE["model"], "rows": 200, "pooling": "nothing"}
    with pytest.raises(StaleIndexError) as refusal:
        FaissIndex.load(saved, provenance=now)
    _, *differences, remedy = str(refusal.value).splitlines()
    assert differences == [
        '  corpus: the index has "3f2a", now given is "77b1"',
        '  pooling: the index has nothing, now given is "nothing"',
    ]
    assert remedy == "Delete the folder to have the index built anew, or choose another path."
    with pytest.raises(StaleIndexError, match="rows: the index has 200, now given is true"):
        FaissIndex.load(saved, provenance={**PROVENANCE, "rows": True})


def test_provenance_that_is_not_json_is_refused_before_it_replaces_anything(vectors, saved):
    with pytest.raises(ValueError, match="JSON"):
        FaissIndex.build(-vectors).save(saved, provenance={"score": float("nan")})
    assert_exact(FaissIndex.load(saved, verify=True), vectors, vectors[:3], 3)


def test_importing_the_module_imports_neither_torch_nor_faiss():
    check = "import sys, rqa.retrieval.index; print(sorted({'torch', 'faiss', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout == "[]\n"
