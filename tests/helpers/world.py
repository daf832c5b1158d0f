"""Input files for the recipes (a model, an encoder, a corpus, questions), and functions that launch processes."""

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

HELPERS = Path(__file__).parent
ROOT = HELPERS.parents[1]
# `accelerate launch` of this interpreter: the scripts of its environment may not be on the PATH.
ACCELERATE_LAUNCH = (sys.executable, "-m", "accelerate.commands.launch")
CRASH, DEEPSPEED_ON_CPU, FSDP_ON_CPU = (
    str(HELPERS / name) for name in ("crash.py", "deepspeed_on_cpu.py", "fsdp_on_cpu.py")
)
LAUNCH_SECONDS = 240  # timeout of a launched process
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


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass
class Document:
    """The fields of LocalRQA's class, pickled under its name."""

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
    """Paths of input files, as the flags take them."""

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

    def chat_flags(self, max_new_tokens: int) -> dict[str, str]:
        """Return the flags of a generator, its retriever and its corpus, in float32."""
        return {
            "--model_name_or_path": self.model,
            "--embedding_model": self.encoder,
            "--embedding_max_num_to_retrieve": "2",
            "--full_dataset_file_path": self.corpus,
            "--full_dataset_index_path": str(self.folder / "index"),
            "--bf16": "false",
            "--max_new_tokens": str(max_new_tokens),
        }

    @property
    def data(self) -> dict[str, str]:
        """The file flags of a training recipe."""
        return {
            "--train_file": self.train,
            "--eval_file": self.eval,
            "--test_file": self.test,
            "--full_dataset_file_path": self.corpus,
            "--full_dataset_index_path": str(self.folder / "index"),
        }


def torchrun(processes: int) -> tuple[str, ...]:
    """Return the command of torchrun of this interpreter; see ACCELERATE_LAUNCH."""
    return (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")


def launch_environment(**variables: str) -> dict[str, str]:
    """Return the environment of a launched process: this project and the helpers can be imported."""
    path = os.pathsep.join(map(str, (ROOT, HELPERS)))
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **variables}


def recipe_command(recipe: str, flags: dict[str, str], by: tuple[str, ...] = ()) -> list[str]:
    """Return the command that runs a recipe, with plain Python unless `by` is a launcher."""
    return [
        *(by or (sys.executable,)),
        str(ROOT / "recipes" / recipe),
        *(word for flag in flags.items() for word in flag),
    ]


def launch(recipe: str, flags: dict[str, str], *, expect: int | None = 0, by: tuple[str, ...] = ()) -> str:
    """Run a recipe in its own process, check its exit status unless `expect` is None, and return its output."""
    done = subprocess.run(
        recipe_command(recipe, flags, by),
        capture_output=True,
        text=True,
        timeout=LAUNCH_SECONDS,
        env=launch_environment(),
    )
    assert expect is None or done.returncode == expect, done.stderr[-3000:]
    return done.stdout + done.stderr


def results_of(script: str, folder: Path, *argv: object, processes: int = 2) -> list[Any]:
    """Run a test file as a script in `processes` ranks, and return the result of each rank; see `hand_over`."""
    done = subprocess.run(
        [*torchrun(processes), script, *map(str, argv), str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        env=launch_environment(ACCELERATE_USE_CPU="true"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return handed_over(folder, processes)


def hand_over(result: Any, folder: Path) -> None:
    """Write the result of this rank for the test, and leave the process group."""
    torch.save(result, folder / f"rank{os.environ['RANK']}.pt")
    leave_group()


def handed_over(folder: Path, processes: int) -> list[Any]:
    """Return the result of each rank."""
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(processes)]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
