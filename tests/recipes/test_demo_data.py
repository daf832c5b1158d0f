"""Tests of recipes/demo_data.py: every run writes the same bytes, and the library reads the files."""

import os
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from rqa.data.corpus import open_passages
from rqa.data.records import load_examples

RECIPE = Path(__file__).parents[2] / "recipes" / "demo_data.py"
SPLITS = ("train", "eval", "test")


def run(folder, hash_seed):
    command = [sys.executable, str(RECIPE), "--output_dir", str(folder)]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "DEMO_SECRET": f"secret-{hash_seed}"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=folder.parent)
    assert not done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "new" / "stdlib"
    folder.parent.mkdir()
    run(folder, "1")
    return folder


@pytest.fixture(scope="module")
def passages(folder):
    return open_passages(folder / "passages.jsonl")


@pytest.fixture(scope="module")
def splits(folder):
    return {name: load_examples(folder / f"{name}.jsonl") for name in SPLITS}


def test_output_is_byte_identical_and_counts_are_printed(folder, tmp_path, passages, splits):
    printed = run(tmp_path / "again", "2")
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["eval.jsonl", "passages.jsonl", "test.jsonl", "train.jsonl"]
    assert all((folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in files)
    counts = {"passages": len(passages), **{name: len(examples) for name, examples in splits.items()}}
    assert {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", printed, re.MULTILINE)} == counts


def test_splits_share_no_name_and_no_passage(splits):
    for one, other in combinations(SPLITS, 2):
        for facts in (lambda e: e.id, lambda e: e.question, lambda e: e.gold_passages[0].id):
            assert {*map(facts, splits[one])}.isdisjoint(map(facts, splits[other]))
    total = sum(map(len, splits.values()))
    assert len(splits["test"]) / total == pytest.approx(0.02, abs=0.01)
    assert len(splits["eval"]) / total == pytest.approx(0.02, abs=0.01)


def test_split_of_a_name_is_fixed(splits):
    """No version of the recipe may move a name from the test to the training split."""
    where = {example.id: name for name, examples in splits.items() for example in examples}
    names = ("textwrap.dedent", "json.loads", "os.setuid", "urllib.parse.urlparse", "socket.create_connection")
    assert [where[name] for name in names] == ["train", "train", "eval", "test", "test"]


def test_environment_is_not_written(folder):
    """The default of a parameter may be os.environ."""
    text = "".join(path.read_text() for path in folder.iterdir())
    assert not re.search(r"secret-1| at 0x[0-9a-f]{6}", text)
    assert sys.executable not in text
    assert str(folder.parent) not in text


def test_corpus_has_each_text_once_and_no_long_text(passages):
    assert len(passages) > 2000
    assert passages.duplicates == 0
    assert max(len(passage.text) for passage in passages) <= 400
    assert all(passage.text.strip() for passage in passages)
    titles = [passage.title for passage in passages]
    assert len({*titles}) == len(titles)
    assert {"textwrap", "json.JSONDecoder", "os.path.join", "os.stat", "io.StringIO", "str"} <= {
        title.removeprefix("builtins.") for title in titles
    }
    assert not {"json.decoder.JSONDecoder", "posix.stat", "posixpath.join"} & {*titles}


def test_answer_is_in_the_one_gold_passage_in_the_corpus(splits, passages):
    for example in (example for examples in splits.values() for example in examples):
        (gold,) = example.gold_passages
        (answer,) = example.answers
        assert passages[passages.row_of(gold.id)] == gold
        assert gold.title == example.id
        assert answer in " ".join(gold.text.split())
        assert 4 <= len(answer.split()) <= 40


def test_each_kind_has_its_question(splits):
    questions = {
        example.id: (example.question, *example.answers) for examples in splits.values() for example in examples
    }
    assert questions["textwrap.dedent"] == (
        "What does the function `dedent` in the module `textwrap` do?",
        "Remove any common leading whitespace from every line in `text`.",
    )
    assert questions["textwrap"][0] == "What is the module `textwrap` for?"
    assert questions["pathlib.PurePath"][0] == "What is the class `PurePath` in the module `pathlib`?"
    assert questions["builtins.IndexError"][0] == "What does the exception `IndexError` in the module `builtins` mean?"
