"""Tests of recipes/convert.py in its own process."""

import re
import shlex
import subprocess
from pathlib import Path

from foreign_samples import SAMPLES, described, triple
from world import launch_environment, recipe_command

from rqa.conversion import FORMATS
from rqa.data import load_examples, open_passages

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")


def run(*flags):
    command = [*recipe_command("convert.py", {}), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=launch_environment())


def test_the_recipe_converts_questions_and_their_corpus(tmp_path):
    sample = SAMPLES["squad"]
    paths = {"--output_path": tmp_path / "train.jsonl", "--corpus_path": tmp_path / "corpus.jsonl"}
    done = run("--input_path", sample.write(tmp_path), *(word for pair in paths.items() for word in pair))
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    questions, corpus = paths.values()
    assert done.stdout.splitlines() == ["format: squad", f"{questions}: 3 questions", f"{corpus}: 2 passages"]
    assert "fields that are not read" in done.stderr
    assert list(map(described, load_examples(questions))) == sample.examples
    assert list(map(triple, open_passages(corpus))) == sample.corpus


def test_a_problem_is_a_message_and_status_2(tmp_path):
    path = tmp_path / "input.jsonl"
    path.write_text('{"question": "Who?", "answer": ""}\n{"question": "", "answer": "I."}\n')
    done = run("--input_path", path, "--output_path", tmp_path / "train.jsonl")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {path}:2: field")
    assert not (tmp_path / "train.jsonl").exists()
    done = run("--input_path", path, "--output_path", tmp_path / "train.jsonl", "--format", "x")
    assert (done.returncode, "expected one of squad" in done.stderr) == (2, True)


def test_the_help_lists_every_format():
    text = run("--help").stdout
    for name, each in FORMATS.items():
        assert f"  {name} " in text
        assert each.help in text


def test_the_command_of_the_page_runs_and_its_table_lists_every_format(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [command] = re.findall(r"^python recipes/convert.py (.*)$", PAGE, flags=re.MULTILINE)
    words = shlex.split(command)
    SAMPLES["squad"].write(tmp_path).rename(words[words.index("--input_path") + 1])
    assert run(*words).returncode == 0
    assert list(map(described, load_examples("train.jsonl"))) == SAMPLES["squad"].examples
    _, _, section = PAGE.partition("## From other formats")
    assert re.findall(r"^\| `(\w+)` \|", section.partition("\n## ")[0], flags=re.MULTILINE) == [*FORMATS]
