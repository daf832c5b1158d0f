"""The corpus file: the same bytes for the same folder, whole or not at all, past files that cannot be read."""

import json
import os

import pytest
from tiny_documents import docx, encrypted, pdf

from rqa.data.corpus import open_passages
from rqa.documents import writer
from rqa.documents.files import list_files
from rqa.documents.splitter import Splitter
from rqa.documents.writer import previous_passages, write_corpus
from rqa.errors import InputError

GOOD = {
    "lamps.md": b"# Oil\n\nThe lamp burns oil.\n\n# Gas\n\nThe lamp burns gas.\n",
    "sub/page.html": b"<h1>Page</h1><p>A page of text.</p>",
    "sub/notes.txt": b"One note.\n\nAnother note.",
    "manual.rst": b"Manual\n======\n\nRead it.\n",
    "paper.pdf": pdf(["The first page."], ["The second page."]),
    "letter.docx": docx(("Heading 1", "Letter"), ("", "Dear reader.")),
}
BAD = {
    "bad/broken.pdf": pdf(["text"])[:60],
    "bad/locked.pdf": encrypted(pdf(["secret"])),
    "bad/latin.txt": "Été".encode("latin-1"),
    "bad/empty.md": b"",
    "bad/other.docx": b"PK no zip",
}


def make(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write(folder, path, **options):
    splitter = Splitter(lambda text: len(text.split()) + 2, 20)
    return write_corpus(list_files(folder, max_file_mib=1), path, splitter, previous_passages(path), **options)


def test_rows_are_passages_with_title_and_source(tmp_path):
    write(make(tmp_path / "in", GOOD), tmp_path / "out.jsonl")
    assert [(each.text, each.title, *each.sources) for each in open_passages(tmp_path / "out.jsonl")] == [
        ("# Oil\n\nThe lamp burns oil.", "lamps > Oil", "lamps.md#0-26"),
        ("# Gas\n\nThe lamp burns gas.", "lamps > Gas", "lamps.md#28-54"),
        ("# Letter\n\nDear reader.", "letter > Letter", "letter.docx#0-22"),
        ("Manual\n======\n\nRead it.", "manual > Manual", "manual.rst#0-23"),
        ("The first page.", "paper > page 1", "paper.pdf#0-15"),
        ("The second page.", "paper > page 2", "paper.pdf#17-33"),
        ("One note.\n\nAnother note.", "notes", "sub/notes.txt#0-24"),
        ("# Page\n\nA page of text.", "page > Page", "sub/page.html#0-23"),
    ]


def test_the_same_folder_gives_the_same_bytes(tmp_path, monkeypatch):
    """Also under another path, and if the file system lists it in another order."""
    write(make(tmp_path / "in", GOOD), tmp_path / "first.jsonl")
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: sorted(scandir(path), key=lambda entry: entry.name)[::-1])
    write(make(tmp_path / "other/in", GOOD), tmp_path / "second.jsonl")
    monkeypatch.setattr(os, "scandir", lambda path: sorted(scandir(path), key=lambda entry: entry.name))
    write(tmp_path / "in", tmp_path / "third.jsonl")
    assert (tmp_path / "first.jsonl").read_bytes() == (tmp_path / "second.jsonl").read_bytes()
    assert (tmp_path / "first.jsonl").read_bytes() == (tmp_path / "third.jsonl").read_bytes()
    assert str(tmp_path).encode() not in (tmp_path / "first.jsonl").read_bytes()


def test_bad_files_are_named_and_leave_the_others_unchanged(tmp_path):
    write(make(tmp_path / "in", GOOD), tmp_path / "good.jsonl")
    report = write(make(tmp_path / "in", BAD), tmp_path / "all.jsonl")
    assert (tmp_path / "good.jsonl").read_bytes() == (tmp_path / "all.jsonl").read_bytes()
    assert {name: reason.partition(",")[0].partition(":")[0] for name, reason in report.problems.items()} == {
        "bad/broken.pdf": "expected a whole file",
        "bad/locked.pdf": "expected a PDF file without a password",
        "bad/latin.txt": "expected UTF-8",
        "bad/empty.md": "expected text",
        "bad/other.docx": "expected a DOCX file",
    }
    assert report.files == {".md": 1, ".html": 1, ".txt": 1, ".rst": 1, ".pdf": 1, ".docx": 1}
    assert all(f"left out: {name}: {reason}" in [*report.lines(20)] for name, reason in report.problems.items())


def test_changes_are_those_of_the_passages(tmp_path):
    folder, path = make(tmp_path / "in", GOOD), tmp_path / "out.jsonl"
    first = write(folder, path)
    assert (len(first.added), len(first.removed), first.kept) == (8, 0, 0)
    assert [*first.changes()] == []
    again = write(folder, path)
    assert (len(again.added), len(again.removed), again.kept) == (0, 0, 8)
    make(folder, {"lamps.md": b"# Oil\n\nThe lamp burns oil.\n\n# Wax\n\nThe lamp burns wax.\n", "new.txt": b"New."})
    (folder / "manual.rst").unlink()
    before = path.read_bytes()
    planned = write(folder, path, is_dry_run=True)
    assert path.read_bytes() == before
    changed = write(folder, path)
    assert planned == changed
    assert [*changed.changes()] == [
        "removed: lamps.md#28-54",
        "removed: manual.rst#0-23",
        "added: lamps.md#28-54",
        "added: new.txt#0-4",
    ]
    assert changed.kept == 6
    assert {*changed.added.values()} & {source for each in open_passages(path) for source in each.sources}


def test_lengths_are_reported(tmp_path):
    files = {"a.txt": b"one two", "b.txt": b"one two", "c.md": b"```\n" + b"a b c d e f\n" * 10 + b"```\n"}
    report = write(make(tmp_path / "in", {**files, "d.xyz": b"", "e.xyz": b""}), tmp_path / "out.jsonl")
    lengths = [len(each.content.split()) + 2 for each in open_passages(tmp_path / "out.jsonl")]
    assert sorted(set(report.lengths)) == sorted(set(lengths))
    mean = sum(report.lengths) / len(report.lengths)
    assert [*report.lines(20)] == [
        "3 files: 2 .txt, 1 .md; 0 left out",
        "2 of no known format, hidden or links: 2 .xyz",
        "7 passages, 3 with the text of an earlier one",
        f"tokens of a passage, of at most 20: mean {mean:.0f}; 50 % have at most 15, 90 % have at most 16, "
        "99 % have at most 16; longest 16",
        "cut because they are longer: 0 paragraphs, 1 block of code, table, list or plain text",
        "added 4, removed 0, kept 0",
    ]


@pytest.mark.parametrize("existing", [None, {"page_content": "old"}])
def test_a_stopped_run_leaves_the_old_file(tmp_path, monkeypatch, existing):
    folder, path = make(tmp_path / "in", GOOD), tmp_path / "out.jsonl"
    if existing:
        path.write_text(json.dumps(existing) + "\n", encoding="utf-8")
    read = writer.read_document

    def stop(document):
        if document.name == "notes.txt":
            raise KeyboardInterrupt
        return read(document)

    monkeypatch.setattr(writer, "read_document", stop)
    with pytest.raises(KeyboardInterrupt):
        write(folder, path)
    assert (json.loads(path.read_bytes()) if path.exists() else None) == existing
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_a_folder_without_a_document_is_an_error_and_replaces_nothing(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text('{"page_content": "old"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"(?s)bad/latin\.txt: expected UTF-8.*at least one document.*1 \.py"):
        write(make(tmp_path / "in", {**BAD, "a.py": b""}), path)
    assert path.read_text(encoding="utf-8") == '{"page_content": "old"}\n'


@pytest.mark.parametrize(("name", "content"), [("out.jsonl", "notes of mine\n"), ("out.txt", "")])
def test_a_file_that_is_no_corpus_is_not_replaced(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"out\."):
        write(make(tmp_path / "in", GOOD), path)
    assert path.read_text(encoding="utf-8") == content


def test_of_many_kinds_of_files_the_most_frequent_are_named(tmp_path):
    rare = {f"{i}.k{i}": b"" for i in range(12)}
    report = write(make(tmp_path / "in", {**rare, "x.k3": b"", "a.txt": b"one"}), tmp_path / "out.jsonl")
    [line] = [line for line in report.lines(20) if "no known format" in line]
    kinds = ["2 .k3", *(f"1 .{name}" for name in sorted(f"k{i}" for i in range(12) if i != 3)[:7])]
    assert line == f"13 of no known format, hidden or links: {', '.join(kinds)}, 4 of 4 other kinds"
