"""Atomic files: a kill, a full disk or an exception leaves the old content or the new, whole."""

import hashlib
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from world import launch_environment

from rqa import atomic_files
from rqa.atomic_files import (
    atomic_file,
    atomic_folder,
    checksums,
    publish_folder,
    read_manifest,
    write_json,
    write_manifest,
    write_text,
)

OLD = "old\n"


@pytest.fixture
def path(tmp_path):
    """A file with old content, alone in its folder."""
    path = tmp_path / "folder/file.json"
    path.parent.mkdir()
    path.write_text(OLD)
    return path


@contextmanager
def full_disk(size=4096):
    """Let no file grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_folder(path, content):
    with atomic_folder(path) as partial:
        (partial / "file").write_text(content)


WRITERS = {
    "text": write_text,
    "json": write_json,
    "manifest": lambda path, content: write_manifest(path, {"content": content}),
}


# Kills


def killed_while_writing(code, path):
    """Run code that prints a line in the middle of a write, and kill it there."""
    command = [sys.executable, "-c", f"import sys, time\nfrom pathlib import Path\npath = Path(sys.argv[1])\n{code}"]
    environment = launch_environment()
    process = subprocess.Popen([*command, str(path)], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout.readline() == "writing\n"
    finally:
        process.kill()
        process.wait(timeout=30)
        process.stdout.close()


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(path):
    code = """
from rqa.atomic_files import atomic_file
with atomic_file(path) as file:
    file.write(b"new")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""
    killed_while_writing(code, path)
    assert path.read_text() == OLD
    write_text(path, "new\n")
    assert path.read_text() == "new\n"
    assert list(path.parent.iterdir()) == [path]  # the next write replaces the partial file


def test_a_link_stays_a_link_and_a_pipe_is_written(path, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(path)
    write_text(link, "new\n")
    assert link.is_symlink()
    assert path.read_text() == "new\n"
    reader, writer = os.pipe()
    write_text(Path(f"/dev/fd/{writer}"), "piped\n")
    assert os.read(reader, 100) == b"piped\n"


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_folder(tmp_path):
    code = """
from rqa.atomic_files import atomic_folder
with atomic_folder(path) as partial:
    (partial / "another").write_text("new")
    print("writing", flush=True)
    time.sleep(60)
"""
    folder = tmp_path / "model"
    write_folder(folder, OLD)
    killed_while_writing(code, folder)
    assert [file.name for file in folder.iterdir()] == ["file"]
    write_folder(folder, "new")  # without the files of the killed process
    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [("file", "new")]
    assert list(tmp_path.iterdir()) == [folder]


# Full disks, exceptions


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_leaves_the_old_file_and_no_partial_file(path, write):
    with full_disk(), pytest.raises(OSError, match="too large"):
        write(path, "new" * 4096)
    assert path.read_text() == OLD
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_folder_and_no_partial_folder(tmp_path):
    write_folder(tmp_path / "model", OLD)
    with full_disk(), pytest.raises(OSError, match="too large"):
        write_folder(tmp_path / "model", "new" * 4096)
    assert list(tmp_path.rglob("*")) == [tmp_path / "model", tmp_path / "model/file"]
    assert (tmp_path / "model/file").read_text() == OLD


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_no_partial_file(path, error):
    def write_and_fail():
        with atomic_file(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        write_and_fail()
    assert path.read_text() == OLD
    assert list(path.parent.iterdir()) == [path]


def test_a_number_that_is_not_finite_leaves_the_old_file(path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": float("nan")})
    assert path.read_text() == OLD


# The order of writes


@pytest.fixture
def events(monkeypatch):
    """The flushes and renames, with paths, in order."""
    events, fsync, replace = [], os.fsync, Path.replace

    def record_fsync(descriptor):
        events.append(("flush", Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def record_replace(path, target):
        events.append(("rename", path, target))
        return replace(path, target)

    monkeypatch.setattr(atomic_files.os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    return events


def test_content_is_flushed_before_the_rename_and_the_name_after(path, events):
    write_text(path, "new")
    [(_, partial), *_] = events
    assert partial.parent == path.parent
    assert events == [("flush", partial), ("rename", partial, path), ("flush", path.parent)]


def test_every_entry_of_a_folder_is_flushed_before_the_rename(tmp_path, events):
    partial, final = tmp_path / "partial", tmp_path / "final"
    (partial / "inner").mkdir(parents=True)
    (partial / "inner/file").write_text("new")
    publish_folder(partial, final)
    *flushes, rename, last = events
    assert {path for _, path in flushes} == {partial, partial / "inner", partial / "inner/file"}
    assert (rename, last) == (("rename", partial, final), ("flush", tmp_path))


# Content


def test_a_new_file_is_written_with_its_folder(tmp_path):
    write_json(tmp_path / "new/folder/file.json", {"name": "水", "numbers": [1, 2.5]})
    text = (tmp_path / "new/folder/file.json").read_text(encoding="utf-8")
    assert text == '{\n  "name": "水",\n  "numbers": [\n    1,\n    2.5\n  ]\n}\n'


def test_a_manifest_is_read_as_written(path):
    manifest = {"step": 50, "flags": {"max_grad_norm": float("inf")}, "name": "水"}
    write_manifest(path, manifest)
    assert read_manifest(path) == manifest


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("50", "51"),
        lambda text: text[:-10],
        lambda text: "[]",
        lambda text: '{"step": 50}',
        lambda text: "",
    ],
)
def test_a_damaged_manifest_is_an_error(path, damage):
    write_manifest(path, {"step": 50})
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError):  # noqa: PT011  # of several kinds: json's, or our own
        read_manifest(path)


def test_the_checksum_of_a_file_is_that_of_its_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic_files, "PIECE", 4)
    contents = {tmp_path / f"{size}": os.urandom(size) for size in (0, 1, 4, 5, 8, 1001)}
    for path, content in contents.items():
        path.write_bytes(content)
    pieces = [[content[at : at + 4] for at in range(0, len(content), 4)] for content in contents.values()]
    assert checksums([*contents]) == [
        hashlib.sha256(b"".join(hashlib.sha256(piece).digest() for piece in of_file)).hexdigest() for of_file in pieces
    ]
    assert checksums([]) == []
