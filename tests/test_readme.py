"""The README: its commands run, with either spelling of their flags; its code runs; its list of files is the tree."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from accelerate import Accelerator
from tiny_models import decoder, tokenizer
from tiny_seq2seq import save_seq2seq
from world import DEEPSPEED_ON_CPU, ROOT, files, launch, launch_environment

import rqa.cli
from rqa.cli import flat, parse_args
from rqa.data import load_splits, open_passages
from rqa.evaluation import Evaluator
from rqa.models import AnswerLM
from rqa.prompts import ConcatenatedCollator, PromptBuilder
from rqa.retrieval import BM25Retriever, retrieve_splits
from rqa.retrieval.bm25 import open_bm25_retriever

README = (ROOT / "README.md").read_text(encoding="utf-8")
# The documented names of one flag; the first is the name in config.json.
SPELLINGS = (
    ("--model_name_or_path", "--qa_model_name_or_path"),
    ("--embedding_model", "--embedding_model_name_or_path", "--eval_embedding_model"),
    ("--full_dataset_file_path", "--document_path"),
    ("--full_dataset_index_path", "--index_path"),
    ("--test_file", "--eval_data_path"),
    ("--per_device_eval_batch_size", "--batch_size"),
)


def blocks(text: str, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in fenced if name == language]


def words_of(command: str) -> list[str]:
    """Return the words of a command, from its recipe on."""
    words = shlex.split(command.replace("\\\n", " "))
    return words[next(i for i, word in enumerate(words) if word.startswith("recipes/")) :]


def commands_of_docstrings() -> list[str]:
    """Return the commands in the docstrings of the recipes that name each of their flags."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "recipes").glob("*.py")))
    found = re.findall(r"^ *((?:accelerate launch|python) recipes/(?:[^\n]*\\\\\n)*[^\n]*)$", text, flags=re.MULTILINE)
    return [command.replace("\\\\\n", " ") for command in found]


COMMANDS = [block for block in blocks(README, "bash") if "accelerate launch" in block]
FLAGS_OF_A_FILE = ("--evaluation", "--config", "--output")  # other recipes, and flags that come from a file
PARSED_COMMANDS = [
    command
    for command in (*COMMANDS, *commands_of_docstrings())
    if not set(FLAGS_OF_A_FILE) & set(words_of(command))
    and "--" in command
    and not re.search("demo_|convert|share", command)
]


def name_of(command: str) -> str:
    return re.findall(r"recipes/(\w+)", command)[0]


def respelled(flag: str, shift: int) -> str:
    """Return another name of a flag."""
    for names in SPELLINGS:
        if flag in names:
            return names[(names.index(flag) + shift) % len(names)]
    return flag


def in_config(flag: str) -> str:
    return next((names[0] for names in SPELLINGS if flag in names), flag).removeprefix("--")


@pytest.mark.parametrize(
    ("command", "shift"),
    [*((command, 0) for command in COMMANDS), (next(c for c in COMMANDS if "evaluate" in c), 1)],
    ids=lambda value: name_of(value) if isinstance(value, str) else "other names" if value else "",
)
def test_documented_commands_run(command, shift, world, tmp_path, monkeypatch):
    """Values are replaced only where this machine lacks the file, the model, the GPU or the network."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    recipe, *words = words_of(command)
    documented = dict(zip(words[::2], words[1::2], strict=True))
    is_fid = "fid" in recipe or "--qa_is_fid" in documented
    here = {
        **world.data,
        "--use_flash_attention": "false",
        "--bf16": "false",
        "--model_name_or_path": save_seq2seq(tmp_path / "seq2seq") if is_fid else world.model,
        "--embedding_model": world.encoder,
        "--full_dataset_index_path": str(tmp_path / "index"),
        "--output_dir": str(tmp_path / "out"),
    }
    flags = {respelled(flag, shift): here.get(f"--{in_config(flag)}", value) for flag, value in documented.items()}
    by = (sys.executable, DEEPSPEED_ON_CPU)
    launch(recipe.removeprefix("recipes/"), {**flags, "--max_new_tokens": "8"}, by=by)
    test = tmp_path / "out" if "evaluate" in recipe else tmp_path / "out/test"
    assert {"score.json", "predictions.jsonl"} <= files(test)
    if "--run_group" in flags:
        assert list((tmp_path / "out/wandb").glob("offline-run-*"))
    config = json.loads((tmp_path / "out/config.json").read_text())
    for flag, value in flags.items():
        written = config[in_config(flag)]
        assert str(written).lower() == value.lower() or float(written) == float(value)


class ParsedError(Exception):
    """Ends a recipe after its command line."""


def resolved(recipe, words, monkeypatch):
    """Return the values of all flags of a recipe."""

    def parse_and_stop(*defaults, **options):
        raise ParsedError(flat(parse_args(*defaults, argv=words, **options)))

    monkeypatch.setattr(rqa.cli, "parse_args", parse_and_stop)
    spec = importlib.util.spec_from_file_location("recipe", ROOT / recipe)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(ParsedError) as parsed:
        module.main()
    return parsed.value.args[0]


@pytest.mark.parametrize("command", PARSED_COMMANDS, ids=name_of)
def test_documented_commands_accept_every_spelling(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    recipe, *words = words_of(command)
    values = resolved(recipe, words, monkeypatch)
    changed = []
    for shift in range(1, max(map(len, SPELLINGS))):
        other = [respelled(word, shift) for word in words]
        changed.append(other != words)
        assert resolved(recipe, other, monkeypatch) == values
    assert any(changed)


def test_the_loop_runs(world, tmp_path):
    [loop] = [block for block in blocks(README, "python") if "train_steps(" in block]
    assert len([line for line in loop.splitlines() if line and not line.startswith("from ")]) <= 22
    (tmp_path / "loop.py").write_text(loop.replace('"path/to/model"', repr(world.model)), encoding="utf-8")
    (tmp_path / "train.jsonl").write_bytes((world.folder / "train.jsonl").read_bytes())
    done = subprocess.run(
        [sys.executable, "loop.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=launch_environment(),
    )
    losses = [float(loss) for loss in re.findall(r"^\d+ (\S+)$", done.stdout, flags=re.MULTILINE)]
    assert len(losses) == 20
    assert losses[-1] < losses[0]
    assert "model.safetensors" in files(tmp_path / "trained")


def test_a_metric_and_a_retriever_of_your_own_work(world):
    """The code runs, and then the calls that are shown as comments."""
    [code] = [block for block in blocks(README, "python") if "class WordOverlap" in block]
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    train, evals, tests = load_splits(world.train, world.eval, world.test)
    names = {
        "Evaluator": Evaluator,
        "retrieve_splits": retrieve_splits,
        "accelerator": accelerator,
        "collator": ConcatenatedCollator(PromptBuilder(tokenizer())),
        "model": accelerator.prepare(AnswerLM(decoder())),
        "passages": open_passages(world.corpus),
        **{"train": train, "evals": evals, "tests": tests},
    }
    exec(code, names)
    make_evaluator, retrieve = (line[2:] for line in code.splitlines() if line.startswith("# "))
    *_, retrieval = eval(retrieve, names)
    for example, hits in zip(tests, retrieval.retrieved, strict=True):
        shared = [len({*example.question.lower().split()} & {*hit.passage.content.lower().split()}) for hit in hits]
        assert [hit.score for hit in hits] == shared == sorted(shared, reverse=True)
    scores = eval(make_evaluator, names)(tests, retrieval)
    contains = [100.0 * (row.references[0].lower() in row.answer.lower()) for row in scores.predictions]
    assert [row.answer_scores["contains"] for row in scores.predictions] == contains
    assert scores.metrics["contains"] == pytest.approx(sum(contains) / len(contains))
    assert "contains" in scores.score.intervals


class _Service(BaseHTTPRequestHandler):
    """A search service: the passages of `retriever`, with their ids."""

    retriever: BM25Retriever

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        [hits] = self.retriever.retrieve([asked["query"]], asked["k"])
        body = json.dumps([{"id": hit.passage.id, "score": hit.score} for hit in hits]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_search_service_of_your_own_works(world, tmp_path):
    [code] = [block for block in blocks(README, "python") if "class SearchService" in block]
    exec(code, names := {})
    passages, tests = open_passages(world.corpus), load_splits(world.train, world.eval, world.test)[2]
    _Service.retriever = open_bm25_retriever(passages, tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Service) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        service = names["SearchService"](passages, f"http://127.0.0.1:{server.server_port}", "2026-11")
        [retrieval] = retrieve_splits(Accelerator(cpu=True), lambda: service, passages, [tests], 3)
        server.shutdown()
    [expected] = retrieve_splits(Accelerator(cpu=True), lambda: _Service.retriever, passages, [tests], 3)
    assert [*retrieval.retrieved] == [*expected.retrieved]


def test_the_list_of_files_is_the_tree():
    [tree] = [block for block in blocks(README, "") if "errors.py" in block]
    listed, folder = set(), ""
    for line in tree.splitlines():
        if found := re.match(r"( *)(\S+)", line):
            indent, name = len(found[1]), found[2]
            if name.endswith("/"):
                folder = name if indent == 0 else f"rqa/{name}" if indent == 2 else folder
            elif folder.startswith("rqa/") and name.endswith(".py"):
                listed.add(f"rqa/{name}" if indent == 2 else f"{folder}{name}")
    assert listed == {
        str(path.relative_to(ROOT)) for path in (ROOT / "rqa").rglob("*.py") if path.name != "__init__.py"
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tables_of_gpus_are_those_of_the_estimates():
    script = [sys.executable, str(ROOT / "tests/helpers/which_gpu.py")]
    tables = subprocess.run(script, env=launch_environment(), capture_output=True, check=True, text=True).stdout
    memory, fitting = tables.strip().split("\n\n")
    assert memory in README
    assert fitting in README
