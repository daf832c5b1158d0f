"""The command `rqa`: it lists and copies every recipe; the wheel alone is enough."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from world import ROOT, files, launch_environment, passage, write_jsonl

from rqa.cli.command import copy_recipes, list_recipes, recipe_files
from rqa.errors import InputError

RECIPES = {path.name for path in (ROOT / "recipes").glob("*.py")}
ALL = RECIPES | {f"configs/{path.name}" for path in (ROOT / "recipes/configs").iterdir()}


def test_every_recipe_is_listed_with_its_purpose(capsys):
    list_recipes()
    printed = capsys.readouterr().out
    lines = {line.split()[0]: line for line in printed.splitlines() if line}
    assert lines.keys() - {"rqa"} == ALL
    for name in RECIPES:
        purpose = (ROOT / "recipes" / name).read_text(encoding="utf-8").removeprefix('"""').partition("\n")[0]
        assert lines[name].split(maxsplit=1)[1] == purpose


def test_all_files_are_copied_byte_for_byte(tmp_path):
    copy_recipes(["all"], str(tmp_path / "mine"))
    assert files(tmp_path / "mine") == ALL
    for name in ALL:
        assert (tmp_path / "mine" / name).read_bytes() == (ROOT / "recipes" / name).read_bytes()


@pytest.mark.parametrize("name", ["ask.py", "ask"])
def test_a_recipe_has_its_name_with_and_without_its_ending(tmp_path, name):
    copy_recipes([name, "ds_config.json", "configs/quickstart.yaml"], str(tmp_path))
    assert files(tmp_path) == {"ask.py", "ds_config.json", "quickstart.yaml"}


def test_an_existing_file_is_kept_and_nothing_is_copied(tmp_path):
    (tmp_path / "ask.py").write_text("mine")
    with pytest.raises(InputError, match=r"ask\.py: expected a new file, got an existing one"):
        copy_recipes(["serve.py", "ask.py"], str(tmp_path))
    assert files(tmp_path) == {"ask.py"}
    assert (tmp_path / "ask.py").read_text() == "mine"
    copy_recipes(["ask.py"], str(tmp_path), force=True)
    assert (tmp_path / "ask.py").read_bytes() == (ROOT / "recipes/ask.py").read_bytes()


def test_an_unknown_name_is_refused_with_the_nearest_one(tmp_path):
    with pytest.raises(InputError, match=r"swr_starlign: expected .* Did you mean swr_starling\.py\?"):
        copy_recipes(["swr_starlign"], str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a folder for the recipes"):
        copy_recipes(["ask.py"], str(tmp_path / "file"))


def test_the_module_runs_the_command(capsys):
    list_recipes()
    done = subprocess.run([sys.executable, "-m", "rqa", "recipes"], capture_output=True, text=True, timeout=60)
    assert done.stdout == capsys.readouterr().out


def test_every_file_of_the_folder_has_a_name():
    assert set(recipe_files(ROOT / "recipes")) == ALL


@pytest.mark.slow
def test_the_wheel_alone_lists_copies_and_runs_a_recipe(tmp_path):
    source = tmp_path / "source"
    archive = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, archive.decode().split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    run = {"check": True, "cwd": tmp_path, "capture_output": True, "text": True, "timeout": 240}
    pip = [sys.executable, "-m", "pip", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)], **run)
    [wheel] = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], **run)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    subprocess.run([*pip, "--python", str(tmp_path / "venv"), "install", "--no-deps", str(wheel)], **run)
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {**launch_environment(), "PYTHONPATH": ""}
    command = str(tmp_path / "venv/bin/rqa")
    listed = subprocess.run([command, "recipes"], env=environment, **run).stdout
    assert all(name in listed for name in ALL)
    subprocess.run([command, "copy", "build_index.py", "mine"], env=environment, **run)
    write_jsonl(tmp_path / "corpus.jsonl", [passage("Oslo", 1), passage("Rome", 2)])
    flags = ["--retriever", "bm25", "--full_dataset_file_path", "corpus.jsonl", "--full_dataset_index_path", "index"]
    python = [str(tmp_path / "venv/bin/python"), "-c", "import rqa; print(rqa.__file__)"]
    assert subprocess.run(python, env=environment, **run).stdout.startswith(str(own))
    built = subprocess.run([python[0], "mine/build_index.py", *flags], env=environment, **run)
    assert "building the BM25 index" in built.stderr
    assert "from IDs" not in built.stderr  # a line of bm25s
    assert len([*(tmp_path / "index").glob("bm25-*")]) == 1
