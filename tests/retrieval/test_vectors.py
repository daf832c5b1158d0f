"""vectors: a passage is embedded once, also after a kill, and the index of shards equals that of one matrix."""

import logging
from functools import partial

import numpy as np
import pytest
import torch
from world import PLACES, passage, write_jsonl

from rqa.data.corpus import open_passages
from rqa.errors import InputError
from rqa.retrieval import dense, vectors
from rqa.retrieval.dense import open_dense_retriever
from rqa.retrieval.encoder import Encoder
from rqa.retrieval.index import StaleIndexError
from rqa.retrieval.vectors import VectorShards, block_size, keys_of

CPU = torch.device("cpu")
ROWS = [passage(place, number) for number, place in enumerate(PLACES * 2)]
open_on_cpu = partial(open_dense_retriever, device=CPU)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Blocks of three passages, computed in float32."""
    monkeypatch.setattr(vectors, "MIN_BLOCK", 3)
    monkeypatch.setattr(vectors, "BLOCKS", len(ROWS))
    monkeypatch.setattr("rqa.retrieval.encoder.bf16_is_fast", lambda device: False)


@pytest.fixture
def corpus_of(tmp_path):
    return lambda rows: open_passages(write_jsonl(tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl", rows))


@pytest.fixture
def blocks(monkeypatch):
    """The texts of all blocks that are embedded."""
    embedded, plain = [], Encoder.encode_blocks

    def encode_blocks(self, blocks, total):
        return plain(self, (embedded.append([each.text for each in block]) or block for block in blocks), total)

    monkeypatch.setattr(Encoder, "encode_blocks", encode_blocks)
    return embedded


def keys(numbers):
    return np.array([f"key {number}".encode() for number in numbers], "S16")


def stored(folder, parts, matrix, *, half=False):
    """Return shards with these parts of the rows of a matrix."""
    shards = VectorShards(folder, {"encoder": "e"})
    for part in parts:
        shards.save(keys(part), matrix[part], half=half)
    return shards


def test_rows_of_shards_equal_those_of_the_matrix(tmp_path):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((50, 8)).astype(np.float32)
    order = rng.permutation(50)
    opened = stored(tmp_path, np.array_split(order, 7), matrix).open(keys(range(50)))
    assert opened.shape == (50, 8)
    assert not len(opened.missing)
    for rows in (slice(None), slice(10, 20), np.array([3, 3, 49, 0]), order):
        np.testing.assert_array_equal(opened[rows], matrix[rows])


def test_rows_that_no_shard_has_are_missing(tmp_path):
    """Shards may hold passages that the corpus lacks."""
    shards = stored(tmp_path, [range(5, 10), range(20, 30)], np.ones((30, 2), np.float32))
    assert shards.open(keys(range(8, 23))).missing.tolist() == list(range(2, 12))
    assert VectorShards(tmp_path, {"encoder": "other"}).open(keys(range(3))).missing.tolist() == [0, 1, 2]


def test_half_precision_rounds_less_than_bfloat16_and_never_overflows(tmp_path):
    matrix = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    half = stored(tmp_path / "half", [range(50)], matrix, half=True).open(keys(range(50)))[:]
    rounded = torch.from_numpy(matrix).bfloat16().float().numpy()
    assert 0 < np.abs(half - matrix).max() < np.abs(rounded - matrix).max() / 4
    large = stored(tmp_path / "large", [range(50)], matrix * 1e6, half=True).open(keys(range(50)))[:]
    np.testing.assert_array_equal(large, matrix * np.float32(1e6))


def test_a_damaged_shard_is_deleted_and_its_passages_are_missing(tmp_path, caplog):
    shards = stored(tmp_path, [range(5), range(5, 9)], np.arange(18, dtype=np.float32).reshape(9, 2))
    path = sorted(shards.folder.iterdir())[0]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    missing = shards.open(keys(range(9))).missing.tolist()
    assert missing in ([*range(5)], [*range(5, 9)])
    assert [str(path) in message for message in caplog.messages] == [True]
    assert not path.exists()


def test_a_block_depends_on_the_size_of_the_corpus_alone(monkeypatch):
    monkeypatch.undo()
    assert [*map(block_size, (1, 5_000, 64_000, 1_000_000, 21_000_000))] == [500, 500, 1000, 15_625, 50_000]


@pytest.mark.parametrize("saved", [0, 1, 3])
def test_after_a_kill_the_missing_blocks_alone_are_embedded(path, corpus_of, tmp_path, monkeypatch, blocks, saved):
    corpus = corpus_of(ROWS)
    whole = open_on_cpu(corpus, path, tmp_path / "whole").index.fingerprint
    expected, remaining = [*blocks], iter(range(saved))
    blocks.clear()
    with monkeypatch.context() as patch:
        plain = VectorShards.save

        def save(self, *args, **options):
            if next(remaining, None) is None:
                raise KeyboardInterrupt
            plain(self, *args, **options)

        patch.setattr(VectorShards, "save", save)
        with pytest.raises(KeyboardInterrupt):
            open_on_cpu(corpus, path, tmp_path / "index")
    blocks.clear()
    assert open_on_cpu(corpus, path, tmp_path / "index").index.fingerprint == whole
    assert blocks == expected[saved:]


@pytest.mark.parametrize("phase", ["FaissIndex.build", "FaissIndex.save", "VectorShards.open"])
def test_after_a_kill_in_a_later_phase_nothing_is_embedded_again(path, corpus_of, tmp_path, monkeypatch, blocks, phase):
    corpus = corpus_of(ROWS)
    whole = open_on_cpu(corpus, path, tmp_path / "whole").index.fingerprint
    calls, name = iter(range(1)), phase.split(".")[1]
    owner = getattr(dense, phase.split(".")[0])
    with monkeypatch.context() as patch:
        plain = getattr(owner, name)

        def die(*args, **options):
            if name == "open" and next(calls, None) is not None:
                return plain(*args, **options)
            raise KeyboardInterrupt

        patch.setattr(owner, name, die)
        with pytest.raises(KeyboardInterrupt):
            open_on_cpu(corpus, path, tmp_path / "index")
    blocks.clear()
    assert open_on_cpu(corpus, path, tmp_path / "index").index.fingerprint == whole
    assert not blocks


def test_new_passages_cost_themselves_alone(path, corpus_of, tmp_path, blocks, caplog):
    caplog.set_level(logging.INFO)
    open_on_cpu(corpus_of(ROWS[2:]), path, tmp_path / "index")
    blocks.clear()
    more = corpus_of([*ROWS[:1], *ROWS[2:-1], ROWS[-1] | {"metadata": {"title": "Another"}}])
    with pytest.raises(StaleIndexError, match="--rebuild true"):
        open_on_cpu(more, path, tmp_path / "index")
    assert not blocks
    retriever = open_on_cpu(more, path, tmp_path / "index", rebuild=True)
    assert blocks == [[ROWS[0]["page_content"], ROWS[-1]["page_content"]]]
    assert f"{len(ROWS) - 3} passages were embedded before" in caplog.messages
    expected = Encoder(path, device=CPU).encode_passages(more)
    np.testing.assert_allclose(retriever.index._vectors, expected, rtol=1e-5, atol=1e-6)
    blocks.clear()
    assert open_on_cpu(more, path, tmp_path / "index", rebuild=True).fingerprint() == retriever.fingerprint()
    assert not blocks


def test_the_key_of_a_passage_is_its_title_and_text(corpus_of):
    rows = [ROWS[0], ROWS[1], ROWS[1] | {"page_content": "Other."}]
    corpora = [corpus_of(rows), corpus_of([rows[0], *({**row, "metadata": {"title": "T"}} for row in rows[1:])])]
    first, second = map(keys_of, corpora)
    assert (first == second).tolist() == [True, False, False]
    assert len({*first.tolist()}) == 3


# Search effort


def test_the_search_effort_is_part_of_the_fingerprint_and_needs_its_index(path, corpus_of, tmp_path):
    corpus = corpus_of(ROWS)
    options = {"index_factory": "IVF4,Flat"}
    plain, one = (open_on_cpu(corpus, path, tmp_path / "i", nprobe=nprobe, **options) for nprobe in (None, 1))
    assert plain.fingerprint() != one.fingerprint()
    assert plain.index.fingerprint == one.index.fingerprint
    assert plain.retrieve(["Oslo"], len(ROWS)) != one.retrieve(["Oslo"], len(ROWS))
    with pytest.raises(InputError, match="--ef_search: expected an HNSW index, got IVF4,Flat"):
        open_on_cpu(corpus, path, tmp_path / "i", ef_search=16, **options)
    assert open_on_cpu(corpus, path, tmp_path / "g", ef_search=99, index_factory="HNSW8").index.effort[1] == 99


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "HNSW8"])
def test_auto_opens_an_index_of_any_factory(path, corpus_of, tmp_path, factory):
    corpus = corpus_of(ROWS)
    built = open_on_cpu(corpus, path, tmp_path / "index", index_factory=factory)
    assert open_on_cpu(corpus, path, tmp_path / "index").fingerprint() == built.fingerprint()
    assert (built.index.recall is None) == (factory == "Flat")


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize(("device", "cpu_scale"), [("cpu", 1), ("cpu", 4), ("meta", 1)])
def test_batches_hold_each_text_once_and_short_texts_share_them(path, batch_size, device, cpu_scale):
    encoder = Encoder(path, device=torch.device(device), batch_size=batch_size)
    texts = ["word " * (number % 37 * number % 41) for number in range(300)]
    batches = [*encoder._batches(texts, 128, cpu_scale)]
    assert sorted(i for batch in batches for i in batch) == [*range(300)]
    lengths = [len(texts[i]) for batch in batches for i in batch]
    assert lengths == sorted(lengths, reverse=True)
    sizes = [len(batch) for batch in batches[:-1]]
    assert max(sizes) <= cpu_scale * batch_size if device == "cpu" else min(sizes) >= batch_size
    assert device == "cpu" or all(len(batch) * len(texts[batch[0]]) <= batch_size * 128 * 5 for batch in batches)
