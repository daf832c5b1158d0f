"""retrieve: each split gets its own passages, on every process the same, and nothing is retrieved for nothing."""

import logging
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import Accelerator
from world import World, files, hand_over, results_of

from rqa.data.corpus import open_passages
from rqa.data.jsonl import DataError
from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Passage, load_examples
from rqa.retrieval.dense import open_retriever
from rqa.retrieval.encoder import Encoder
from rqa.retrieval.retrieve import Retrieval, open_corpus, retrieve_all, retrieve_splits, uses_only_gold

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
    again = retrieve(world, tmp_path / "index")
    assert again == [replace(each, seconds=None, stages={}) for each in first]  # it took this run no time
    assert {each.origin for each in again} == {"retrieved"}


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
    assert [each.found for each in retrieve(world, tmp_path / "index")] == [each.found for each in again]
    assert embedded == []


def test_where_nothing_can_be_kept_it_is_retrieved_each_time(world, tmp_path, log, embedded):
    retrieve(world, tmp_path / "index", cached=False)
    (tmp_path / "index/retrieved").write_text("a file where the folder would be")
    found = [retrieve(world, tmp_path / "index") for _ in range(2)]
    assert found[0][2].found == found[1][2].found
    assert embedded == [1, 13, 1, 7] * 3
    assert any("cannot be kept" in message for message in log.messages)


# What comes with the questions

P = [Passage(f"Passage {i}.", f"Title {i}", (str(i),)) for i in range(6)]


def bringing(*contexts, name="q"):
    """An example for each tuple of passages, by their numbers."""
    return [
        Example(f"{name}{i}", "Who?", ("A cat.",), contexts=tuple(P[j] for j in numbers), where=f"{name}.json[{i}]")
        for i, numbers in enumerate(contexts)
    ]


def test_what_is_given_is_what_a_retriever_would_have_found_without_score_or_time():
    examples = bringing((3, 1, 2), (), (0,))
    found = Retrieval.given(examples)
    assert [found.passages(i) for i in range(3)] == [[P[3], P[1], P[2]], [], [P[0]]]
    assert found.readings(examples, 2) == [GeneratorInput.from_ranked(e, e.contexts[:2]) for e in examples]
    assert all(math.isnan(hit.score) for hits in found.found for hit in hits)
    assert found.seconds is None


def test_the_fingerprint_of_what_is_given_is_of_ids_and_titles_in_order():
    def fingerprint(*contexts, k=None):
        return Retrieval.given([Example("q", "Who?", ("A cat.",), contexts=each) for each in contexts], k).fingerprint

    a, b, c = (P[0],), (P[1],), (P[2],)
    same = fingerprint(a + b, c)
    assert fingerprint((Passage(" Passage  0.", "Title 0"), *b), c) == same
    assert fingerprint(a + b + c, c, k=2) == same
    others = [(b + a, c), (a, b + c), (a + b + c,), (c, a + b), ((Passage("Passage 0.", "t"), *b), c), (a + b, c, ())]
    assert len({same, *(fingerprint(*other) for other in others)}) == 7


def test_without_a_retriever_each_split_reads_what_it_brings(log):
    splits = [bringing((3, 1, 2, 0), (4,)), [], bringing((5,), (0, 2))]
    found = retrieve_splits(Accelerator(cpu=True), None, "", "", splits, 3, history_turns=1)
    assert [[each.passages(i) for i in range(len(each.found))] for each in found] == [
        [list(example.contexts[:3]) for example in examples] for examples in splits
    ]
    assert [each.fingerprint for each in found] == [Retrieval.given(examples, 3).fingerprint for examples in splits]
    assert ["nothing is retrieved" in message for message in log.messages] == [True]


def test_an_example_that_brings_none_is_refused_where_there_is_no_retriever():
    splits = [bringing((0,), (), (), name="train"), [], bringing((), (1,), name="test")]
    splits[2][0] = replace(splits[2][0], where="")
    problem = 'no passages in "ctxs", and no retriever to find any: give'
    for call, flag in (
        (lambda: retrieve_splits(Accelerator(cpu=True), None, "", "", splits, 3, history_turns=1), "embedding_model"),
        (lambda: open_corpus("", "no/such/corpus", splits), "--embedding_model"),
        (lambda: open_corpus("", "", splits, flag="--eval_embedding_model"), "--eval_embedding_model"),
    ):
        with pytest.raises(DataError) as caught:
            call()
        where = ("train.json[1]", "train.json[2]", "test0")
        assert str(caught.value).splitlines() == [f"{place}: {problem} {flag}" for place in where]


def test_the_corpus_is_opened_for_a_retriever_alone(world):
    store = open_corpus("encoder", world.corpus, [bringing(())])
    assert store[:] == open_passages(world.corpus)[:]
    assert open_corpus("", world.corpus, [bringing((0,)), []]) is None


@pytest.mark.parametrize(
    ("encoder", "splits", "expected"),
    [
        ("", [bringing((), ()), []], True),
        ("", [[]], True),
        ("", [bringing(()), bringing((), (0,))], False),
        ("encoder", [bringing(())], False),
    ],
)
def test_gold_is_read_where_nothing_else_is_there(encoder, splits, expected):
    assert uses_only_gold(encoder, splits) is expected


def test_a_retriever_retrieves_whatever_comes_with_the_questions_and_says_so(world, tmp_path, log):
    expected = [each.found for each in retrieve(world, tmp_path / "index")]
    assert not any("ctxs" in message for message in log.messages)
    splits = splits_of(world)
    for split in (0, 2):
        splits[split][1] = replace(splits[split][1], contexts=(P[0],))
    assert [each.found for each in retrieve(world, tmp_path / "index", splits)] == expected
    unread = [message for message in log.messages if "ctxs" in message]
    assert unread == ['the passages given with 2 questions ("ctxs") are not read: the retriever retrieves']


# On two processes


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
