"""retrieve: each split gets its own passages, the same on every rank, retrieved once."""

import logging
import math
import os
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from world import World, files, hand_over, results_of

from rqa.data.corpus import open_passages
from rqa.data.file_report import DataError
from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Passage, Turn, load_examples
from rqa.errors import InputError
from rqa.retrieval import verification
from rqa.retrieval.encoder import Encoder
from rqa.retrieval.index import DamagedIndexError
from rqa.retrieval.opening import open_retriever
from rqa.retrieval.retrieve import Retrieval, Retrieved, build_query, open_corpus, retrieve_splits, uses_only_gold
from rqa.retrieval.verification import Verification

K = 4
ALL_CALLS = [1, 13, 1, 7]  # each split after its warm-up; the empty split has no query


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("world"))


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "rqa")
    return caplog


@pytest.fixture
def embedded(monkeypatch):
    """The number of queries of each call of `encode_queries`."""
    calls, plain = [], Encoder.encode_queries
    monkeypatch.setattr(
        Encoder, "encode_queries", lambda self, queries: calls.append(len(queries)) or plain(self, queries)
    )
    return calls


def splits_of(world):
    return [load_examples(path) if path else [] for path in (world.train, "", world.test)]


def retrieve(world, index, splits=None, k=K, *, query_prefix="q: ", history_turns=0, cached=True):
    splits = splits_of(world) if splits is None else splits
    passages, accelerator = open_passages(world.corpus), Accelerator(cpu=True)
    source = partial(
        open_retriever, passages, world.encoder, index, device=accelerator.device, query_prefix=query_prefix
    )
    cache_dir = index / "retrieved" if cached else None
    return retrieve_splits(accelerator, source, passages, splits, k, history_turns=history_turns, cache_dir=cache_dir)


def lists(retrievals):
    return [retrieval.retrieved for retrieval in retrievals]


HISTORY = tuple(Turn(role, f"{role} {i}") for i in range(3) for role in ("user", "assistant"))


@pytest.mark.parametrize("users", [0, 1, 2, 3])
@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4, 9])
def test_a_query_is_the_question_after_the_last_messages_of_the_user(users, turns):
    example = Example("1", "Who?", ("I.",), chat_history=HISTORY[: 2 * users])
    expected = [f"user {i}" for i in range(users) if i >= users - turns]
    assert build_query(example, history_turns=turns) == "\n".join([*expected, "Who?"])
    assert build_query(example) == build_query(example, history_turns=1)


def test_each_split_gets_its_own_passages(world, log, tmp_path, progress):
    splits = splits_of(world)
    missing = replace(splits[2][1], gold_passages=(*splits[2][1].gold_passages, Passage("Nowhere.")))
    splits[2][1:3] = [missing, replace(splits[2][2], gold_passages=(Passage("Nowhere else."),))]
    retrievals = retrieve(world, tmp_path / "index", splits)
    passages, device = open_passages(world.corpus), Accelerator(cpu=True).device
    retriever = open_retriever(passages, world.encoder, tmp_path / "index", device=device, query_prefix="q: ")
    expected = [retriever.retrieve([build_query(e, history_turns=0) for e in split], K) for split in splits]
    assert lists(retrievals) == expected
    assert {each.fingerprint for each in retrievals} == {retriever.fingerprint()}
    assert [len(each.retrieved) for each in retrievals] == [13, 0, 7]
    assert f"the corpus lacks gold passages of 2 examples, first {world.test}:2" in log.messages
    for name, count in (("searching the index", 13), ("retrieving passages", 20)):
        assert (name, count, count) in progress


def test_cached_results_are_not_retrieved_again(world, tmp_path, embedded, monkeypatch):
    first = retrieve(world, tmp_path / "index")
    assert embedded == ALL_CALLS
    monkeypatch.setattr(Encoder, "model", property(lambda self: pytest.fail("the encoder is loaded")))
    again = retrieve(world, tmp_path / "index")
    assert again == [replace(each, seconds=None, stages={}) for each in first]  # no time in this run
    assert {each.origin for each in again} == {"retrieved"}


@pytest.mark.parametrize("change", ["k", "history", "question", "prefix", "order", "index"])
def test_other_inputs_are_retrieved_again(world, tmp_path, embedded, change):
    retrieve(world, tmp_path / "index")
    del embedded[:]
    splits, options, index = splits_of(world), {}, tmp_path / "index"
    if change == "k":
        options["k"] = K + 1
    elif change == "history":
        options["history_turns"] = 1
    elif change == "prefix":
        options["query_prefix"] = "ask: "
    elif change == "index":
        index = tmp_path / "another"
    elif change == "question":
        splits[2][0] = replace(splits[2][0], question="Where?")
    else:
        splits[2].reverse()
    retrievals = retrieve(world, index, splits, **options)
    assert embedded == ([1, 7] if change in ("question", "order") else ALL_CALLS)
    assert lists(retrievals) == lists(retrieve(world, index, splits, **options, cached=False))


HARM = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "something else": lambda path: path.write_text("something else"),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_a_damaged_cache_file_is_replaced(world, tmp_path, log, embedded, harm):
    first = retrieve(world, tmp_path / "index")
    paths = list((tmp_path / "index/retrieved").iterdir())
    assert len(paths) == 3
    for path in paths:
        harm(path)
    again = retrieve(world, tmp_path / "index")
    assert lists(again) == lists(first)
    assert embedded == ALL_CALLS * 2
    for path in paths:
        assert any(message.startswith(f"{path}: damaged") for message in log.messages)
    del embedded[:]
    assert lists(retrieve(world, tmp_path / "index")) == lists(again)
    assert embedded == []


def test_an_unwritable_cache_is_a_warning(world, tmp_path, log, embedded):
    retrieve(world, tmp_path / "index", cached=False)
    (tmp_path / "index/retrieved").write_text("a file instead of the folder")
    first, again = (retrieve(world, tmp_path / "index") for _ in range(2))
    assert lists(first) == lists(again)
    assert embedded == ALL_CALLS * 3
    assert any("are not cached" in message for message in log.messages)


@pytest.mark.parametrize("cached", [False, True])
def test_results_of_a_damaged_index_are_neither_cached_nor_returned(world, tmp_path, monkeypatch, cached):
    """The damaged block is read after the last search."""
    monkeypatch.setattr(verification, "BLOCK_BYTES", 1000)
    retrieve(world, tmp_path / "index", cached=False)
    [file] = (tmp_path / "index").glob("*.faiss")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    gate, wait = threading.Event(), Verification.wait
    gated = SimpleNamespace(pread=lambda *args: (not args[2] or gate.wait(30)) and os.pread(*args))
    monkeypatch.setattr(verification, "os", gated)
    monkeypatch.setattr(Verification, "wait", lambda self: (gate.set(), wait(self)))
    with pytest.raises(DamagedIndexError, match="got damage between the bytes"):
        retrieve(world, tmp_path / "index", cached=cached)
    assert not (tmp_path / "index/retrieved").exists()


def test_processes_with_other_passages_are_refused(world, tmp_path, monkeypatch):
    """The corpus was replaced after the first process had opened it."""
    monkeypatch.setattr(
        "rqa.retrieval.retrieve.broadcast_object_list", lambda results: [(*results[0][:2], "fingerprint of the first")]
    )
    with pytest.raises(InputError, match=r"full_dataset_file_path: .* fingerprint of"):
        retrieve(world, tmp_path / "index")


# Contexts of the examples

P = [Passage(f"Passage {i}.", f"Title {i}", (str(i),)) for i in range(6)]


def with_contexts(*contexts, name="q"):
    """Return an example for each tuple of passage numbers."""
    return [
        Example(f"{name}{i}", "Who?", ("A cat.",), contexts=tuple(P[j] for j in numbers), where=f"{name}.json[{i}]")
        for i, numbers in enumerate(contexts)
    ]


def test_given_passages_have_no_score_and_no_time():
    examples = with_contexts((3, 1, 2), (), (0,))
    given = Retrieval.given(examples)
    assert [given.passages(i) for i in range(3)] == [[P[3], P[1], P[2]], [], [P[0]]]
    assert given.inputs(examples, 2) == [GeneratorInput.from_ranked(e, e.contexts[:2]) for e in examples]
    assert all(math.isnan(hit.score) for hits in given.retrieved for hit in hits)
    assert given.seconds is None


def test_the_fingerprint_of_given_passages_covers_ids_and_titles_in_order():
    def fingerprint(*contexts, k=None):
        return Retrieval.given([Example("q", "Who?", ("A cat.",), contexts=each) for each in contexts], k).fingerprint

    a, b, c = (P[0],), (P[1],), (P[2],)
    same = fingerprint(a + b, c)
    assert fingerprint((Passage(" Passage  0.", "Title 0"), *b), c) == same
    assert fingerprint(a + b + c, c, k=2) == same
    others = [(b + a, c), (a, b + c), (a + b + c,), (c, a + b), ((Passage("Passage 0.", "t"), *b), c), (a + b, c, ())]
    assert len({same, *(fingerprint(*other) for other in others)}) == 7


def test_without_a_retriever_contexts_are_read(log):
    splits = [with_contexts((3, 1, 2, 0), (4,)), [], with_contexts((5,), (0, 2))]
    retrievals = retrieve_splits(Accelerator(cpu=True), None, None, splits, 3)
    assert [[each.passages(i) for i in range(len(each.retrieved))] for each in retrievals] == [
        [list(example.contexts[:3]) for example in examples] for examples in splits
    ]
    expected = [Retrieval.given(examples, 3).fingerprint for examples in splits]
    assert [each.fingerprint for each in retrievals] == expected
    assert ["no retrieval" in message for message in log.messages] == [True]


def test_without_a_retriever_examples_without_contexts_are_refused():
    splits = [with_contexts((0,), (), (), name="train"), [], with_contexts((), (1,), name="test")]
    splits[2][0] = replace(splits[2][0], where="")
    for call in (
        lambda: retrieve_splits(Accelerator(cpu=True), None, None, splits, 3),
        lambda: open_corpus(False, splits, "no/such/corpus"),
    ):
        with pytest.raises(DataError) as caught:
            call()
        lines = str(caught.value).splitlines()
        places = ("train.json[1]", "train.json[2]", "test0")
        assert [line.partition(":")[0] for line in lines] == list(places)
        assert all('"ctxs"' in line and "set --embedding_model or --retriever bm25." in line for line in lines)
    with pytest.raises(InputError, match=r"--embedding_model: expected .*ctxs"):
        open_corpus(False, [with_contexts(())], "")


def test_the_corpus_is_opened_only_for_a_retriever(world):
    store = open_corpus(True, [with_contexts(())], world.corpus)
    assert store[:] == open_passages(world.corpus)[:]
    assert open_corpus(False, [with_contexts((0,)), []], world.corpus) is None


@pytest.mark.parametrize(
    ("has_retriever", "splits", "expected"),
    [
        (False, [with_contexts((), ()), []], True),
        (False, [[]], True),
        (False, [with_contexts(()), with_contexts((), (0,))], False),
        (True, [with_contexts(())], False),
    ],
)
def test_gold_is_used_if_there_are_no_other_passages(has_retriever, splits, expected):
    assert uses_only_gold(has_retriever, splits) is expected


def test_a_retriever_ignores_contexts_and_logs_it(world, tmp_path, log):
    expected = lists(retrieve(world, tmp_path / "index"))
    assert not any("ctxs" in message for message in log.messages)
    splits = splits_of(world)
    for split in (0, 2):
        splits[split][1] = replace(splits[split][1], contexts=(P[0],))
    assert lists(retrieve(world, tmp_path / "index", splits)) == expected
    assert ["2 questions" in message for message in log.messages if "ctxs" in message] == [True]


# A retriever of the user's own


class WordOverlap:
    """Ranks passages by the share of the query's words that they contain."""

    def __init__(self, passages):
        self.passages = passages
        self.words = [set(passage.content.lower().split()) for passage in passages]

    def retrieve(self, queries, k):
        return [self.best(set(query.lower().split()), k) for query in queries]

    def best(self, query, k):
        scores = [len(query & words) / len(query) for words in self.words]
        ranked = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
        return [Retrieved(self.passages[i], scores[i]) for i in ranked[:k]]

    def fingerprint(self):
        return "word overlap"


def test_a_retriever_of_your_own_is_called_once_and_cached(world, tmp_path):
    splits, opened = splits_of(world), []

    def retrieve(path, k=3):
        passages = open_passages(path)

        def source():
            opened.append(WordOverlap(passages))
            return opened[-1]

        return retrieve_splits(Accelerator(cpu=True), source, passages, splits, k, cache_dir=tmp_path)

    def directly(path, k=3):
        retriever = WordOverlap(open_passages(path))
        return [retriever.retrieve([build_query(example) for example in split], k) for split in splits]

    first, again = retrieve(world.corpus), retrieve(world.corpus)
    assert lists(first) == lists(again) == directly(world.corpus)  # scores too, which float32 cannot hold
    assert (len(opened), {each.fingerprint for each in first}) == (2, {"word overlap"})
    assert first[0].stages["retrieve"]["questions"] == 13
    assert [each.seconds for each in again] == [None] * 3
    assert lists(retrieve(world.corpus, k=50)) == directly(world.corpus, k=50)
    rows = Path(world.corpus).read_text().splitlines()
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(rows[::-1]))
    assert lists(retrieve(other)) == directly(other)  # the cache depends on the corpus


@pytest.mark.parametrize("fault", ["foreign", "more"])
def test_a_retriever_with_other_passages_or_too_many_is_refused(world, fault):
    passages, splits = open_passages(world.corpus), splits_of(world)
    hits = [Retrieved(passage, 1.0) for passage in ([P[0]] if fault == "foreign" else passages[:4])]

    retriever = WordOverlap(passages)
    retriever.best = lambda *_: hits
    with pytest.raises(ValueError, match="expected at most 3 passages of the corpus"):
        retrieve_splits(Accelerator(cpu=True), lambda: retriever, passages, splits, 3)


# On two processes


@pytest.mark.slow
def test_every_rank_gets_the_results_of_the_main_process(world, tmp_path):
    ranks = results_of(__file__, tmp_path, world.folder)
    assert [rank.pop("embedded") for rank in ranks] == [ALL_CALLS * 2, []]
    expected = [
        [[hit.passage.id for hit in hits] for hits in each] for each in lists(retrieve(world, tmp_path / "one"))
    ]
    assert ranks[0]["ids"] == ranks[1]["ids"] == expected
    assert "manifest.json" in files(tmp_path / "two")


def in_one_of_two_processes(folder, out):
    calls, plain = [], Encoder.encode_queries
    Encoder.encode_queries = lambda self, queries: calls.append(len(queries)) or plain(self, queries)
    data = [str(folder / f"{name}.jsonl") for name in ("train", "eval", "test", "corpus")]
    world = World(folder, "", str(folder / "sentences/encoder"), *data, "")
    retrieved = lists(retrieve(world, out / "two"))
    assert lists(retrieve(world, out / "two", cached=False)) == retrieved
    hand_over(
        {"ids": [[[hit.passage.id for hit in hits] for hits in each] for each in retrieved], "embedded": calls}, out
    )


if __name__ == "__main__":
    in_one_of_two_processes(*map(Path, sys.argv[1:]))
