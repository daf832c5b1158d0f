"""A small world for the recipes: a model, an encoder, a corpus and questions, and a way to launch."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import tiny_models
import torch

from rqa.distributed.accelerator import leave_group

ROOT = Path(__file__).parents[2]
# `accelerate launch` of this interpreter, whether or not its environment's scripts are on the path.
ACCELERATE_LAUNCH = (sys.executable, "-m", "accelerate.commands.launch")
PLACES = ["Rome", "Oslo", "Lima", "Bern", "Cairo", "Delhi", "Quito", "Sofia", "Tunis", "Paris", "Accra", "Minsk"]


def passage(place: str, number: int) -> dict:
    text = f"The lamp of {place} was lit in {1900 + number}. " + f"It shines over {place}. " * (number % 4)
    return {"page_content": text, "metadata": {"source": f"{place}.html", "title": f"Lamp {number}"}}


def question(place: str, number: int) -> dict:
    history = [{"speaker": "user", "message": "Hello."}, {"speaker": "assistant", "message": "Ask."}] * (number % 2)
    return {
        "question": f"When was the lamp of {place} lit?",
        "gold_answer": f"In {1900 + number}.",
        "gold_docs": [passage(place, number)],
        "chat_history": history,
    }


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@dataclass
class Document:
    """Of the fields of LocalRQA's, and pickled under its name."""

    page_content: str
    fmt_content: str = ""
    metadata: dict = field(default_factory=dict)


def write_pickle(path: Path, rows: list[dict]) -> str:
    names = ("local_rqa", "local_rqa.schema", "local_rqa.schema.document")
    Document.__module__ = names[-1]
    sys.modules.update({name: ModuleType(name) for name in names})
    sys.modules[names[-1]].Document = Document
    try:
        path.write_bytes(pickle.dumps([Document(row["page_content"], "", row["metadata"]) for row in rows], 4))
    finally:
        for name in names:
            del sys.modules[name]
        Document.__module__ = __name__
    return str(path)


@dataclass
class World:
    """Paths, as flags take them."""

    folder: Path
    model: str
    encoder: str
    train: str
    eval: str
    test: str
    corpus: str
    pickle: str

    @classmethod
    def make(cls, folder: Path) -> "World":
        numbered = [(place, number) for number, place in enumerate(PLACES * 2)]
        corpus = [passage(place, number) for place, number in numbered]
        rows = [question(place, number) for place, number in numbered]
        return cls(
            folder,
            tiny_models.save_decoder(folder / "model"),
            tiny_models.save_encoder(folder / "sentences"),
            write_jsonl(folder / "train.jsonl", rows[:13]),
            write_jsonl(folder / "eval.jsonl", rows[13:17]),
            write_jsonl(folder / "test.jsonl", rows[17:]),
            write_jsonl(folder / "corpus.jsonl", corpus),
            write_pickle(folder / "document.pkl", corpus),
        )

    @property
    def data(self) -> dict[str, str]:
        """The flags of a training recipe that name files."""
        return {
            "--train_file": self.train,
            "--eval_file": self.eval,
            "--test_file": self.test,
            "--full_dataset_file_path": self.corpus,
            "--full_dataset_index_path": str(self.folder / "index"),
        }


def torchrun(processes: int) -> tuple[str, ...]:
    """Launch by torchrun of this interpreter; see ACCELERATE_LAUNCH."""
    return (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")


def launch(recipe: str, flags: dict[str, str], *, expect: int | None = 0, by: tuple[str, ...] = ()) -> str:
    """Run a recipe in a process of its own, by default with plain python; return what it printed."""
    argv = [word for flag in flags.items() for word in flag]
    done = subprocess.run(
        [*(by or (sys.executable,)), str(ROOT / "recipes" / recipe), *argv],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert expect is None or done.returncode == expect, done.stderr[-3000:]
    return done.stdout + done.stderr


def results_of(script: str, folder: Path, *argv: object, processes: int = 2) -> list[Any]:
    """Run a test file as a script by processes that see each other; return what each of them handed over."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [*torchrun(processes), script, *map(str, argv), str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return handed_over(folder, processes)


def hand_over(result: Any, folder: Path) -> None:
    """End one process of a script whose results are read in another process."""
    torch.save(result, folder / f"rank{os.environ['RANK']}.pt")
    leave_group()


def handed_over(folder: Path, processes: int) -> list[Any]:
    """Return what each process handed over."""
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(processes)]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
