"""README.md and the pages of docs/: their commands and code run, their flags exist, the site has no broken link."""

import contextlib
import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_models import decoder, tokenizer
from tiny_seq2seq import save_seq2seq
from world import DEEPSPEED_ON_CPU, ROOT, files, launch, launch_environment

import rqa.cli
from rqa.cli import Parser, ServeArgs, flat, parse_args
from rqa.data import load_splits, open_passages
from rqa.data.passage_selection import GeneratorInput
from rqa.models import AnswerLM
from rqa.prompts import IGNORE_INDEX, PromptBuilder
from rqa.retrieval import BM25Retriever, retrieve_splits
from rqa.retrieval.bm25 import open_bm25_retriever

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
}
# The documented names of one flag; the first is the name in config.json.
SPELLINGS = (
    ("--model_name_or_path", "--qa_model_name_or_path"),
    ("--embedding_model", "--embedding_model_name_or_path", "--eval_embedding_model"),
    ("--full_dataset_file_path", "--document_path"),
    ("--full_dataset_index_path", "--index_path"),
    ("--test_file", "--eval_data_path"),
    ("--per_device_eval_batch_size", "--batch_size"),
)
MIGRATION = "docs/migration.md"  # tests/test_reference_pages.py has its tests
FOREIGN_FLAGS = {  # of accelerate launch, torchrun, pip and SLURM
    *("--config_file", "--num_processes", "--quiet", "--nproc_per_node", "--no-build-isolation", "--signal"),
}


def blocks(text: str, *languages: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in fenced if name in languages]


# Commands


def words_of(command: str) -> list[str]:
    """Return the words of a command, from its recipe on."""
    words = shlex.split(command, comments=True)
    return words[next(i for i, word in enumerate(words) if word.startswith("recipes/")) :]


def commands_of(shell: str) -> list[str]:
    """Return the commands that start a recipe, each on one line."""
    lines = shell.replace("\\\n", " ").splitlines()
    return [line for line in lines if re.match(r"\s*(?:python|accelerate launch.*) recipes/\w+\.py", line)]


def commands_of_docstrings() -> list[str]:
    """Return the commands in the docstrings of the recipes that name each of their flags."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "recipes").glob("*.py")))
    return [command for command in commands_of(text.replace("\\\\\n", " ")) if "--" in command]


def commands_of_page(name: str) -> list[str]:
    """Return the commands of a page, with the values of the variables that it exports."""
    shell = "\n".join(blocks(PAGES[name], "bash", "sh"))
    variables = dict(re.findall(r"(\w+)=(\S+)", " ".join(re.findall(r"^export (.*)$", shell, re.MULTILINE))))
    return commands_of(re.sub(r"\$(\w+)", lambda found: variables[found[1]], shell))


RUN_COMMANDS = [
    command
    for name in ("docs/training.md", "docs/evaluation.md")
    for command in commands_of_page(name)
    if command.startswith("accelerate launch")
]
COMMANDS = [command for name in PAGES for command in commands_of_page(name)] + commands_of_docstrings()


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
    [*((command, 0) for command in RUN_COMMANDS), (next(c for c in RUN_COMMANDS if "evaluate" in c), 1)],
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


def test_the_commands_of_the_three_methods_and_of_both_evaluations_run():
    assert [name_of(command) for command in RUN_COMMANDS] == [
        *("swr_starling", "sft_mistral", "fid_flan_t5", "evaluate", "evaluate")
    ]


class ParsedError(Exception):
    """Ends a recipe after its command line."""


def main_of(recipe):
    spec = importlib.util.spec_from_file_location("recipe", ROOT / recipe)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def resolved(recipe, words, monkeypatch):
    """Return the values of all flags of a recipe; only those on the command line if others come from a file."""
    is_complete = not {"--config", "--evaluation"} & {*words}
    parse = Parser.parse_args

    def parse_and_stop(*defaults, **options):
        raise ParsedError(flat(parse_args(*defaults, argv=words, **options)))

    def parse_words(parser, args=None, namespace=None):
        parsed = parse(parser, words if args is None else args, namespace)
        if namespace is None:  # a parser of the recipe's own
            raise ParsedError(vars(parsed))
        if not is_complete:
            raise ParsedError({name: text for name, _, text in parsed.collected})
        return parsed

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("rqa.sharing.hub.check_push", lambda repo: None)  # it needs a network
    monkeypatch.setattr(Parser, "parse_args", parse_words)
    monkeypatch.setattr(rqa.cli, "parse_args", parse_and_stop)
    with pytest.raises(ParsedError) as stopped:
        main_of(recipe)()
    monkeypatch.undo()
    return stopped.value.args[0]


@pytest.mark.parametrize("command", COMMANDS, ids=name_of)
def test_commands_of_all_pages_parse_with_every_spelling(command, monkeypatch):
    recipe, *words = words_of(command)
    values = resolved(recipe, words, monkeypatch)
    for shift in range(1, max(map(len, SPELLINGS))):
        assert resolved(recipe, [respelled(word, shift) for word in words], monkeypatch) == values


@cache
def flags_of_recipes() -> set[str]:
    def stop(parser, *_):
        raise ParsedError([option for action in parser._actions for option in action.option_strings])

    names = {"--help"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parser, "parse_args", stop)
        for path in sorted((ROOT / "recipes").glob("*.py")):
            with pytest.raises(ParsedError) as parsed:
                main_of(path.relative_to(ROOT))()
            names |= {*parsed.value.args[0]}
    return names


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_of_a_page_exists(page):
    code = " ".join([*blocks(PAGES[page], "bash", "sh"), *re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", PAGES[page])])
    named = {f"--{name}" for name in re.findall(r"(?<![\w-])--([a-zA-Z][\w-]*)", code)}
    repository = {"--fast", "--shard"} if page == "CONTRIBUTING.md" else set()  # of tests/mutants.py
    if page != MIGRATION:  # it has flags of other projects
        assert named <= flags_of_recipes() | FOREIGN_FLAGS | repository


# Code: that of a page is one program


PYTHON = [page for page, text in PAGES.items() if blocks(text, "python")]
CLIENTS = {"docs/serving.md", MIGRATION}  # code that calls a server, or converts files, has a test of its own


@pytest.fixture(scope="module")
def run_page(world, tmp_path_factory):
    """Return a function that runs the code of a page once, where the files that it names exist."""
    folder = tmp_path_factory.mktemp("page")
    for name in ("train.jsonl", "eval.jsonl", "test.jsonl", "corpus.jsonl"):
        (folder / name).symlink_to(world.folder / name)
    (folder / "path/to").mkdir(parents=True)
    (folder / "path/to/model").symlink_to(world.model)

    @cache
    def run(page):
        names, printed = {"__name__": "__main__", "folder": folder}, io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
            patch.chdir(folder)
            for block in blocks(PAGES[page], "python"):
                exec(compile(block, page, "exec"), names)
        return {**names, "printed": printed.getvalue()}

    AcceleratorState._reset_state(reset_partial_state=True)
    yield run
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def parts(run_page):
    return run_page("docs/your-own-parts.md")


@pytest.mark.parametrize("page", [page for page in PYTHON if page not in CLIENTS])
def test_the_code_of_a_page_runs(page, run_page):
    assert run_page(page)


def test_the_loop_trains(parts):
    [loop] = [block for block in blocks(PAGES["docs/your-own-parts.md"], "python") if "train_steps(" in block]
    assert len([line for line in loop.splitlines() if line and not line.startswith("from ")]) <= 22
    steps = re.findall(r"^(\d+) (\S+)$", parts["printed"], flags=re.MULTILINE)
    assert [int(number) for number, _ in steps] == [*range(1, 21)] * 2
    for losses in (steps[:20], steps[20:]):
        assert float(losses[-1][1]) < float(losses[0][1])
    for name in ("trained", "numbers"):
        assert "model.safetensors" in files(Path(parts["folder"]) / name)


def test_the_loss_of_your_own_weighs_the_collator_s_tokens(parts, world):
    """Compared with the plain loss of one token after another."""
    builder = PromptBuilder(tokenizer())
    collator = parts["NumberCollator"](builder)
    inputs = [GeneratorInput.from_ranked(example, example.gold_passages) for example in load_splits(world.train)[0][:3]]
    batch = collator(inputs)
    texts = [[builder.tokenizer.decode([i]) for i in row] for row in batch["input_ids"].tolist()]
    expected_weights = [[3.0 if {*text} & {*"0123456789"} else 1.0 for text in row] for row in texts]
    assert batch["weights"].tolist() == expected_weights
    model, plain = parts["NumberLM"](decoder()), AnswerLM(decoder())
    expected, weights = torch.zeros(3), set()
    for row, position in (batch["labels"] != IGNORE_INDEX).nonzero().tolist():
        labels = torch.full_like(batch["labels"], IGNORE_INDEX)
        labels[row, position] = batch["labels"][row, position]
        weight = batch["weights"][row, position].item()
        weights.add(weight)
        expected += weight * plain(batch["input_ids"], labels).detach()
    assert weights == {1.0, 3.0}
    torch.testing.assert_close(model.train()(**batch).detach(), expected)
    torch.testing.assert_close(model.eval()(**batch), plain(batch["input_ids"], batch["labels"]))


def test_a_metric_of_your_own_is_scored(parts):
    scores, metric = parts["scores"], parts["contains_reference"]
    assert [metric("It was in 1907.", [text]) for text in ("In 1907", "In 1908", "It was in 1907. Yes.")] == [100, 0, 0]
    contains = [metric(row.answer, row.references) for row in scores.predictions]
    assert [row.answer_scores["contains"] for row in scores.predictions] == contains
    assert scores.metrics["contains"] == pytest.approx(sum(contains) / len(contains))
    assert "contains" in scores.score.intervals


def test_a_retriever_of_your_own_ranks(parts):
    texts = [{*passage.content.lower().split()} for passage in parts["passages"]]
    for example, hits in zip(parts["test_examples"], parts["retrieval"].retrieved, strict=True):
        shared = sorted((len({*example.question.lower().split()} & text) for text in texts), reverse=True)
        assert [hit.score for hit in hits] == shared[:10]
        assert shared[0] > shared[9]


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


def test_a_search_service_of_your_own_works(parts, world, tmp_path):
    passages, tests = open_passages(world.corpus), load_splits(world.train, world.eval, world.test)[2]
    _Service.retriever = open_bm25_retriever(passages, tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Service) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        service = parts["SearchService"](passages, f"http://127.0.0.1:{server.server_port}", "2026-11")
        [retrieval] = retrieve_splits(parts["accelerator"], lambda: service, passages, [tests], 3)
        server.shutdown()
    [expected] = retrieve_splits(parts["accelerator"], lambda: _Service.retriever, passages, [tests], 3)
    assert [*retrieval.retrieved] == [*expected.retrieved]


def test_a_client_of_the_server_works(tmp_path):
    pytest.importorskip("openai")
    from scripted_server import ANSWER, PASSAGES, running

    [code] = blocks(PAGES["docs/serving.md"], "python")
    here = f"http://127.0.0.1:{ServeArgs().port}"
    assert here in code
    assert f'model="{ServeArgs().served_model_name}"' in code
    with running(tmp_path) as (url, _), contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code.replace(here, url).replace('model="rqa"', 'model="lamps"'), {})
    assert ANSWER in printed.getvalue()
    assert str([passage.title for passage in PASSAGES]) in printed.getvalue()


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. A broken link, a missing anchor, or a page that the navigation lacks is an error."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**launch_environment(), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_loads_nothing_from_other_hosts(site):
    loading = (
        r"<(?:script|img|iframe|source|video)\b[^>]*\bsrc=[\"']?(?:https?:)?//|<link\b[^>]*\bhref=[\"']?(?:https?:)?//"
    )
    for page in site.rglob("*.html"):
        assert not re.findall(loading, page.read_text(encoding="utf-8")), page
    for style in site.rglob("*.css"):
        assert not re.findall(r"url\([\"']?(?:https?:)?//|@import", style.read_text(encoding="utf-8")), style


def test_the_site_has_the_files_outside_of_docs(site):
    assert "Each test causes the fault" in (site / "promises.html").read_text(encoding="utf-8")
    reliability = (site / "reliability.html").read_text(encoding="utf-8")
    assert re.search(r'href="?promises\.html', reliability)


def test_the_readme_links_to_pages_that_exist():
    links = re.findall(r"(?:\]\(|src=\")([^)#:\"]+)(?:#([^)]*))?[)\"]", PAGES["README.md"])
    assert ("docs/images/report.png", "") in links
    for path, anchor in links:
        assert (ROOT / path).is_file(), path
        headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings]


def test_every_page_is_linked_from_the_readme_or_the_home_page():
    links = {ROOT / path for path in re.findall(r"\]\(([^)#:]+)", PAGES["README.md"])}
    links |= {(ROOT / "docs" / path).resolve() for path in re.findall(r"\]\(([^)#:]+)", PAGES["docs/index.md"])}
    assert {ROOT / name for name in PAGES} - {ROOT / "README.md"} <= links


def test_the_readme_is_two_screens():
    assert PAGES["README.md"].count("\n") <= 150


def test_the_list_of_files_is_the_tree():
    [tree] = [block for block in blocks(PAGES["CONTRIBUTING.md"], "") if "errors.py" in block]
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
    assert memory in PAGES["docs/distributed.md"]
    assert fitting in PAGES["docs/distributed.md"]
