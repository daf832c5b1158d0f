"""Files of examples and passages, and the problems that a reader reports."""

import gzip
import json

import pytest

from rqa.data.file_report import DataError
from rqa.data.records import load_examples


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="train.jsonl"):
        """Write rows, each an object or the bytes of a line, and return the path."""
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        data = b"".join(line + b"\n" for line in lines)
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


@pytest.fixture
def problems():
    def problems(path, read=load_examples):
        """Read an invalid file and return its problems without the path."""
        with pytest.raises(DataError) as caught:
            read(path)
        lines = str(caught.value).splitlines()
        assert all(line.startswith(f"{path}:") for line in lines)
        return [line.removeprefix(f"{path}:") for line in lines]

    return problems
