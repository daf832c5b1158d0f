"""The files of a folder, in an order that does not depend on the file system."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rqa.documents.convert import FORMATS
from rqa.errors import InputError

MIB = 2**20


@dataclass
class Listing:
    """The documents of a folder, and the number of other entries by the reason why they are left out.

    `paths` are relative, sorted by their characters. `problems` are entries that should have been read, each with the
    reason.
    """

    folder: Path
    paths: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    problems: dict[str, str] = field(default_factory=dict)


def list_files(folder: str | Path, *, max_file_mib: float) -> Listing:
    """Return the documents under a folder. Links are not followed, and hidden files and folders are not read.

    Raises InputError if there is no such folder.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: expected a folder of documents, got {_kind(Path(folder))}")
    listing = Listing(Path(folder))
    for path in _entries(listing, Path()):
        _add(listing, path, max_file_mib)
    listing.paths.sort(key=shown)
    listing.problems = dict(sorted(listing.problems.items()))
    return listing


def shown(path: Path) -> str:
    """Return a relative path with slashes, in which bytes that are not UTF-8 are escaped."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _kind(path: Path) -> str:
    return "a file" if path.exists() else "no such path"


def _entries(listing: Listing, below: Path) -> Iterator[Path]:
    """Yield the files below a folder, and count hidden entries and links."""
    folders = [below]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(listing.folder / folder))
        except OSError as error:
            listing.problems[shown(folder)] = f"the folder cannot be read: {error.strerror}"
            continue
        for entry in entries:
            if entry.name.startswith("."):
                listing.left_out["hidden"] += 1
            elif entry.is_symlink():
                listing.left_out["link"] += 1
            elif entry.is_dir(follow_symlinks=False):
                folders.append(folder / entry.name)
            else:
                yield folder / entry.name


def _add(listing: Listing, path: Path, max_file_mib: float) -> None:
    if path.suffix.lower() not in FORMATS:
        listing.left_out[path.suffix.lower() or "no extension"] += 1
        return
    try:
        status = (listing.folder / path).lstat()
    except OSError as error:
        listing.problems[shown(path)] = f"cannot be read: {error.strerror}"
        return
    if not stat.S_ISREG(status.st_mode):
        listing.problems[shown(path)] = "expected a file, got a pipe, socket or device"
    elif status.st_size > max_file_mib * MIB:
        size = f"{status.st_size / MIB:.1f} MiB"
        listing.problems[shown(path)] = f"expected at most {max_file_mib:g} MiB (--max_file_mib), got {size}"
    else:
        listing.paths.append(path)
