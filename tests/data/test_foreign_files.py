"""Files of another format are one message that names it, not one for each line."""

import json

import pytest

from rqa.data.corpus import open_passages
from rqa.data.records import load_examples
from rqa.errors import InputError

ROW = {"question": "Who?", "gold_answer": "I.", "gold_docs": [], "page_content": "A"}
PRETTY = json.dumps([ROW] * 9, indent=2).encode()


def message(tmp_path, name, content, read=load_examples):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{path}:")
    return lines[0].removeprefix(f"{path}:")


@pytest.mark.parametrize("read", [load_examples, open_passages])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (PRETTY, ["array", "jq -c '.[]'"]),
        (b"\xef\xbb\xbf" + PRETTY, ["array", "jq -c '.[]'"]),
        (b"\n" + PRETTY, ["array", "jq -c '.[]'"]),
        (json.dumps([ROW] * 2).encode(), ["array", "jq -c '.[]'"]),
        (json.dumps(ROW, indent=2).encode(), ["over 6 lines", "jq -c"]),
        (b"\xef\xbb\xbf" + json.dumps(ROW, indent=2).encode() * 3, ["over 6 lines"]),
        (b"question,gold_answer\nWho?,I.\n", ['"question,gold_answer"', "CSV"]),
        (b'"question"\t"gold_answer"\nWho?\tI.\n', ["TSV"]),
        (b"question;gold_answer\n", ["CSV with semicolons"]),
        (b"PAR1\x15\x04\n,", ["Parquet", "read_parquet"]),
        (b"PK\x03\x04\n{}", ["ZIP"]),
        (b"\x1f\x8b\x08\n", ["gzip", ".jsonl.gz"]),
        (b"\x80\x04]\x8c\n", ["pickle", ".pkl"]),
        (b"SQLite format 3\x00\n", ["SQLite"]),
        (json.dumps(ROW).encode("utf-16"), ["UTF-16", "UTF-8"]),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ["Git LFS", "git lfs pull"]),
        (b"<!DOCTYPE html>\n<html>\n", ["HTML"]),
    ],
)
def test_another_format_in_a_file_of_lines(tmp_path, read, content, words):
    text = message(tmp_path, "train.jsonl", content, read)
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps({"version": "2.0", "data": [ROW]}).encode(), ['"version", "data"', 'Its rows may be in "data"']),
        (json.dumps({"kind": 1, "rows": {}}).encode(), ['"kind", "rows"', "another format"]),
        (json.dumps({"data": [{"paragraphs": []}]}).encode(), ["recipes/convert.py"]),
        (json.dumps(ROW).encode() + b"\n" + json.dumps(ROW).encode(), ["Name a file of lines .jsonl"]),
        (b"question,gold_answer\n", ['got "q"']),
        (b"PAR1\x15\x04", ["Parquet"]),
        (b"{" * 100_000, ['got "{"']),
    ],
)
def test_another_format_in_a_file_of_one_array(tmp_path, content, words):
    text = message(tmp_path, "train.json", content)
    assert all(word in text for word in words), text


@pytest.mark.parametrize("content", [[{"question": "Who?", "answer": "I."}], {"data": [{"paragraphs": []}]}])
def test_the_message_names_the_recipe_for_a_format_that_it_converts(tmp_path, content):
    text = json.dumps(content, indent=1).encode()
    for name in ("train.jsonl", "train.json") if isinstance(content, dict) else ("train.jsonl",):
        assert "recipes/convert.py" in message(tmp_path, name, text)


@pytest.mark.parametrize("join", [b"\n", b""])
def test_two_files_that_were_joined_are_one_problem_at_the_second_mark(tmp_path, join):
    line = b"\xef\xbb\xbf" + json.dumps(ROW).encode()
    text = message(tmp_path, "train.jsonl", line + join + line + b"\n" + json.dumps(ROW).encode())
    assert text.startswith(f"{2 if join else 1}: not JSON at column ")
    assert "byte order mark" in text
    assert "EF BB BF" in text


def test_rows_that_only_resemble_another_format_are_problems_of_their_lines(tmp_path):
    """A list, or a broken object, on the first line: the other lines count."""
    for first in ([], [1], [[]]):
        text = message(tmp_path, "x.jsonl", json.dumps(first).encode() + b"\n" + json.dumps(ROW).encode())
        assert text == "1: expected object, got list"
    broken = json.dumps(ROW).encode()[:-1]
    text = message(tmp_path, "x.jsonl", broken + b"\n" + json.dumps(ROW).encode())
    assert text.startswith("1: not JSON at ")
