"""Conversion: problems name file and row, nothing is lost in silence, any text survives, and files are whole or old."""

import json
import logging
import random
from copy import deepcopy

import pytest
from foreign_samples import SAMPLES, Sample, as_text, described, lines, triple
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rqa.conversion import FORMATS, convert
from rqa.data import DataError, Passage, load_examples, open_passages
from rqa.data.jsonl import MAX_LINE_BYTES
from rqa.errors import InputError

# Every text that JSON in UTF-8 can hold, and that is not white space alone
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40).filter(str.strip)
NQ = [{"question": "Who?", "answer": "I.", "id": "a"}, {"question": "Where?", "answer": "Here.", "id": "b"}]


def problems(path, folder, **options):
    """Convert an invalid file, and return the lines of the error."""
    with pytest.raises(DataError) as caught:
        convert(path, folder / "train.jsonl", **options)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "", "answer": "I."}, ["question", "empty text"]),
        ({"question": "Who?", "answer": 7}, ["answer", "number"]),
        ({"question": "Who?", "answer": ["I.", None]}, ["answer", "null"]),
        ({"question": ["Who?"], "answer": "I."}, ["question", "list"]),
        ({"answer": "I."}, ["question", "no such field"]),
    ],
)
def test_a_wrong_row_is_an_error_with_its_place_or_is_left_out(row, words, tmp_path, caplog):
    path = Sample("", [NQ[0], row, *[NQ[1] | {"id": str(i)} for i in range(3)]]).write(tmp_path, "jsonl")
    [line, _] = [*problems(path, tmp_path), ""][:2]
    assert line.startswith(f"{path}:2: ")
    assert all(word in line for word in words)
    assert not (tmp_path / "train.jsonl").exists()
    convert(path, tmp_path / "train.jsonl", max_bad_rows=1)
    assert [example.id for example in load_examples(tmp_path / "train.jsonl")] == ["a", "0", "1", "2"]
    assert f"1 of 5 rows are left out: {path}:2" in caplog.text


def test_places_are_lines_indices_or_paths_in_the_object(tmp_path):
    rows = [*NQ, {"question": "Why?", "answer": {}}]
    assert problems(Sample("", rows).write(tmp_path, "jsonl"), tmp_path)[0].startswith(f"{tmp_path}/input.jsonl:3: ")
    assert problems(Sample("", rows).write(tmp_path, "json"), tmp_path)[0].startswith(f"{tmp_path}/input.json[2]: ")
    squad = deepcopy(SAMPLES["squad"].content)
    squad["data"][1]["paragraphs"][0]["qas"][0]["question"] = " "
    path = Sample("", squad).write(tmp_path)
    assert problems(path, tmp_path)[0].startswith(f"{path}: .data[1].paragraphs[0].qas[0]: ")
    path = Sample("", {"examples": [{"query": "Who?", "reference_answer": 3}]}).write(tmp_path)
    assert problems(path, tmp_path)[0].startswith(f"{path}: .examples[0]: ")


@pytest.mark.parametrize("part", ["articles", "paragraphs", "context", "qas", "question"])
def test_a_broken_part_of_squad_is_a_problem(part, tmp_path):
    squad = deepcopy(SAMPLES["squad"].content)
    article = squad["data"][1]
    paragraph = article["paragraphs"][0]
    if part == "articles":
        squad["data"].append("Owls")
    elif part == "paragraphs":
        article["paragraphs"] = {}
    elif part == "context":
        paragraph["context"] = ""
    elif part == "qas":
        paragraph["qas"] = ["Who?"]
    else:
        del paragraph["qas"][0]["question"]
    path = Sample("", squad).write(tmp_path)
    assert len(problems(path, tmp_path)) <= 2
    convert(path, tmp_path / "train.jsonl", max_bad_rows=1)
    rest = SAMPLES["squad"].examples if part == "articles" else SAMPLES["squad"].examples[:2]
    assert list(map(described, load_examples(tmp_path / "train.jsonl"))) == rest


def test_repeated_ids_are_errors_and_can_be_left_out(tmp_path):
    path = Sample("", [*NQ, NQ[0]]).write(tmp_path)
    [line, *_] = problems(path, tmp_path)
    assert line.startswith(f'{path}[2]: field "id": "a" is already the id of {path}[0]')
    convert(path, tmp_path / "train.jsonl", keep_ids=False)
    assert [example.id for example in load_examples(tmp_path / "train.jsonl")] == ["train:1", "train:2", "train:3"]


def logged(caplog, sample, tmp_path, **options):
    with caplog.at_level(logging.INFO):
        convert(sample.write(tmp_path), tmp_path / "train.jsonl", **options)
    return caplog.text


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("squad", ['"version" (1 row)', '"plausible_answers" (1 row)']),
        ("hotpotqa", ['"type" (1 row)', '"level" (1 row)', '"answers": []']),
        ("dpr", ['"negative_ctxs" (1 row)', '"dataset" (1 row)', "left out of hard_neg_docs: 1 row, first"]),
        ("flashrag", ["metadata is not read: 1 row", "of metadata only the paragraphs are read: 1 row"]),
        ("flashrag_corpus", ["passages without text are left out: 1 row"]),
        ("raft", ['"instruction" (1 row)', '"type" (1 row)']),
        (
            "beir",
            ["without relevant passages in the qrels are left out: 1 row", '"answers": []', "title as text: 1 row"],
        ),
        ("beir", ["a score of 0 or less are not relevant: they are left out: 1 row"]),
        ("ragas", ["marks such as <1-hop> are removed", '"response" (1 row)']),
        ("ragas_old", ['"evolution_type" (1 row)', "answer is that of a system"]),
        ("langchain_documents", ["passages without text are left out: 1 row"]),
        ("llamaindex_pairs", ['"answers": []']),
        ("llamaindex_nodes", ['"class_name" (2 rows)']),
    ],
)
def test_what_is_not_read_or_left_out_has_one_line(name, parts, tmp_path, caplog):
    text = logged(caplog, SAMPLES[name], tmp_path)
    for part in parts:
        assert text.count(part) == 1, text


def test_relevant_passages_that_the_corpus_lacks_are_errors(tmp_path):
    path = SAMPLES["beir"].write(tmp_path)
    qrels = path / "qrels/test.tsv"
    qrels.write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\tlost\t1\nq9\td1\t1\nq1 d1 1\n")
    text = "\n".join(problems(path, tmp_path))
    assert f"{qrels}:5: expected query-id" in text
    qrels.write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\tlost\t1\n")
    [line, *_] = problems(path, tmp_path)
    assert line.startswith(f"{path}/queries.jsonl:2: ")
    assert '"lost"' in line
    qrels.write_text("q1\td1\t1\nq9\td1\t1\n")  # without a header
    [line, *_] = problems(path, tmp_path)
    assert line.startswith(f"{qrels}:2: ")
    assert '"q9"' in line


def test_a_query_whose_passage_is_empty_has_none(tmp_path):
    path = SAMPLES["beir"].write(tmp_path)
    (path / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td4\t1\n")
    convert(path, tmp_path / "train.jsonl")
    [example] = load_examples(tmp_path / "train.jsonl")
    assert (example.id, example.gold_passages) == ("q1", ())


def test_a_mutated_folder_gives_readable_rows_or_an_input_error(tmp_path):
    rng, output, written = random.Random(0), tmp_path / "train.jsonl", 0
    paths = list(SAMPLES["beir"].write(tmp_path).rglob("*.*"))
    contents = {path: path.read_text() for path in paths}
    for _ in range(150):
        for path, text in contents.items():
            path.write_text(
                text.replace(*rng.choice([("d1", "d2"), ("q1", "q2"), ("\t1", "\t-1"), ('"text"', '"x"')]), 1)
            )
            if rng.random() < 0.6:
                path.write_text(text)
        output.unlink(missing_ok=True)
        try:
            convert(tmp_path / "input", output, max_bad_rows=rng.choice([0, 9]))
        except InputError:
            assert not output.exists()
        else:
            written += bool(load_examples(output))
    assert 10 < written < 150


def test_the_documents_and_metadata_of_passages_are_kept(tmp_path):
    """A later split by document needs source and title."""
    convert(SAMPLES["langchain_documents"].write(tmp_path), tmp_path / "train.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert rows[0]["metadata"] == {"source": "owls.html", "title": "Owls", "page": 3}
    assert rows[1]["metadata"]["file_path"] == "bees.pdf"
    convert(SAMPLES["dpr"].write(tmp_path), tmp_path / "train.jsonl")
    first = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    assert first["gold_docs"][0]["metadata"] == {"source": "Owls", "title": "Owls", "id": "17"}


def test_an_error_leaves_earlier_files_as_they_are(tmp_path):
    (tmp_path / "train.jsonl").write_text("old")
    (tmp_path / "corpus.jsonl").write_text("old")
    path = Sample("", [*NQ, {"question": "", "answer": ""}]).write(tmp_path)
    problems(path, tmp_path, corpus_path=tmp_path / "corpus.jsonl")
    assert {(tmp_path / name).read_text() for name in ("train.jsonl", "corpus.jsonl")} == {"old"}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("output", "options", "words"),
    [
        ("input.jsonl", {}, "another path than that of the input"),
        ("train.json", {}, r"ends in \.jsonl"),
        ("train.jsonl", {"corpus_path": "train.jsonl"}, "another path than --output_path"),
        ("train.jsonl", {"split": "test"}, "--split test: expected a folder of beir"),
        ("train.jsonl", {"format": "sqaud"}, '--format: expected one of squad, .*, got "sqaud"'),
        ("train.jsonl", {"format": "langchain_documents", "corpus_path": "c.jsonl"}, "--output_path receives"),
    ],
)
def test_wrong_paths_and_options_are_errors(output, options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Sample("", NQ).write(tmp_path, "jsonl")
    before = path.read_bytes()
    with pytest.raises(InputError, match=words):
        convert(path, output, **options)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["input.jsonl"]


def test_the_corpus_of_a_folder_is_not_overwritten(tmp_path):
    path = SAMPLES["beir"].write(tmp_path)
    with pytest.raises(InputError, match="another path"):
        convert(path, tmp_path / "train.jsonl", corpus_path=path / "corpus.jsonl")


def test_rows_that_the_loaders_refuse_are_problems(tmp_path):
    big = {"question": "Who?", "answer": "I" * MAX_LINE_BYTES}
    path = Sample("", [*NQ, big]).write(tmp_path)
    assert f"{path}[2]: expected a row of at most" in problems(path, tmp_path)[0]
    path.write_text('[{"page_content": "Owls.", "metadata": {"page": 1e999}}, {"page_content": "Bees."}]')
    assert f"{path}[0]: expected finite numbers" in problems(path, tmp_path)[0]


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for sample in SAMPLES.values():
        path, outputs = sample.write(tmp_path), []
        for _ in range(2):
            convert(path, tmp_path / "train.jsonl")
            outputs.append((tmp_path / "train.jsonl").read_bytes())
        assert outputs[0] == outputs[1]
        outputs[0].decode()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(question=TEXTS, answers=st.lists(TEXTS, min_size=1, unique=True), passages=st.lists(TEXTS, min_size=2), id=TEXTS)
def test_any_text_survives(tmp_path, question, answers, passages, id):
    ids = list(dict.fromkeys(Passage(text).id for text in passages))
    first = {Passage(text).id: text for text in reversed(passages)}
    gold, *negatives = [first[each] for each in ids]
    ctxs = [[{"text": text, "title": text} for text in texts] for texts in ([gold], negatives)]
    row = {"question": question, "answers": answers, "id": id, "positive_ctxs": ctxs[0], "hard_negative_ctxs": ctxs[1]}
    for ending in ("json", "jsonl"):
        path = Sample("", [row]).write(tmp_path, ending)
        convert(path, tmp_path / "train.jsonl", corpus_path=tmp_path / "corpus.jsonl")
        [example] = load_examples(tmp_path / "train.jsonl")
        assert (example.id, example.question, example.answers) == (id, question, tuple(answers))
        assert [triple(each) for each in example.gold_passages] == [(gold, gold, gold)]
        assert [triple(each) for each in example.hard_negatives] == [(text, text, text) for text in negatives]
        assert [each.text for each in open_passages(tmp_path / "corpus.jsonl")] == [gold, *negatives]


VALUES = [None, True, 0, -1.5, "", " ", "\x1b[2J", "é" * 9, [], [[]], {}, [None], {"a": 1}, ["text", 3], {"text": []}]


def mutated(rng, value, depth=0):
    """Return a value with other, renamed or missing parts."""
    if rng.random() < 0.05:
        return rng.choice(VALUES)
    if isinstance(value, dict):
        items = [("x" if rng.random() < 0.03 else name, mutated(rng, each)) for name, each in value.items()]
        return dict(item for item in items if rng.random() > 0.03)
    if isinstance(value, list):
        return [mutated(rng, each) for each in value] * rng.choice([1, 1, 1, 1, 2])
    return value


@pytest.mark.parametrize("name", [name for name, sample in SAMPLES.items() if not sample.is_folder])
def test_mutated_files_give_readable_rows_or_an_input_error(name, tmp_path):
    sample, rng, written = SAMPLES[name], random.Random(name), 0
    path, output = tmp_path / "input.json", tmp_path / "train.jsonl"
    for _ in range(50):
        path.write_text(as_text(mutated(rng, sample.content), "json"), encoding="utf-8")
        output.unlink(missing_ok=True)
        try:
            convert(path, output, format=sample.format, max_bad_rows=rng.choice([0, 9]))
        except InputError:
            assert not output.exists()
            continue
        read = load_examples if FORMATS[sample.format].questions else open_passages
        written += bool(read(output))
    assert 5 < written < 50


def test_lines_of_other_systems_are_read(tmp_path):
    """A byte order mark, and line ends of Windows."""
    path = tmp_path / "input.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines(NQ).replace("\n", "\r\n").encode())
    convert(path, tmp_path / "train.jsonl")
    assert [example.id for example in load_examples(tmp_path / "train.jsonl")] == ["a", "b"]
