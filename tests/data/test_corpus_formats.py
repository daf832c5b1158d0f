"""Formats of a corpus: columns of tab-separated and Parquet files, folders of shards, fields by name."""

import gzip
import json
import sys

import pytest

from rqa.data.corpus import open_passages
from rqa.errors import InputError

ROWS = [
    ("1", 'A "b", c', "T"),
    ("2", "\u00e9 \U0001f600", ""),
    ("3", "C", "Sea"),
    ("x", "C", "Bee"),
    ("5", "D\\n", "D"),
]


def content(store):
    return [(each.text, each.title, each.sources) for each in store]


def quoted_cell(text):
    """Return a cell as a writer of CSV does: in quotes if it has some, which are doubled."""
    return '"' + text.replace('"', '""') + '"' if '"' in text else text


def tsv(rows, header=("id", "text", "title")):
    return "".join("\t".join(map(quoted_cell, cells)) + "\n" for cells in [header, *rows]).encode()


def json_rows(rows=ROWS):
    return [{"page_content": text, "metadata": {"title": title, "source": name}} for name, text, title in rows]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def plain(tmp_path):
    (tmp_path / "plain.jsonl").write_bytes(lines(json_rows()))
    return open_passages(tmp_path / "plain.jsonl")


def write_parquet(path, rows):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


COLUMNS = [dict(zip(("id", "text", "title"), row, strict=True)) for row in ROWS]


@pytest.mark.parametrize(
    "form", ["psgs.tsv", "psgs.tsv.gz", "crlf.tsv", "c.parquet", "d.parquet", "c.jsonl.gz", "shards"]
)
def test_every_format_has_the_same_passages_also_cached(tmp_path, plain, form):
    path = tmp_path / form
    if form == "shards":
        path.mkdir()
        (path / "a-00.jsonl").write_bytes(lines(json_rows(ROWS[:2])).rstrip(b"\n"))
        (path / "a-01.jsonl.gz").write_bytes(gzip.compress(lines(json_rows(ROWS[2:3]))))
        (path / "b.tsv").write_bytes(tsv(ROWS[3:4]))
        (path / "c.tsv").write_bytes(tsv(ROWS[4:]))
        (path / "README.md").write_text("text")
    elif form == "c.parquet":
        write_parquet(path, COLUMNS)
    elif form == "d.parquet":
        write_parquet(path, json_rows())
    elif form == "c.jsonl.gz":
        path.write_bytes(gzip.compress(lines(json_rows())))
    else:
        data = tsv(ROWS).replace(b"\n", b"\r\n" if form == "crlf.tsv" else b"\n")
        path.write_bytes(gzip.compress(data) if form.endswith(".gz") else data)
    for cache_dir in (None, tmp_path / "cache", tmp_path / "cache"):
        store = open_passages(path, cache_dir=cache_dir)
        assert content(store) == content(plain)
        assert (store.fingerprint, store.duplicates) == (plain.fingerprint, plain.duplicates)
        assert [store.row_of(each.id) for each in plain] == [*range(len(plain))]


@pytest.mark.parametrize("form", ["c.jsonl", "c.tsv", "c.parquet"])
def test_fields_have_other_names(tmp_path, plain, form):
    path, rows = tmp_path / form, [{"source": name, "body": text, "head": title} for name, text, title in ROWS]
    if form == "c.parquet":
        write_parquet(path, rows)
    elif form == "c.tsv":
        path.write_bytes(tsv(ROWS, ("source", "body", "head")))
    else:
        path.write_bytes(lines([row | {"metadata": {"source": row["source"]}} for row in rows]))
    store = open_passages(path, text_field="body", title_field="head", cache_dir=tmp_path / "cache")
    assert content(store) == content(plain)
    with pytest.raises(InputError, match=r"titel"):
        open_passages(path, text_field="body", title_field="titel", cache_dir=tmp_path / "cache")
    with pytest.raises(InputError, match=r"text|page_content"):
        open_passages(path, cache_dir=tmp_path / "cache")


def test_bad_rows_of_columns_have_file_and_line(tmp_path):
    path = tmp_path / "c.tsv"
    path.write_bytes(tsv(ROWS[:1]) + b'2\tB\n3\t"C\tT\n\n4\t \tT\n5\t\xff\tT\n6\tE\tT\n')
    with pytest.raises(InputError) as caught:
        open_passages(path)
    assert str(caught.value).splitlines()[:4] == [
        f"{path}:3: expected 3 cells between tabs, got 2",
        f"{path}:4: not a line of quoted cells: unexpected end of data",
        f"{path}:5: blank line",
        f"{path}:7: not UTF-8 at byte 3 of the line",
    ]
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "a.jsonl").write_bytes(lines(json_rows()))
    (shards / "b.jsonl").write_bytes(lines(json_rows()) + b'{"page_content": 1}\n')
    with pytest.raises(InputError, match=r"b\.jsonl:6: field \"page_content\": expected text, got number"):
        open_passages(shards)


def test_a_row_of_parquet_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "c.parquet"
    write_parquet(path, [{"text": 1}, {"text": 2}])
    with pytest.raises(InputError, match=r'c\.parquet:1: field "text": expected text, got number'):
        open_passages(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"c\.parquet: expected a Parquet file"):
        open_passages(path)


def test_parquet_needs_its_package(tmp_path, monkeypatch):
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r'pyarrow is not installed.*pip install "\.\[parquet\]"'):
        open_passages(tmp_path / "c.parquet")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("c.tsv", b"1\tA\tT\n", r'expected a column "text", got "1", "A", "T". Set --text_field'),
        ("c.tsv", b"", "expected at least one row"),
        ("c.tsv", b"id\ttext\n", "expected at least one row"),
        ("c.tsv", b"text\ttext\nA\tB\n", "different column names"),
        ("c.tsv", b"PAR1", "got Parquet"),
    ],
)
def test_other_files_are_refused(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        open_passages(tmp_path / name)


def test_a_folder_without_a_corpus_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r'expected a folder with files in \.jsonl, .*got "notes\.txt"'):
        open_passages(tmp_path)


def test_a_damaged_text_of_a_packed_file_is_an_error_and_then_read_again(tmp_path, plain):
    path, cache = tmp_path / "c.jsonl.gz", tmp_path / "cache"
    path.write_bytes(gzip.compress(lines(json_rows())))
    open_passages(path, cache_dir=cache)
    [text] = cache.glob("*/text-*")
    text.write_bytes(text.read_bytes().replace(b"Sea", b"Air"))
    assert content(open_passages(path, cache_dir=cache)) == content(plain)
