"""Evaluations and training runs written to folders without a model, and edits of their files."""

import json
import random

from accelerate import Accelerator
from five_questions import score_examples

from rqa.cli.data_args import PromptArgs
from rqa.cli.parser import flat
from rqa.cli.training_args import RunArgs
from rqa.data.records import Example, Passage
from rqa.generation.generator import Answer
from rqa.retrieval.retrieve import Retrieval, Retrieved
from rqa.training.loop import Step
from rqa.training.run_log import RunLog

WORDS = "the lamp of a town was lit in 1907 .".split()


def sentence(numbers, least=0, most=12):
    return " ".join(numbers.choices(WORDS, k=numbers.randint(least, most)))


def evaluation(seed, size=12):
    """Return the scores of a system that answers with a part of the reference and random words."""
    numbers = random.Random(seed)
    passages = [Passage(f"The lamp {i}.", f"Lamp {i}") for i in range(size)]
    examples = [
        Example(
            f"test:{i + 1}", f"When {i}?", (f"It was lit in {i} by a man of the town.",), (passages[i],) * (i % 4 > 0)
        )
        for i in range(size)
    ]
    hits = [[Retrieved(passage, 0.5) for passage in numbers.sample(passages, 5)] for _ in examples]

    def generate(inputs):
        words = [item.example.answers[0].split()[: numbers.choice([5, 8, 11])] for item in inputs]
        texts = [f"{' '.join(each)} {sentence(numbers, 0, 2)}" for each in words]
        return [Answer(text, 9, 99, True, 0, len(item.passages)) for text, item in zip(texts, inputs, strict=True)]

    def loss(inputs):
        return [(numbers.uniform(1, 9), numbers.randint(1, 9)) for _ in inputs]

    return score_examples(examples, retrieval=Retrieval(hits, 1.0, "c"), generate=generate, loss=loss, k=2, ks=(1, 3))


STEP = Step(1, 2.5, 0.5, 1e-3, 20, 300, 4, False, (), 0.25, 0.05)


def change(folder, to, keep_scores=False):
    """Replace each row of predictions.jsonl by `to(index, row)`; None drops the row."""
    path = folder / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    changed = [to(i, row) for i, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in changed if row is not None), encoding="utf-8")
    if not keep_scores:  # read_evaluation checks them against the rows
        change_score(folder, metrics={}, intervals={})


def change_score(folder, **values):
    score = json.loads((folder / "score.json").read_text())
    (folder / "score.json").write_text(json.dumps({**score, **values}))


def write_run(folder, steps=(STEP,), evaluations=()):
    """Write the files of a training run with RunLog."""
    config = flat((PromptArgs(), RunArgs(output_dir="out")))
    run_log = RunLog(
        Accelerator(cpu=True),
        folder,
        config=config,
        num_steps=len(steps),
        logging_steps=1,
        example_ids=["train:1", "train:2"],
    )
    for step in steps:
        run_log.step(step)
    for name, scores in evaluations:
        run_log.evaluation(name, scores)
    return folder
