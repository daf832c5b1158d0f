"""rqa.retrieval: each split gets its own passages, on every process the same, and nothing is retrieved twice."""

import logging
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import Accelerator
from world import World, files, hand_over, results_of

from rqa.data import Passage, load_examples, open_passages
from rqa.retrieval import retrieve_all, retrieve_splits
from rqa.retriever import Encoder, open_retriever

K = 4
PREFIX = {"query_prefix": "q: "}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("world"))


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "rqa")
    return caplog


@pytest.fixture
def embedded(monkeypatch):
    """The queries that were embedded, call by call; the warm-ups left out."""
    calls, plain = [], Encoder.encode_queries
    monkeypatch.setattr(
        Encoder, "encode_queries", lambda self, queries: calls.append(len(queries)) or plain(self, queries)
    )
    return calls


def splits_of(world):
    return [load_examples(path) if path else [] for path in (world.train, "", world.test)]


def retrieve(world, index, splits=None, k=K, **options):
    splits = splits_of(world) if splits is None else splits
    passages, accelerator = open_passages(world.corpus), Accelerator(cpu=True)
    options = {"history_turns": 0, **PREFIX, **options}
    return retrieve_splits(accelerator, passages, world.encoder, str(index), splits, k, **options)


def test_each_split_gets_its_own_passages(world, log, tmp_path):
    splits = splits_of(world)
    missing = replace(splits[2][1], gold_passages=(*splits[2][1].gold_passages, Passage("Nowhere.")))
    splits[2][1:3] = [missing, replace(splits[2][2], gold_passages=(Passage("Nowhere else."),))]
    found = retrieve(world, tmp_path / "index", splits)
    passages, device = open_passages(world.corpus), Accelerator(cpu=True).device
    retriever = open_retriever(passages, world.encoder, tmp_path / "index", device=device, **PREFIX)
    expected = [retrieve_all(retriever, split, K, history_turns=0) for split in splits]
    assert [each.found for each in found] == [each.found for each in expected]
    assert {each.fingerprint for each in found} == {retriever.fingerprint()}
    assert [len(each.found) for each in found] == [13, 0, 7]
    assert f"2 examples have gold passages that the corpus lacks, first {world.test}:2" in log.messages


def test_what_was_retrieved_is_not_retrieved_again(world, tmp_path, embedded, monkeypatch):
    first = retrieve(world, tmp_path / "index")
    assert embedded == [1, 13, 1, 7]
    monkeypatch.setattr(Encoder, "model", property(lambda self: pytest.fail("the encoder is loaded")))
    assert retrieve(world, tmp_path / "index") == first  # with the seconds that it took


@pytest.mark.parametrize("change", ["k", "history", "question", "prefix", "order", "corpus"])
def test_what_anything_else_would_find_is_retrieved(world, tmp_path, embedded, change):
    retrieve(world, tmp_path / "index")
    del embedded[:]
    splits, options, index = splits_of(world), {}, tmp_path / "index"
    again = {"history": [1, 13, 1, 7], "k": [1, 13, 1, 7], "prefix": [1, 13, 1, 7], "corpus": [1, 13, 1, 7]}
    if change == "k":
        options["k"] = K + 1
    elif change == "history":
        options["history_turns"] = 1
    elif change == "prefix":
        options["query_prefix"] = "ask: "
    elif change == "corpus":
        index = tmp_path / "another"
    elif change == "question":
        splits[2][0] = replace(splits[2][0], question="Where?")
    else:
        splits[2].reverse()
    found = retrieve(world, index, splits, **options)
    assert embedded == again.get(change, [1, 7])
    uncached = retrieve(world, index, splits, **options, cached=False)
    assert [each.found for each in found] == [each.found for each in uncached]


HARM = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "something else": lambda path: path.write_text("something else"),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_a_damaged_file_is_named_and_made_again(world, tmp_path, log, embedded, harm):
    first = retrieve(world, tmp_path / "index")
    for path in (tmp_path / "index/retrieved").iterdir():
        harm(path)
    again = retrieve(world, tmp_path / "index")
    assert [each.found for each in again] == [each.found for each in first]
    assert embedded == [1, 13, 1, 7] * 2
    assert sum("damaged, and made again" in message for message in log.messages) == 3
    del embedded[:]
    assert retrieve(world, tmp_path / "index") == again
    assert embedded == []


def test_where_nothing_can_be_kept_it_is_retrieved_each_time(world, tmp_path, log, embedded):
    retrieve(world, tmp_path / "index", cached=False)
    (tmp_path / "index/retrieved").write_text("a file where the folder would be")
    found = [retrieve(world, tmp_path / "index") for _ in range(2)]
    assert found[0][2].found == found[1][2].found
    assert embedded == [1, 13, 1, 7] * 3
    assert any("cannot be kept" in message for message in log.messages)


def test_every_process_has_what_the_main_process_found(world, tmp_path):
    ranks = results_of(__file__, tmp_path, world.folder)
    assert [rank.pop("embedded") for rank in ranks] == [[1, 13, 1, 7] * 2, []]
    expected = [[[hit.passage.id for hit in hits] for hits in each.found] for each in retrieve(world, tmp_path / "one")]
    assert ranks[0]["found"] == ranks[1]["found"] == expected
    assert "manifest.json" in files(tmp_path / "two")


def in_one_of_two_processes(folder, out):
    calls, plain = [], Encoder.encode_queries
    Encoder.encode_queries = lambda self, queries: calls.append(len(queries)) or plain(self, queries)
    model, encoder, data = (
        "",
        str(folder / "sentences/encoder"),
        [folder / f"{n}.jsonl" for n in ("train", "eval", "test")],
    )
    world = World(folder, model, encoder, *map(str, data), str(folder / "corpus.jsonl"), "")
    found = retrieve(world, out / "two")
    assert [each.found for each in retrieve(world, out / "two", cached=False)] == [each.found for each in found]
    ids = [[[hit.passage.id for hit in hits] for hits in each.found] for each in found]
    hand_over({"found": ids, "embedded": calls}, out)


if __name__ == "__main__":
    in_one_of_two_processes(*map(Path, sys.argv[1:]))
