"""Every format: a hand-written sample is recognized, and its questions and passages are read back by the loaders."""

import gzip
import json

import pytest
from foreign_samples import SAMPLES, Sample, described, lines, triple

from rqa.conversion import FORMATS, Source, convert, recognized
from rqa.data import load_examples, open_passages
from rqa.errors import InputError

ROW_SAMPLES = {name: sample for name, sample in SAMPLES.items() if isinstance(sample.content, list)}


def converted(path, folder, **options):
    """Convert, and return the output, read as examples, or as passages of a corpus."""
    done = convert(path, folder / "train.jsonl", **options)
    if FORMATS[done.format].questions:
        return list(map(described, load_examples(folder / "train.jsonl")))
    return list(map(triple, open_passages(folder / "train.jsonl")))


def test_every_format_has_a_sample():
    assert {sample.format for sample in SAMPLES.values()} == {*FORMATS}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_recognized_and_read_back(name, tmp_path):
    sample = SAMPLES[name]
    path = sample.write(tmp_path)
    assert recognized(Source(path)) == sample.format
    assert converted(path, tmp_path) == (sample.examples or sample.passages)


@pytest.mark.parametrize("name", ROW_SAMPLES)
def test_json_lines_plain_and_packed_have_the_rows_of_an_array(name, tmp_path):
    sample = ROW_SAMPLES[name]
    path = sample.write(tmp_path, "jsonl")
    assert converted(path, tmp_path) == (sample.examples or sample.passages)
    packed = tmp_path / "input.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert converted(packed, tmp_path) == (sample.examples or sample.passages)
    array = tmp_path / "input.gz"
    array.write_bytes(gzip.compress(json.dumps(sample.content).encode()))
    assert converted(array, tmp_path) == (sample.examples or sample.passages)


@pytest.mark.parametrize("name", [name for name, sample in SAMPLES.items() if isinstance(sample.content, dict)])
def test_one_object_may_be_on_one_line(name, tmp_path):
    sample = SAMPLES[name]
    if not sample.is_folder:
        path = tmp_path / "input.txt"
        path.write_text(json.dumps(sample.content))
        assert converted(path, tmp_path) == (sample.examples or sample.passages)


@pytest.mark.parametrize("name", [name for name, sample in SAMPLES.items() if sample.corpus])
def test_the_corpus_has_each_passage_once(name, tmp_path):
    sample = SAMPLES[name]
    done = convert(sample.write(tmp_path), tmp_path / "train.jsonl", corpus_path=tmp_path / "corpus.jsonl")
    corpus = open_passages(tmp_path / "corpus.jsonl")
    assert list(map(triple, corpus)) == sample.corpus
    assert done.passages == len(corpus)
    assert corpus.duplicates == 0
    for example in load_examples(tmp_path / "train.jsonl"):
        assert all(corpus.row_of(passage.id) is not None for passage in example.gold_passages)


def test_a_forced_format_is_used(tmp_path):
    rows = [{"question": "Who?", "answer": "I.", "golden_answers": ["You."], "positive_ctxs": []}]
    path = Sample("", rows).write(tmp_path)
    with pytest.raises(InputError, match="dpr and flashrag"):
        recognized(Source(path))
    for name, answer in {"nq_open": "I.", "flashrag": "You."}.items():
        assert converted(path, tmp_path, format=name) == [{"question": "Who?", "answers": [answer]}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"prompt": "Who?", "completion": "I."}], ['rows with "prompt", "completion"', *FORMATS]),
        ({"version": 1, "rows": []}, ['one object with "version", "rows"', *FORMATS]),
        ([[1], [2]], ["no fields"]),
        ([{"question": "Who?", "gold_answer": "I."}], ["No conversion is needed"]),
        ([{"question": "Who?", "target": "I.", "ctxs": []}], ["No conversion is needed"]),
    ],
)
def test_other_content_is_an_error_with_its_fields_and_the_known_formats(content, words, tmp_path):
    path = Sample("", content).write(tmp_path)
    with pytest.raises(InputError) as caught:
        recognized(Source(path))
    assert all(word in str(caught.value) for word in ["--format", *words])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"question,answer\nWho?,I.\n", ["CSV"]),
        (b"PAR1\x15\x04\n,", ["Parquet"]),
        (b"", ["empty file"]),
        (b"Who?\n", ["expected JSON"]),
        (b'{"data": [\n', ["not JSON"]),
    ],
)
def test_a_file_that_is_not_json_is_one_error(content, words, tmp_path):
    path = tmp_path / "input.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        Source(path)
    assert all(word in str(caught.value) for word in [str(path), *words])


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("format", FORMATS)
def test_a_wrong_format_is_an_input_error_or_gives_rows_that_are_read(name, format, tmp_path):
    try:
        done = convert(SAMPLES[name].write(tmp_path), tmp_path / "train.jsonl", format=format)
    except InputError:
        assert not (tmp_path / "train.jsonl").exists()
    else:
        read = load_examples if FORMATS[done.format].questions else open_passages
        assert read(tmp_path / "train.jsonl")


@pytest.mark.parametrize("name", SAMPLES)
def test_the_loaders_name_the_recipe_for_files_that_it_converts(name, tmp_path):
    """Rows of passages that rqa reads as they are, and folders, have no such message."""
    sample = SAMPLES[name]
    if name != "langchain_documents" and not sample.is_folder:
        path = sample.write(tmp_path, "jsonl" if isinstance(sample.content, list) else "json")
        with pytest.raises(InputError, match=r"recipes/convert\.py"):
            load_examples(path)


def test_the_loaders_do_not_name_the_recipe_for_a_misspelt_field(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(lines([{"question": "Who?", "answer": "I.", "gold_docs": []}]))
    with pytest.raises(InputError) as caught:
        load_examples(path)
    assert "convert.py" not in str(caught.value)


def test_a_folder_that_is_not_beir_lists_its_files(tmp_path):
    (tmp_path / "queries.jsonl").write_text(lines([{"_id": "1", "text": "Who?"}]))
    with pytest.raises(InputError, match=r'a folder with "queries\.jsonl"'):
        recognized(Source(tmp_path))


def test_a_folder_with_several_qrels_requires_a_split(tmp_path):
    path = SAMPLES["beir"].write(tmp_path)
    (path / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\nq3\td2\t1\n")
    with pytest.raises(InputError, match=r'"test", "train"\. Choose one with --split'):
        converted(path, tmp_path)
    assert converted(path, tmp_path, split="test") == SAMPLES["beir"].examples
    assert [row["id"] for row in converted(path, tmp_path, split="train")] == ["q3"]
    with pytest.raises(InputError, match=r"qrels/dev\.tsv"):
        converted(path, tmp_path, split="dev")
