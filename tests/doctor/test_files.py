"""files: the doctor reads past bad rows, and lists them with the fields that are not read."""

from pathlib import Path

import pytest
from lamps import doc, row
from world import write_jsonl

from rqa.data.file_report import DataError
from rqa.doctor.files import read_corpus, read_splits
from rqa.errors import InputError

BAD = row(2, question="")


def read(folder, *files, **options):
    paths = [write_jsonl(folder / f"{i}.jsonl", rows) if rows else "" for i, rows in enumerate(files)]
    splits, findings = read_splits(*paths, **{"gold_required": True, **options})
    return splits, {(finding.name, finding.split): finding for finding in findings if finding.count}


def test_bad_rows_are_findings_and_the_others_are_examples(tmp_path):
    splits, findings = read(tmp_path, [row(1), BAD, row(3)], [], [BAD, row(4)], max_bad_rows=0)
    assert {split: [example.id for example in examples] for split, examples in splits.items()} == {
        "train": ["0:1", "0:3"],
        "eval": [],
        "test": ["2:2"],
    }
    finding = findings["bad_row", "train"]
    assert (finding.count, finding.total, finding.severity) == (1, 3, "problem")
    assert finding.places == (f'{tmp_path}/0.jsonl:2: field "question": expected text, got empty text',)
    assert findings["bad_row", "test"].total == 2


@pytest.mark.parametrize(("allowed", "severity"), [(1, "problem"), (2, "warning")])
def test_bad_rows_that_training_leaves_out_are_a_warning(tmp_path, allowed, severity):
    _, findings = read(tmp_path, [row(1), BAD, BAD], [], [], max_bad_rows=allowed)
    assert findings["bad_row", "train"].severity == severity


def test_a_file_of_bad_rows_has_no_examples(tmp_path):
    splits, findings = read(tmp_path, [BAD], [row(1)], [], max_bad_rows=5)
    assert (splits["train"], len(splits["eval"])) == ([], 1)
    assert (findings["bad_row", "train"].count, findings["bad_row", "train"].severity) == (1, "problem")


def test_fields_that_are_not_read_are_findings_with_their_counts(tmp_path):
    rows = [row(1, chat_histroy=[1]), row(2, chat_histroy=[1], hard_negatives=[1], dataset="x"), row(3, dataset="x")]
    _, findings = read(tmp_path, rows, [], [])
    misnamed, unread = findings["misnamed_field", "train"], findings["unread_field", "train"]
    assert (misnamed.count, misnamed.total, misnamed.severity) == (2, 3, "warning")
    assert [place.split(",")[0] for place in misnamed.places] == [
        '"chat_histroy" in 2 rows',
        '"hard_negatives" in 1 row',
    ]
    assert '(is "hard_neg_docs" meant?)' in misnamed.places[1]
    assert (unread.count, unread.severity, unread.places) == (2, "note", ('"dataset" (2 rows)',))


def test_gold_is_required_of_each_split_as_in_training(tmp_path):
    without_gold = {"question": "Who?", "gold_answer": "I."}
    for required, expected in (((True, False, False), {"train"}), (True, {"train", "test"}), (False, set())):
        _, findings = read(tmp_path, [without_gold, row(1)], [], [without_gold, row(2)], gold_required=required)
        assert {split for name, split in findings if name == "bad_row"} == expected


def test_bad_passages_of_a_corpus_are_findings(tmp_path):
    path = write_jsonl(tmp_path / "corpus.jsonl", [doc("A lamp."), {"contents": "A bell."}, doc("A rope.")])
    corpus, findings = read_corpus(path)
    assert [passage.text for passage in corpus] == ["A lamp.", "A rope."]
    [bad] = [finding for finding in findings if finding.count]
    assert (bad.name, bad.split, bad.severity, bad.total) == ("bad_row", "corpus", "problem", 3)
    assert '(is "contents" meant?)' in bad.places[0]
    assert read_corpus("") == (None, [])


def test_files_without_any_row_are_errors(tmp_path):
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"contents": "A bell."}])
    with pytest.raises(DataError):
        read_corpus(bad)
    Path(tmp_path, "none.jsonl").write_text("")
    for path in (f"{tmp_path}/none.jsonl", f"{tmp_path}/missing.jsonl"):
        with pytest.raises(InputError):
            read_corpus(path)
        with pytest.raises(InputError):
            read_splits(path, "", "", gold_required=True)
