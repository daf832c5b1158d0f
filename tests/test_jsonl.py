"""A file is strict JSON Lines or is refused, with every problem and its line."""

import gzip
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqa.data import load_examples, open_passages
from rqa.errors import InputError
from rqa.jsonl import DataError, open_data, parse_object, read_rows

ROW = b'{"page_content": "a"}'
BAD = b'{"page_content": 1, "metadata": 2}'


def problems(*lines):
    with pytest.raises(DataError) as caught:
        read(b"\n".join(lines))
    return str(caught.value).splitlines()


def read(data):
    """Return the texts of the rows of `data`, and look at their metadata."""
    return [
        row.text("page_content") for _, _, row in read_rows("f.jsonl", data) if row.object("metadata", optional=True)
    ]


def test_collects_all_problems_of_all_rows():
    assert problems(BAD, ROW, b"{", b"", b"", b'{"page_content": ""}', ROW, b"[]", ROW, b"", b"") == [
        'f.jsonl:1: field "metadata": expected object, found number',
        'f.jsonl:1: field "page_content": expected text, found number',
        "f.jsonl:3: not JSON at column 2: Expecting property name enclosed in double quotes",
        "f.jsonl:4: blank line",
        "f.jsonl:5: blank line",
        'f.jsonl:6: field "page_content": expected text, found empty text',
        "f.jsonl:8: expected object, found list",
    ]


@pytest.mark.parametrize(("count", "last"), [(20, "f.jsonl:20: blank line"), (21, "and 1 more"), (25, "and 5 more")])
def test_shows_the_first_twenty(count, last):
    found = problems(*[b""] * count, ROW)
    assert len(found) == min(count, 21)
    assert found[19].startswith("f.jsonl:20: ")
    assert found[-1] == last


def test_an_error_survives_the_way_between_processes():
    with pytest.raises(DataError) as caught:
        read(BAD)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_path_is_the_one_that_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.jsonl").write_bytes(BAD)
    for load in (load_examples, open_passages):
        with pytest.raises(DataError, match=r"^\./f\.jsonl:1: "):
            load("./f.jsonl")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"[]", "expected object, found list"),
        (b"null", "expected object, found null"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": [-Infinity]}', "-Infinity is not JSON"),
        (b'{"a": 1, "b": 2, "a": 1}', 'field "a" stands twice in one object'),
        (b'{"x": [{"a": 1, "a": 2}]}', 'field "a" stands twice in one object'),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"a": [{"\\uDFFF": 1}]}', "half of a surrogate pair"),
        (b'{"\\ud800": 1, "\\ud800": 1}', 'field "\\ud800" stands twice'),
        (b'{"a": "\xff"}', "not UTF-8 at byte 8 of the line"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8 at byte 8 of the line"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8 at byte 1 of the line"),
        (b'{"a": "\x00"}', "not JSON at column 8"),
        (b"{'a': 1}", "not JSON at column 2"),
        (b'{"a": 1} {"a": 1}', "not JSON at column 10"),
        (b'\xef\xbb\xbf{"a": 1}', "not JSON at column 1"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "Exceeds the limit"),
        (b"", "blank line"),
        (b" \t\r", "blank line"),
    ],
)
def test_refuses_what_is_no_strict_json(line, problem):
    (found,) = problems(ROW, line, ROW)
    assert found.startswith(f"f.jsonl:2: {problem}")


def test_lines_end_at_newlines_only(tmp_path):
    one, two = '{"page_content": "one\u2028two\u0085three"}'.encode(), ROW
    path = tmp_path / "f.jsonl"
    for data in (
        one + b"\n" + two,
        one + b"\r\n" + two + b"\r\n",
        b"\xef\xbb\xbf" + one + b"\n" + two + b"\n\r\n \n",
    ):
        path.write_bytes(data)
        assert read(data) == read(open_data(path)) == ["one\u2028two\u0085three", "a"]
        assert [passage.text for passage in open_passages(path)] == read(data)


@given(st.dictionaries(st.text(), st.text() | st.floats(allow_nan=False, allow_infinity=False), max_size=4))
def test_takes_all_json_that_is_strict(values):
    assert parse_object(json.dumps(values).encode()) == values
    assert parse_object(json.dumps(values, ensure_ascii=False).encode()) == values


@pytest.mark.parametrize("read", [load_examples, open_passages])
def test_refuses_files_that_cannot_be_read(tmp_path, read):
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "file.json").write_text("{}")
    (tmp_path / "plain.jsonl.gz").write_text("{}\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 99)[:-9])
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "blank.jsonl").write_bytes(b"\n\n")
    for name, reason in {
        "missing.jsonl": "No such file",
        "folder.jsonl": "Is a directory",
        "file.json": "expected a file whose name ends in .jsonl or .jsonl.gz",
        "plain.jsonl.gz": "not gzip data",
        "cut.jsonl.gz": "not gzip data, or damaged",
        "empty.jsonl": "the file is empty",
        "blank.jsonl": "the file is empty",
    }.items():
        with pytest.raises(InputError) as caught:
            read(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {reason}")
