"""The files of a folder: which are read, and the reasons of the others."""

import os

import pytest

from rqa.documents.files import MIB, list_files, shown
from rqa.errors import InputError


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text", encoding="utf-8")


def test_documents_are_sorted_and_the_others_counted(tmp_path):
    make(tmp_path, "b/x.md", "b.MD", "a.txt", "c.py", "d.py", "LICENSE", ".hidden.md", ".git/x.md", "b/.y")
    (tmp_path / "again.md").symlink_to(tmp_path / "a.txt")
    (tmp_path / "b/loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "large.txt").write_bytes(b" " * (MIB + 1))
    listing = list_files(tmp_path, max_file_mib=1)
    assert [shown(path) for path in listing.paths] == ["a.txt", "b.MD", "b/x.md"]
    assert listing.left_out == {".py": 2, "no extension": 1, "hidden": 3, "link": 2}
    assert listing.problems == {
        "large.txt": "expected at most 1 MiB (--max_file_mib), got 1.0 MiB",
        "pipe.txt": "expected a file, got a pipe, socket or device",
    }


def test_a_folder_that_cannot_be_read_is_a_problem(tmp_path, monkeypatch):
    make(tmp_path, "a.txt", "b/c.txt")
    scandir = os.scandir

    def refuse(path):
        if path == tmp_path / "b":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    listing = list_files(tmp_path, max_file_mib=1)
    assert [*map(shown, listing.paths)] == ["a.txt"]
    assert listing.problems == {"b": "the folder cannot be read: Permission denied"}


def test_a_name_that_is_not_utf_8_is_escaped(tmp_path):
    (tmp_path / os.fsdecode(b"\xe9.txt")).write_text("text", encoding="utf-8")
    [path] = list_files(tmp_path, max_file_mib=1).paths
    assert shown(path) == "\\xe9.txt"


@pytest.mark.parametrize(("name", "got"), [("absent", "no such path"), ("a.txt", "a file")])
def test_something_else_than_a_folder_is_an_error(tmp_path, name, got):
    make(tmp_path, "a.txt")
    with pytest.raises(InputError, match=f"expected a folder of documents, got {got}"):
        list_files(tmp_path / name, max_file_mib=1)
