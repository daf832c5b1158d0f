"""Files of the original Fusion-in-Decoder give the same examples as files with our own fields."""

import gzip
import json
from dataclasses import replace

import pytest
from tiny_seq2seq import closing_tokenizer

from rqa.data.file_report import DataError
from rqa.data.records import Passage, load_examples
from rqa.prompts.collators import ParallelCollator
from rqa.prompts.fid_prompt import PassagePromptBuilder

DOC = {"page_content": "Water boils at 100 degrees.", "metadata": {"source": "a.html", "title": "Water"}}
CTXS = [
    {"id": "wiki:7", "title": "Ice", "text": "Ice melts.", "score": "1.5", "hasanswer": False},
    {"id": 12, "title": "Water", "text": "Water boils at 100 degrees."},
    {"title": None, "text": "Steam rises.", "id": None},
]
FID = {"question": "When does water boil?", "answers": ["At 100 degrees.", "100"], "ctxs": CTXS}
OURS = {"question": "When does water boil?", "gold_answer": ["At 100 degrees.", "100"], "gold_docs": []}
CONTEXTS = (Passage("Ice melts.", "Ice"), Passage("Water boils at 100 degrees.", "Water"), Passage("Steam rises."))


@pytest.fixture
def load(tmp_path):
    """A function that writes rows in the format of the file name and loads them."""

    def load(*rows, name="train.json"):
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        as_array = json.dumps(rows, indent=4).encode()  # the original layout
        path = tmp_path / name
        path.write_bytes(as_array if name.endswith(".json") else gzip.compress(lines) if name.endswith("z") else lines)
        return load_examples(path)

    return load


def without(row, *names, **changes):
    return {name: value for name, value in {**row, **changes}.items() if name not in names}


def test_a_row_equals_our_own_fields_plus_contexts(load):
    [fid] = load(FID)
    [ours] = load(OURS)
    assert fid == replace(ours, contexts=CONTEXTS)
    assert ours.contexts == ()
    assert [passage.sources for passage in fid.contexts] == [("wiki:7",), ("12",), ()]


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz"])
def test_lines_and_arrays_give_the_same_examples(load, name):
    rows = [FID, {**OURS, "id": "b"}, {**FID, **OURS, "gold_docs": [DOC], "id": 3} | {"answers": None}]
    array, lines = load(*rows), load(*rows, name=name)
    assert [example.id for example in array] == ["train:0", "b", "3"]
    assert [replace(example, id="train:1" if i == 0 else example.id) for i, example in enumerate(array)] == lines
    assert [example.where.rpartition("/")[2] for example in array] == [
        "train.json[0]",
        "train.json[1]",
        "train.json[2]",
    ]
    assert array[2].gold_passages == (Passage(DOC["page_content"], "Water"),)
    assert array[2].contexts == CONTEXTS


@pytest.mark.parametrize("row", [FID, OURS])
@pytest.mark.parametrize(
    ("target", "answers"),
    [
        (None, ("At 100 degrees.", "100")),
        ("100", ("100", "At 100 degrees.")),
        ("At 100 degrees.", ("At 100 degrees.", "100")),
        ("At 100.", ("At 100.", "At 100 degrees.", "100")),
    ],
)
def test_the_target_is_the_first_answer(load, row, target, answers):
    [example] = load({**row, "target": target})
    assert example.answers == answers


def test_a_target_can_be_the_only_answer(load):
    assert load(without(FID, "answers", target="100"))[0] == load({**FID, "answers": "100"})[0]
    assert load(without(FID, "answers", unanswerable=True))[0].answers == ()


def test_the_first_of_equal_contexts_is_kept(load):
    again = {"id": "x", "title": "Snow", "text": " Ice  melts.\n"}
    [example] = load({**FID, "ctxs": [*CTXS, again, *CTXS[1:]]})
    assert example.contexts == CONTEXTS
    assert example.contexts[0].sources == ("wiki:7",)


def test_gold_passages_are_required_without_contexts(load):
    assert load({**FID, "ctxs": []})[0] == load(OURS)[0]
    for row in (without(FID, "ctxs"), {**FID, "ctxs": None}):
        with pytest.raises(DataError, match=r'train\.json\[0\]: field "gold_docs": expected list, got no such field;'):
            load(row)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"gold_answer": "100"}, '"answers": expected this or "gold_answer", got both'),
        ({"answers": ["a", None]}, '"answers[1]": expected text, got null'),
        (
            {"answers": None},
            '"gold_answer": expected text, got no such field; the row has "question", "answers", "ctxs"',
        ),
        ({"target": 3}, '"target": expected text, got number'),
        ({"id": 1.0}, '"id": expected text, got number'),
        ({"id": False}, '"id": expected text, got true/false'),
        ({"ctxs": {}}, '"ctxs": expected list, got object'),
        ({"ctxs": ["text"]}, '"ctxs[0]": expected object, got text'),
        (
            {"ctxs": [*CTXS, {"title": "Ice"}]},
            '"ctxs[3].text": expected text, got no such field; the object has "title"',
        ),
        ({"ctxs": [{"text": "a", "title": 1}]}, '"ctxs[0].title": expected text, got number'),
        ({"ctxs": [{"text": "a", "id": []}]}, '"ctxs[0].id": expected text, got list'),
    ],
)
@pytest.mark.parametrize(("name", "place"), [("train.json", "[1]"), ("train.jsonl", ":2")])
def test_an_error_names_the_row_and_the_field(load, tmp_path, name, place, changes, problem):
    with pytest.raises(DataError) as caught:
        load(FID, {**FID, **changes}, FID, name=name)
    assert str(caught.value) == f"{tmp_path / name}{place}: field {problem}"


def test_ids_must_be_distinct_as_strings(load, tmp_path):
    with pytest.raises(DataError) as caught:
        load({**FID, "id": 7}, FID, {**FID, "id": "7"}, {**FID, "id": "train:1"})
    path = tmp_path / "train.json"
    assert str(caught.value).splitlines() == [
        f'{path}[2]: field "id": "7" is already the id of {path}[0]',
        f'{path}[3]: field "id": "train:1" is already the id of {path}[1]',
    ]


# Scores


def scored(*scores):
    """Return ctxs named by their place, with these scores; None has no score."""
    named = [{"text": f"passage {i}", "score": score} for i, score in enumerate(scores)]
    return [ctx if ctx["score"] is not None else {"text": ctx["text"]} for ctx in named]


def order(example):
    return [int(passage.text.removeprefix("passage ")) for passage in example.contexts]


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (["0.0", "1.0", "10", "9.5"], [2, 3, 1, 0]),  # numbers, not texts
        ([1, 3, 2.5, "-1e3"], [1, 2, 0, 3]),
        ([5, 7, 5, 7, 5], [1, 3, 0, 2, 4]),  # equal scores keep their order
        ([3, 2, 1], [0, 1, 2]),
    ],
)
def test_ctxs_are_sorted_by_score_as_the_original_does(load, caplog, name, scores, expected):
    ctxs = scored(*scores)
    [example] = load({**FID, "ctxs": ctxs}, name=name)
    by_original = sorted(ctxs, key=lambda ctx: float(ctx["score"]), reverse=True)  # Fusion-in-Decoder, src/data.py
    assert order(example) == expected == [ctxs.index(ctx) for ctx in by_original]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * (expected != sorted(expected))


@pytest.mark.parametrize("scores", [[1, None, 3], [1, 2, "high"], [1, 2, True], [1, 2, "nan"], [1, 2, [3]]])
def test_ctxs_with_some_scores_stay_in_order_with_a_warning(load, caplog, scores):
    [example] = load({**FID, "ctxs": scored(*scores)})
    assert order(example) == [0, 1, 2]
    [record] = caplog.records
    assert "not all have a number as score" in record.getMessage()
    assert "train.json[0]" in record.getMessage()


def test_the_first_of_equal_contexts_is_that_with_the_highest_score(load):
    ctxs = [{"text": "Ice melts.", "title": "A", "score": 1}, {"text": "Ice  melts.", "title": "B", "score": 2}]
    [example] = load({**FID, "ctxs": ctxs})
    assert example.contexts == (Passage("Ice  melts.", "B"),)


# Files without answers, empty passages


def test_an_empty_passage_is_left_out_and_counted(load, caplog):
    empty = {"title": "Empty", "text": "", "id": 5}
    assert load({**FID, "ctxs": [empty, *CTXS, empty]}, {**FID, "ctxs": [empty]}) == load(FID, {**FID, "ctxs": []})
    messages = [record.getMessage() for record in caplog.records if "without text" in record.getMessage()]
    assert len(messages) == 1
    assert "ctxs: 2 rows, first " in messages[0]


def test_hidden_answers_are_no_error_in_an_evaluation_and_one_in_training(load, tmp_path):
    """The test files of benchmarks have "answers": []."""
    hidden = {**FID, "answers": [], "ctxs": CTXS[:1]}
    known, example = load({**FID, "ctxs": CTXS[:1]}, hidden)
    assert (example.answers, example.unanswerable, example.contexts) == ((), False, known.contexts)
    assert load({**hidden, "target": "100"})[0].answers == ("100",)
    collator = ParallelCollator(PassagePromptBuilder(closing_tokenizer(), 60))
    collator.check([known, example])
    with pytest.raises(DataError) as caught:
        collator.check([known, example], answers=True)
    assert str(caught.value).startswith(f'{tmp_path / "train.json"}[1]: field "answers": ')
