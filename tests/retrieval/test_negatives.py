"""negatives: those of a loop over the retriever's lists; rows keep their other fields; training reads them."""

import json
import re
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_models import save_reranker
from world import PLACES, launch, passage, question, read_jsonl, write_jsonl

from rqa.cli.parser import parse_args
from rqa.cli.retriever_training_args import MiningArgs
from rqa.data.corpus import open_passages
from rqa.data.passage_selection import select_passages
from rqa.data.records import Example, Passage, load_examples
from rqa.errors import InputError
from rqa.retrieval.negatives import mine_negatives, write_negatives
from rqa.retrieval.opening import open_retriever
from rqa.retrieval.rerank import Reranker
from rqa.retrieval.retrieve import Retrieval, build_query

CORPUS = [passage(place, number) for number in range(3) for place in PLACES]
ROWS = [
    question(place, number) | {"note": [1, {"a": None}], "gold_answer": answer}
    for number, (place, answer) in enumerate(zip(PLACES, ["oslo", "no", "  LAMP of  lima", "1234"], strict=False))
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return open_passages(write_jsonl(tmp_path_factory.mktemp("negatives") / "corpus.jsonl", CORPUS))


@pytest.fixture
def source(tmp_path):
    return write_jsonl(tmp_path / "train.jsonl", ROWS)


def words(text: str) -> str:
    return " ".join(re.sub(r"[^\w]", " ", text.lower()).split())


@pytest.mark.parametrize("margin", [None, 0.0, 0.5])
@pytest.mark.parametrize(("first", "last", "most"), [(1, 9, 20), (2, 7, 3), (1, 30, 1)])
def test_negatives_are_those_of_a_loop_over_the_lists(path, corpus, source, tmp_path, margin, first, last, most):
    score, options = None, {}
    if margin is not None:
        name = save_reranker(tmp_path / "reranker", Path(path).with_name("plain"))
        score, options = Reranker(name, device=CPU).scores, {"reranker_model": name, "rerank_top": 30}
    retriever = open_retriever(corpus, path, tmp_path / "index", device=CPU, **options)
    examples = load_examples(source)
    queries = [build_query(example) for example in examples]
    lists = retriever.retrieve(queries, last)
    negatives, counts = mine_negatives(
        examples, queries, Retrieval(lists, None, ""), negatives_per_question=most, first_rank=first, last_rank=last,
        score=score, score_margin=margin or 0.0,
    )  # fmt: skip
    expected, removed = [], Counter()
    for example, query, hits in zip(examples, queries, lists, strict=True):
        own = []
        for rank, hit in enumerate(hits, 1):
            is_gold = hit.passage.id in [gold.id for gold in example.gold_passages]
            answer = words(example.answers[0])
            is_answer = len(answer) > 2 and answer in words(f"{hit.passage.title} {hit.passage.text}")
            one, other = ({*words(each.text).split()} for each in (hit.passage, example.gold_passages[0]))
            is_copy = len(one & other) >= 0.8 * len(one | other)
            is_near = score and hit.score >= score(query, [example.gold_passages[0].content])[0] - margin
            reasons = {
                "gold": is_gold, "near copy of gold": is_copy, "contains an answer": is_answer,
                "score near gold": is_near,
            }  # fmt: skip
            if first <= rank <= last:
                reason = next((name for name, applies in reasons.items() if applies), None)
                removed.update([f"left out: {reason}"] if reason else [])
                own += [] if reason else [hit.passage]
        expected.append(own[:most])
    assert negatives == expected
    assert removed.total() > 0
    assert {name: count for name, count in counts.items() if name.startswith("left out") and count} == removed
    assert counts["negatives"] == sum(map(len, expected))
    assert counts["questions with fewer negatives"] == sum(len(own) < most for own in expected)


def test_questions_without_gold_or_answer(corpus):
    hits = Retrieval([[hit] for hit in _hits(corpus, 3)], None, "")
    options = {"negatives_per_question": 1, "first_rank": 1, "last_rank": 1}
    examples = [
        Example("a", "q", ("Oslo",)),  # a candidate may answer it
        Example("b", "q", ("Oslo",), unanswerable=True),
        Example("c", "q", ("Oslo",), (Passage("gold"),), unanswerable=True),
    ]
    negatives, counts = mine_negatives(examples, ["q"] * 3, hits, **options)
    assert [len(own) for own in negatives] == [0, 1, 1]
    assert counts["questions without gold passages"] == 1


@pytest.mark.parametrize(("overlap", "is_negative"), [(0.7, False), (0.75, False), (0.8, True), (1.0, True)])
def test_the_overlap_of_a_near_copy_is_that_of_distinct_words(overlap, is_negative):
    """Of the 4 distinct words of both texts, 3 are common. The title is no part of it."""
    gold, copy = Passage("The Lamp: the lamp shines.", "one"), Passage("the lamp shines far", "another title")
    example = Example("a", "q", ("Oslo",), (gold,), contexts=(copy,))
    options = {"negatives_per_question": 1, "first_rank": 1, "last_rank": 1, "max_gold_overlap": overlap}
    [own], counts = mine_negatives([example], ["q"], Retrieval.given([example]), **options)
    assert own == [copy] * is_negative
    assert counts["left out: near copy of gold"] == 1 - is_negative


@pytest.mark.parametrize(
    ("answer", "text", "is_negative"),
    [
        ("art", "A party at night.", True),
        ("art", "Works of Art.", False),
        ("New York", "in new york", False),
        ("New York", "New yorkers", True),
        ("北京", "他住在北京。", False),  # no spaces between words
        ("7", "7 lamps", True),  # too short
    ],
)
def test_a_passage_contains_an_answer_as_words(answer, text, is_negative):
    example = Example("a", "q", (answer,), (Passage("gold"),), contexts=(Passage(text),))
    hits = Retrieval.given([example])
    options = {"negatives_per_question": 1, "first_rank": 1, "last_rank": 1}
    [own], _ = mine_negatives([example], ["q"], hits, **options)
    assert [passage.text for passage in own] == [text] * is_negative


def _hits(corpus, number):
    return [hit for [hit] in Retrieval.given([Example("x", "q", (), contexts=(corpus[0],))] * number).retrieved]


@pytest.mark.parametrize("ending", [".jsonl", ".json"])
def test_rows_keep_their_other_fields_and_training_reads_the_negatives(corpus, tmp_path, ending):
    rows = [ROWS[0], {**ROWS[1], "question": 5}, ROWS[2]]
    source = tmp_path / f"rows{ending}"
    source.write_text(json.dumps(rows) if ending == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    examples = load_examples(source, max_bad_rows=1)
    output = tmp_path / "out.jsonl"
    write_negatives(source, examples, [[corpus[5], corpus[6]], []], output)
    written = read_jsonl(output)
    assert [{**row, "hard_neg_docs": None} for row in written] == [{**rows[i], "hard_neg_docs": None} for i in (0, 2)]
    first, second = load_examples(output)
    assert (first.hard_negatives, second.hard_negatives) == ((corpus[5], corpus[6]), ())
    assert first.hard_negatives[0].sources == corpus[5].sources
    read = partial(select_passages, first, [], k=1, seed=0, epoch=0)
    assert corpus[5] in read(hard_negatives=1).passages
    assert corpus[5] not in read(hard_negatives=0).passages


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--first_rank", "9", "--last_rank", "8"], ("--last_rank", "9", "8")),
        (["--max_gold_overlap", "0"], ("--max_gold_overlap", "0")),
        (["--negatives_per_question", "0"], ("--negatives_per_question", "0")),
        (["--output_file", "out.json"], ("--output_file", "out.json")),
    ],
)
def test_invalid_values_name_the_flag(flags, words):
    argv = ["--input_file", "in.jsonl", "--output_file", "out.jsonl", *flags]
    argv = argv if "--output_file" not in flags else ["--input_file", "in.jsonl", *flags]
    with pytest.raises(InputError) as refused:
        parse_args(MiningArgs(), argv=argv)
    assert all(word in str(refused.value) for word in words)


@pytest.mark.slow
def test_the_recipe_writes_the_same_bytes_twice(world, tmp_path):
    flags = {
        "--input_file": world.train, "--embedding_model": world.encoder, "--document_path": world.corpus,
        "--index_path": str(tmp_path / "index"), "--negatives_per_question": "2",
    }  # fmt: skip
    outputs = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    printed = [launch("mine_negatives.py", {**flags, "--output_file": str(output)}) for output in outputs]
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert all(len(example.hard_negatives) <= 2 for example in load_examples(outputs[0]))
    assert f"questions: {len(load_examples(world.train))}\n" in printed[0]
