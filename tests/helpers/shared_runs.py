"""Folders of finished training runs with a tiny model, made without training; the parts of their cards."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import tiny_models
from markdown_it import MarkdownIt
from markdown_it.token import Token
from tiny_evaluations import evaluation

from rqa.atomic_files import write_json
from rqa.cli.card_facts import card_facts
from rqa.cli.data_args import DataArgs, PassageArgs, PromptArgs
from rqa.cli.parser import flat
from rqa.cli.retrieval_args import RetrievalArgs
from rqa.cli.training_args import ModelArgs, OptimizationArgs, RunArgs
from rqa.sharing.card import config_of, record_run, write_cards

# Files of a run that are never uploaded, by their names in its folder.
SECRET = b"a question of the user"
OTHERS = (
    "checkpoints/step-00000001/model.safetensors",
    "checkpoints/step-00000001/optimizer.bin",
    "model/optimizer.bin",
    "model/step-00000001/model.safetensors",
    "model/predictions.jsonl",
    "model/train.json",
    "model/score.json",
    "model/.README.md.partial",
    "test/answers.jsonl",
    "metrics.jsonl",
    "train.jsonl",
)


def make_run(folder: Path, base: str = "org/base", *, is_tested: bool = True, **flags: object) -> Path:
    """Write the folder of an SwR run on the model `base`, as an earlier version of rqa left it: without cards."""
    values = {
        "model_name_or_path": base,
        "train_file": f"{folder}/data/train.jsonl",
        "test_file": f"{folder}/data/test.jsonl",
        "embedding_model": "org/encoder",
        "output_dir": str(folder),
    }
    groups = (ModelArgs(), DataArgs(), RetrievalArgs(), PassageArgs(), PromptArgs(), OptimizationArgs(), RunArgs())
    write_json(folder / "config.json", flat(groups) | values | flags)
    tiny_models.save_decoder(folder / "model")
    (folder / "report.html").write_bytes(b"<p>" + SECRET)
    if is_tested:
        evaluation(0).write(folder / "test")
    return folder


def add_other_files(folder: Path) -> None:
    for name in OTHERS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(SECRET)


def write_card(folder: Path, splits: object = ((), (), ())) -> str:
    """Write the cards of a run as a training recipe does, and return that of the model."""
    record_run(folder, splits, **card_facts(config_of(folder)))
    write_cards(folder)
    return (folder / "model/README.md").read_text(encoding="utf-8")


MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")


def tokens_in(card: str) -> Iterator[Token]:
    """Yield the tokens of a card without its front matter, those inside paragraphs and cells too."""
    for token in MARKDOWN.parse(card.split("---\n", 2)[2]):
        yield token
        yield from token.children or ()


def command_in(card: str) -> list[str]:
    """Return the words of the command in a card, by bash."""
    [fence] = [token for token in tokens_in(card) if token.type == "fence"]
    assert fence.info == "bash"
    script = f"python() {{ printf '%s\\0' python \"$@\"; }}\n{fence.content}"
    return subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout.decode().split("\0")[:-1]
