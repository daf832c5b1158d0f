"""The files of the original Fusion-in-Decoder give the examples that files of our own fields give."""

import gzip
import json
from dataclasses import replace

import pytest

from rqa.data.jsonl import DataError
from rqa.data.records import Passage, load_examples

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
    """Write rows to a file as its name says, and load it."""

    def load(*rows, name="train.json"):
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        as_array = json.dumps(rows, indent=4).encode()  # as its authors write it
        path = tmp_path / name
        path.write_bytes(as_array if name.endswith(".json") else gzip.compress(lines) if name.endswith("z") else lines)
        return load_examples(path)

    return load


def without(row, *names, **changes):
    return {name: value for name, value in {**row, **changes}.items() if name not in names}


def test_a_row_is_that_of_our_own_fields_and_its_contexts(load):
    [fid] = load(FID)
    [ours] = load(OURS)
    assert fid == replace(ours, contexts=CONTEXTS)
    assert ours.contexts == ()
    assert [passage.sources for passage in fid.contexts] == [("wiki:7",), ("12",), ()]


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz"])
def test_lines_give_the_examples_of_the_array(load, name):
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
def test_the_target_is_the_first_of_the_answers(load, row, target, answers):
    [example] = load({**row, "target": target})
    assert example.answers == answers


def test_a_target_may_be_the_only_answer_and_one_answer_a_text(load):
    assert load(without(FID, "answers", target="100"))[0] == load({**FID, "answers": "100"})[0]
    assert load(without(FID, "answers", unanswerable=True))[0].answers == ()


def test_of_the_same_context_the_first_is_kept(load):
    again = {"id": "x", "title": "Snow", "text": " Ice  melts.\n"}
    [example] = load({**FID, "ctxs": [*CTXS, again, *CTXS[1:]]})
    assert example.contexts == CONTEXTS
    assert example.contexts[0].sources == ("wiki:7",)


def test_gold_may_be_absent_only_where_contexts_are_there(load):
    assert load({**FID, "ctxs": []})[0] == load(OURS)[0]
    for row in (without(FID, "ctxs"), {**FID, "ctxs": None}):
        with pytest.raises(DataError, match=r'train\.json\[0\]: field "gold_docs": expected list, found nothing$'):
            load(row)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"gold_answer": "100"}, '"answers": expected this or "gold_answer", found both'),
        ({"answers": []}, '"answers": expected text or list of texts, found empty list'),
        ({"answers": ["a", None]}, '"answers[1]": expected text, found null'),
        ({"answers": None}, '"gold_answer": expected text, found nothing'),
        ({"target": 3}, '"target": expected text, found number'),
        ({"id": 1.0}, '"id": expected text, found number'),
        ({"id": False}, '"id": expected text, found true/false'),
        ({"ctxs": {}}, '"ctxs": expected list, found object'),
        ({"ctxs": ["text"]}, '"ctxs[0]": expected object, found text'),
        ({"ctxs": [*CTXS, {"title": "Ice"}]}, '"ctxs[3].text": expected text, found nothing'),
        ({"ctxs": [{"text": " "}]}, '"ctxs[0].text": expected text, found only white space'),
        ({"ctxs": [{"text": "a", "title": 1}]}, '"ctxs[0].title": expected text, found number'),
        ({"ctxs": [{"text": "a", "id": []}]}, '"ctxs[0].id": expected text, found list'),
    ],
)
@pytest.mark.parametrize(("name", "place"), [("train.json", "[1]"), ("train.jsonl", ":2")])
def test_problems_are_placed(load, tmp_path, name, place, changes, problem):
    with pytest.raises(DataError) as caught:
        load(FID, {**FID, **changes}, FID, name=name)
    assert str(caught.value) == f"{tmp_path / name}{place}: field {problem}"


def test_ids_are_distinct_as_texts(load, tmp_path):
    with pytest.raises(DataError) as caught:
        load({**FID, "id": 7}, FID, {**FID, "id": "7"}, {**FID, "id": "train:1"})
    path = tmp_path / "train.json"
    assert str(caught.value).splitlines() == [
        f'{path}[2]: field "id": "7" is already the id of {path}[0]',
        f'{path}[3]: field "id": "train:1" is already the id of {path}[1]',
    ]
