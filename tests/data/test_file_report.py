"""FileReport: rows with problems are raised or left out, never in silence; fields that are not read are logged."""

import logging

import pytest

from rqa.data.corpus import open_passages
from rqa.data.file_report import DataError
from rqa.data.records import load_examples, load_splits, read_examples

GOOD = {"question": "Who rings the bell?", "gold_answer": "The guard.", "gold_docs": []}
BAD = {**GOOD, "question": ""}


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.INFO)

    def logged():
        """Return the lines of the log with their levels, and forget them."""
        lines = [f"{record.levelname} {record.getMessage()}" for record in caplog.records]
        caplog.clear()
        return lines

    return logged


# Bad rows


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz"])
def test_up_to_max_bad_rows_are_left_out_and_named(write, logged, name):
    path = write(GOOD, BAD, b"{", GOOD, {**GOOD, "id": "train:4"}, name=name)
    for allowed in (0, 2):
        with pytest.raises(DataError) as caught:
            load_examples(path, max_bad_rows=allowed)
        assert [f"{path}:{i}: " in str(caught.value) for i in (1, 2, 3, 4, 5)] == [False, True, True, False, True]
    assert "3 of 5 rows" in str(caught.value)
    assert "--max_bad_rows allows 2" in str(caught.value)
    assert logged() == []
    for examples in (load_examples(path, max_bad_rows=3), read_examples(path)[0]):
        assert [example.id for example in examples] == ["train:1", "train:4"]
    [line] = logged()
    assert line.startswith(f"WARNING {path}: 3 of 5 rows are left out: {path}:2: ")
    assert f"; {path}:3: not JSON" in line
    assert f"; {path}:5: " in line


def test_a_row_with_many_problems_is_one_bad_row(write):
    path = write({**BAD, "gold_answer": 3, "id": True}, GOOD)
    assert len(load_examples(path, max_bad_rows=1)) == 1
    _, report = read_examples(path)
    assert (report.num_bad_rows, report.num_rows, report.error.count) == (1, 2, 3)


def test_a_file_without_a_good_row_is_an_error_at_any_number(write):
    with pytest.raises(DataError):
        load_examples(write(BAD, BAD), max_bad_rows=100)


@pytest.mark.parametrize("read", [load_examples, read_examples, open_passages])
def test_a_long_file_without_a_good_row_is_not_read_to_its_end(write, monkeypatch, read):
    """A gzip bomb would take hours."""
    monkeypatch.setattr("rqa.data.file_report._MAX_FIRST_BAD_ROWS", 30)
    bad = {**BAD, "page_content": 1}
    with pytest.raises(DataError, match=r"and 10 more\n.*the first 30 rows are all bad: the rest is not read$"):
        read(write(*[bad] * 40))
    if read is not read_examples:  # it reports all rows
        with pytest.raises(DataError, match=r"and 20 more"):
            read(write(GOOD | {"page_content": "A."}, *[bad] * 40))


def test_fields_of_passages_that_are_left_out_are_not_named(write, logged):
    ctxs = [{"text": "", "title": "Gate", "id": "3"}, {"text": "The guard.", "title": "Bell"}]
    load_examples(write({**GOOD, "ctxs": ctxs}))
    [line] = logged()
    assert "passages without text are left out of ctxs" in line


def test_rows_after_broken_syntax_are_never_left_out(write):
    """The number of rows that an array loses there is unknown."""
    path = write(b'[{"question": "Who?", "gold_answer": "I.", "gold_docs": []}, {"question": }, {}]', name="x.json")
    with pytest.raises(DataError):
        load_examples(path, max_bad_rows=100)
    examples, report = read_examples(path)
    assert (len(examples), report.is_cut) == (1, True)


def test_a_few_bad_rows_of_many_are_reported_with_the_flag(write):
    path = write(*[GOOD] * 199, BAD)
    with pytest.raises(DataError) as caught:
        load_examples(path)
    assert str(caught.value).splitlines()[1].endswith("leave them out with --max_bad_rows 1")
    assert "1 of 200 rows" in str(caught.value)


def test_many_bad_rows_need_little_memory(write):
    _, report = read_examples(write(*[{**BAD, f"{i}": 1} for i in range(2500)], GOOD))
    assert (report.num_bad_rows, len(report.bad_rows), len(report.error.problems)) == (2500, 1000, 20)
    assert len(report.unread_fields) == 1000


def test_a_bad_passage_of_a_corpus_is_an_error_and_listed_for_the_doctor(write):
    from rqa.data.file_report import FileReport

    path = write({"page_content": "A"}, {"page_content": 1}, {"page_content": "B"})
    with pytest.raises(DataError):
        open_passages(path)
    report = FileReport(path)
    assert [passage.text for passage in open_passages(path, report)] == ["A", "B"]
    assert report.bad_rows == [f'{path}:2: field "page_content": expected text, got number']


# Missing fields


def test_rows_that_lack_the_same_fields_have_one_line(write):
    rows = [{"question": "Who?", "golden_answers": ["I."], "golden_docs": []}] * 30
    path = write(*rows)
    with pytest.raises(DataError) as caught:
        load_examples(path)
    first, last = str(caught.value).splitlines()
    assert first.startswith(f'{path}:1: fields "gold_answer", "gold_docs": ')
    assert 'is "golden_answers" meant for "gold_answer"?' in first
    assert first.endswith("; the same in 29 more rows")
    assert last == f"{path}: no row has the required fields: the file looks like another format"
    with pytest.raises(DataError) as caught:
        load_examples(write(*rows, GOOD))
    assert len(str(caught.value).splitlines()) == 1


# Fields that are not read


def test_fields_that_are_not_read_are_logged_once_for_the_file(write, logged):
    turns = [{"speaker": "user", "message": "Hello.", "time": 1}]
    rows = [
        {**GOOD, "chat_histroy": turns, "dataset": "x"},
        {**GOOD, "hard_negative_docs": [{"page_content": "A"}], "dataset": "x"},
        {**GOOD, "chat_history": turns, "gold_docs": [{"page_content": "A", "metadata": {"sorce": "a.html"}}]},
        {**GOOD, "chat_histroy": turns},
    ]
    path = write(*rows)
    load_examples(path)
    warning, info = logged()
    assert warning.startswith(f"WARNING {path}: ")
    for part in (
        f'"chat_histroy" in 2 rows, first {path}:1 (is "chat_history" meant?)',
        f'"hard_negative_docs" in 1 row, first {path}:2 (is "hard_neg_docs" meant?)',
        f'"gold_docs[].metadata.sorce" in 1 row, first {path}:3 (is "gold_docs[].metadata.source" meant?)',
    ):
        assert part in warning
    assert info.startswith(f"INFO {path}: ")
    assert '"dataset" (2 rows)' in info
    assert '"chat_history[].time" (1 row)' in info


def test_files_of_localrqa_and_fusion_in_decoder_are_read_without_a_word(write, logged):
    passage = {"page_content": "A", "fmt_content": "Content: A", "metadata": {"source": "a", "seq_num": 3, "text": "A"}}
    localrqa = {**GOOD, "gold_docs": [passage], "hard_neg_docs": [passage], "chat_history": []}
    ctxs = [{"id": "1", "title": "T", "text": "A", "score": "2.5", "hasanswer": True}]
    fid = {"id": "0", "question": "Who?", "target": "I.", "answers": ["I."], "ctxs": ctxs}
    for row in (localrqa, fid):
        load_examples(write(row))
    open_passages(write(passage))
    assert logged() == []


def test_the_error_of_a_bad_row_names_the_field_that_explains_it(write):
    path = write({**GOOD, "gold_answer": "", "is_unanswerable": True})
    with pytest.raises(DataError) as caught:
        load_examples(path)
    first, second = str(caught.value).splitlines()
    assert first == f'{path}:1: field "gold_answer": expected text, got empty text'
    assert '"is_unanswerable" in 1 row' in second
    assert '(is "unanswerable" meant?)' in second


def test_a_corpus_names_fields_that_are_not_read(write, logged):
    open_passages(write({"page_content": "A", "titel": "T", "metdata": {"title": "T"}}))
    warning, info = logged()
    assert '"metdata"' in warning
    assert '"metadata"' in warning
    assert '"titel" (1 row)' in info


def test_messages_and_log_have_no_control_characters(write, logged):
    evil = "\x1b]0;owned\x07\n"
    rows = [{**GOOD, "id": f"q{evil}", f"field{evil}": 1}, {**GOOD, "id": f"q{evil}"}]
    rows += [{**GOOD, "chat_history": [{"speaker": f"Ann{evil}", "message": "m"}]}, {f"question{evil}": 1}]
    path = write(GOOD, *rows)
    with pytest.raises(DataError) as caught:
        load_examples(path)
    load_examples(path, max_bad_rows=9)
    for line in [*str(caught.value).splitlines(), *logged()]:
        assert line.isprintable()
    assert len(str(caught.value).splitlines()) == 3


def test_gold_passages_can_be_required_for_one_file_of_a_run(write):
    without_gold = {"question": "Who?", "gold_answer": "I."}
    train, other = write(GOOD), write(without_gold, name="eval.jsonl")
    for required, paths in ((True, (train, other)), ((False, True), (other, other)), ((True, False), (other, other))):
        with pytest.raises(DataError, match="gold_docs"):
            load_splits(*paths, gold_required=required)
    [[first], [second], third] = load_splits(train, other, "", gold_required=(True, False, False))
    assert (first.gold_passages, second.gold_passages, third) == ((), (), [])
    assert len(load_splits(other, other, gold_required=False)) == 2
