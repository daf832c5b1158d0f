"""JSON Lines and arrays: strict JSON only, and every problem has its place."""

import gzip
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqa.data.corpus import open_passages
from rqa.data.data_file import open_data
from rqa.data.file_report import DataError
from rqa.data.jsonl import parse_object, read_array, read_rows
from rqa.data.localrqa import read_documents
from rqa.data.records import load_examples
from rqa.errors import InputError

ROW = b'{"page_content": "a"}'
BAD = b'{"page_content": 1, "metadata": 2}'


def problems(*lines):
    with pytest.raises(DataError) as caught:
        read(b"\n".join(lines))
    return str(caught.value).splitlines()


def read(data):
    """Return the texts of the rows of `data`, and read their metadata."""
    return [row.text("page_content") for *_, row in read_rows("f.jsonl", data) if row.object("metadata", optional=True)]


def test_collects_all_problems_of_all_rows():
    assert problems(BAD, ROW, b"{", b"", b"", b'{"page_content": ""}', ROW, b"[]", ROW, b"", b"") == [
        'f.jsonl:1: field "metadata": expected object, got number',
        'f.jsonl:1: field "page_content": expected text, got number',
        "f.jsonl:3: not JSON at column 2: Expecting property name enclosed in double quotes",
        "f.jsonl:4: blank line",
        "f.jsonl:5: blank line",
        'f.jsonl:6: field "page_content": expected text, got empty text',
        "f.jsonl:8: expected object, got list",
    ]


@pytest.mark.parametrize(("count", "last"), [(20, "f.jsonl:20: blank line"), (21, "and 1 more"), (25, "and 5 more")])
def test_shows_the_first_twenty(count, last):
    lines = problems(*[b""] * count, ROW)
    assert len(lines) == min(count, 21)
    assert lines[19].startswith("f.jsonl:20: ")
    assert lines[-1] == last


def test_an_error_can_be_pickled():
    with pytest.raises(DataError) as caught:
        read(BAD)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_messages_have_the_path_unchanged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.jsonl").write_bytes(BAD)
    for load in (load_examples, open_passages):
        with pytest.raises(DataError, match=r"^\./f\.jsonl:1: "):
            load("./f.jsonl")


INVALID_OBJECTS = [
    (b"[]", "expected object, got list"),
    (b"null", "expected object, got null"),
    (b'{"a": NaN}', "NaN is not JSON"),
    (b'{"a": [-Infinity]}', "-Infinity is not JSON"),
    (b'{"a": 1, "b": 2, "a": 1}', 'field "a" appears twice in one object'),
    (b'{"x": [{"a": 1, "a": 2}]}', 'field "a" appears twice in one object'),
    (b'{"a": "\\ud800"}', "half of a surrogate pair"),
    (b'{"a": [{"\\uDFFF": 1}]}', "half of a surrogate pair"),
    (b'{"\\ud800": 1, "\\ud800": 1}', 'field "\\ud800" appears twice'),
    (b'{"a": ' + b"9" * 5_000 + b"}", "Exceeds the limit"),
]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        *INVALID_OBJECTS,
        (b'{"a": "\xff"}', "not UTF-8 at byte 8 of the line"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8 at byte 8 of the line"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8 at byte 1 of the line"),
        (b'{"a": "\x00"}', "not JSON at column 8"),
        (b"{'a': 1}", "not JSON at column 2"),
        (b'{"a": 1} {"a": 1}', "not JSON at column 10"),
        (b'\xef\xbb\xbf{"a": 1}', "not JSON at column 1"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b"", "blank line"),
        (b" \t\r", "blank line"),
    ],
)
def test_refuses_lines_that_are_not_strict_json(line, problem):
    (reported,) = problems(ROW, line, ROW)
    assert reported.startswith(f"f.jsonl:2: {problem}")


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
def test_reads_all_strict_json(values):
    assert parse_object(json.dumps(values).encode()) == values
    assert parse_object(json.dumps(values, ensure_ascii=False).encode()) == values


# Arrays


def items(data):
    return [(index, row._values) for index, row in read_array("f.json", data)]


def array_problems(data):
    with pytest.raises(DataError) as caught:
        items(data)
    return str(caught.value).splitlines()


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.booleans())), min_size=1))
def test_reads_all_arrays_of_strict_objects(rows):
    for options in ({}, {"indent": 4}, {"ensure_ascii": False}, {"separators": ("\r,\t", "\n:")}):
        text = json.dumps(rows, **options)
        for data in (text, f"\ufeff{text}\n", f" \r\n{text}\t "):
            assert items(data.encode()) == list(enumerate(rows))


@pytest.mark.parametrize(("item", "problem"), INVALID_OBJECTS)
def test_arrays_and_lines_have_the_same_problems(item, problem):
    first, second, third = array_problems(b"[" + b", ".join([ROW, item, ROW, item, b"3"]) + b"]")
    assert first.startswith(f"f.json[1]: {problem}")
    assert second.startswith(f"f.json[3]: {problem}")
    assert third == "f.json[4]: expected object, got number"
    assert problems(ROW, item)[0].removeprefix("f.jsonl:2") == first.removeprefix("f.json[1]")


def test_problems_of_fields_are_in_order_with_the_others():
    data = b"[" + b",".join([BAD, ROW, b"null", BAD]) + b"]"
    with pytest.raises(DataError) as caught:
        [row.text("page_content") for _, row in read_array("f.json", data)]
    assert str(caught.value).splitlines() == [
        'f.json[0]: field "page_content": expected text, got number',
        "f.json[2]: expected object, got null",
        'f.json[3]: field "page_content": expected text, got number',
    ]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"[{}, ]", "[1]: not JSON at column 6: Expecting value"),
        (b"[{}, {}", "[2]: not JSON at column 8: Expecting ',' delimiter"),
        (b"[{},\n {} {}]", "[2]: not JSON at line 2, column 5: Expecting ',' delimiter"),
        (b"[{}]\n{}", "[1]: not JSON at line 2, column 1: Extra data"),
        (b"[{}, {'a': 1}, {}]", "[1]: not JSON at column 7: Expecting property name enclosed in double quotes"),
        (b'[{}, {"a": NaN, "b": }, {}]', "[1]: NaN is not JSON"),
        (b'[{}, {"a": "\x00"}]', "[1]: not JSON at column 13: Invalid control character at"),
        (b'[{}, {"a": ' + b"[" * 100_000, "[1]: nested too deeply"),
        (b'[{}, {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]", "[1]: nested too deeply"),
    ],
)
def test_broken_syntax_has_a_place_and_ends_an_array(data, problem):
    assert array_problems(data) == [f"f.json{problem}"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "expected at least one row"),
        (b" \n\xef", "not UTF-8 at byte 3 of the file"),
        (b"\xef\xbb\xbf\n", "expected at least one row"),
        (b" [\n] ", "expected at least one row"),
        (ROW + b"\n" + ROW, 'expected "[" and objects, got "{". Name a file of lines .jsonl'),
        (b'[{"a": "\xed\xa0\x80"}]', "not UTF-8 at byte 9 of the file"),
        (json.dumps([{}]).encode("utf-16"), "expected JSON, got UTF-16"),
    ],
)
def test_refuses_a_file_that_is_not_an_array(data, reason):
    with pytest.raises(InputError) as caught:
        items(data)
    assert str(caught.value).startswith(f"f.json: {reason}")


def test_refuses_an_array_truncated_at_any_byte():
    whole = b'[{"a": {"b": [1, "x", null]}}, {"a": "\\u00e9"}]'
    assert len(items(whole)) == 2
    for end in range(len(whole)):
        with pytest.raises(InputError):
            items(whole[:end])


# Files


@pytest.mark.parametrize("read", [load_examples, open_passages])
def test_refuses_files_that_cannot_be_read(tmp_path, read):
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "file.txt").write_text("{}")
    (tmp_path / "model.jsonl.gz").write_text("{}\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 99)[:-9])
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "blank.jsonl").write_bytes(b"\n\n")
    for name, reason in {
        "missing.jsonl": "No such file",
        "folder.jsonl": "Is a directory",
        "file.txt": "ends in .jsonl or .jsonl.gz",
        "model.jsonl.gz": "expected gzip data",
        "cut.jsonl.gz": "expected gzip data",
        "empty.jsonl": "expected at least one row",
        "blank.jsonl": "expected at least one row",
    }.items():
        with pytest.raises(InputError) as caught:
            read(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: expected ")
        assert reason in str(caught.value)


@pytest.mark.parametrize("name", ["f.jsonl", "f.json", "f.pkl", "f.jsonl.gz"])
def test_reading_shows_progress(tmp_path, monkeypatch, name):
    """Every reader logs its position while it is slow."""
    shown = []
    monkeypatch.setattr("rqa.terminal.Progress.__exit__", lambda self, *_: shown.append(self) or self._ended.set())
    rows = [json.loads(ROW)] * 3
    path = tmp_path / name
    if name == "f.json":
        path.write_text(json.dumps(rows))
        list(read_array(path, open_data(path)))
    elif name == "f.pkl":
        path.write_bytes(pickle.dumps([]))
        read_documents(path)
    else:
        text = b"\n".join([ROW] * 3)
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
        open_passages(path)
    assert {f"{path}" in progress.description for progress in shown} == {True}
    if name.startswith("f.jsonl"):
        assert (shown[-1].done, shown[-1].total) == (len(text), len(text))
    elif name == "f.json":
        assert shown[-1].done == 3
