"""build_index.py: any number of processes, killed anywhere, writes the same bytes."""

from pathlib import Path

import pytest
from world import CRASH, PLACES, files, launch, passage, torchrun, write_jsonl

ROWS = [passage(place, number) for number in range(130) for place in PLACES]  # four blocks


@pytest.fixture(scope="module")
def built(world, tmp_path_factory):
    """Flags, and the index that one process built."""
    folder = tmp_path_factory.mktemp("built")
    corpus = write_jsonl(folder / "corpus.jsonl", ROWS)
    flags = {"--embedding_model": world.encoder, "--document_path": corpus, "--index_factory": "IVF4,SQ8"}
    printed = launch("build_index.py", {**flags, "--index_path": str(folder / "index")})
    assert "IVF4,SQ8, nprobe 4, recall@10 " in printed
    return flags, folder / "index"


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files(folder)}


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(built, tmp_path):
    flags, expected = built
    by = ("env", "ACCELERATE_USE_CPU=true", *torchrun(2))
    launch("build_index.py", {**flags, "--index_path": str(tmp_path / "index")}, by=by)
    assert content(tmp_path / "index") == content(expected)
    assert len(list((tmp_path / "index/vectors").rglob("*.npy"))) > 1


@pytest.mark.slow
@pytest.mark.parametrize("touch", [8, 16, 38])
def test_a_build_killed_anywhere_ends_with_the_same_files(built, tmp_path, touch):
    """Rank 0 of two is killed: it has embedded no block, a block, or all of them and writes the index."""
    flags, expected = built
    own = {**flags, "--index_path": str(tmp_path / "index")}
    by = ("env", "ACCELERATE_USE_CPU=true", *torchrun(2), CRASH, str(tmp_path / "index"), str(touch))
    printed = launch("build_index.py", own, by=by, expect=None)
    assert "SIGKILL" in printed or "-9" in printed, printed[-3000:]
    assert content(tmp_path / "index") != content(expected)
    launch("build_index.py", own)
    assert content(tmp_path / "index") == content(expected)
