"""build_index.py: any number of processes, killed anywhere, writes the same bytes."""

import subprocess
from pathlib import Path

import pytest
from world import HELPERS, PLACES, files, launch, launch_environment, passage, recipe_command, torchrun, write_jsonl

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
def test_a_build_killed_anywhere_ends_with_the_same_files(built, tmp_path):
    """Rank 0 of two is killed at touches of the folder that are spread over the whole build."""
    flags, expected = built
    launcher = ["env", "ACCELERATE_USE_CPU=true", *torchrun(2), str(HELPERS / "crash.py")]
    touches, kills = 0, 0
    for touch in (0, 4, 9, 14, 20, 26, 32):
        index = tmp_path / str(touch)
        path_flags = {**flags, "--index_path": str(index)}
        command = recipe_command("build_index.py", path_flags, (*launcher, str(index), str(touch)))
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=launch_environment())
        if touch == 0:
            assert done.returncode == 0, done.stderr[-3000:]
            [line] = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("touched:")]
            touches = len(line.split()) - 1
            assert touches > 32, line
        else:
            assert done.returncode != 0
            kills += 1
            launch("build_index.py", path_flags)
        assert content(index) == content(expected), (touch, sorted(files(index)))
    assert kills == 6
