"""The rows of the training benchmarks: questions about Python's standard library, with passages up to a drawn length.

Lengths are log-normal with the spread of a real data set (575 questions about products: mean 306 tokens, 90 % below
477). The passages after a random one of the corpus stand in for retrieved ones: only their lengths matter.
"""

import json
import random
from pathlib import Path

from measure import ROOT

from rqa import data, models, prompts

MODEL = ROOT / "data/models/smollm2-135m-instruct"
DATA = ROOT / "data/stdlib"
SPREAD, LONGEST = 0.4, 2000  # standard deviation of the logarithm; tokens
FRAME_TOKENS, PASSAGE_TOKENS = 128, 54  # of a row without retrieved passages, and of each of these, about
NUM_ROWS = 1024


def generator_inputs(mean: int) -> list[data.GeneratorInput]:
    """Return questions with passages whose rows have about `mean` tokens."""
    examples, corpus = data.load_examples(str(DATA / "train.jsonl")), data.open_passages(str(DATA / "passages.jsonl"))
    draw = random.Random(0)
    inputs = []
    for example in draw.sample(examples, NUM_ROWS):
        length = mean * draw.lognormvariate(-(SPREAD**2) / 2, SPREAD)
        first, number = draw.randrange(len(corpus)), max(0, round((length - FRAME_TOKENS) / PASSAGE_TOKENS))
        neighbours = [corpus[(first + i) % len(corpus)] for i in range(number)]
        inputs.append(data.GeneratorInput.from_ranked(example, [*example.gold_passages, *neighbours]))
    return inputs


def load_collator() -> prompts.Collator:
    """Return the collator of the model."""
    return models.load_collator(str(MODEL), max_prompt_length=LONGEST)


def write_rows(mean: int) -> Path:
    """Return a file of the rows, {"prompt": ids, "answer": ids} a line. It is made once."""
    path = ROOT / f"data/benchmark-rows/{mean}.jsonl"
    if not path.exists():
        lines = [
            json.dumps({"prompt": row.prompts[0], "answer": row.answer})
            for row in load_collator().encode(generator_inputs(mean))
        ]
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read_rows(path: Path) -> list[prompts.EncodedExample]:
    """Return the rows of a file."""
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [prompts.EncodedExample([record["prompt"]], record["answer"]) for record in records]
