"""The rows of the training benchmarks: questions about Python's standard library, with passages up to a drawn length.

Lengths are log-normal with the spread of a real data set (575 questions about products: mean 306 tokens, 90 % below
477). The passages after a random one of the corpus stand in for retrieved ones: only their lengths matter.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from measure import ROOT

from rqa import data, models, prompts

MODEL = ROOT / "data/models/smollm2-135m-instruct"
DATA = ROOT / "data/stdlib"
SPREAD, LONGEST = 0.4, 2000  # standard deviation of the logarithm; tokens
FRAME_TOKENS, PASSAGE_TOKENS = 128, 54  # of a row without retrieved passages, and of each of these, about
T = TypeVar("T")
NUM_ROWS, NUM_ROUNDS, ROWS_OF_A_ROUND = 1024, 16, 8


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


def blocks_of_round(rows: Sequence[T], micro_batch: int, number: int) -> list[T]:
    """Return blocks of neighbours of `rows`, sorted by length, at places spread evenly from an offset of the round."""
    offset, blocks = random.Random(number).random(), ROWS_OF_A_ROUND // micro_batch
    starts = [int((block + offset) / blocks * (len(rows) - micro_batch)) for block in range(blocks)]
    return [row for start in starts for row in rows[start : start + micro_batch]]


def write_rows(mean: int, micro_batch: int) -> str:
    """Write the rows of each round for all trainers; return their path, with {round} in place of the number.

    A line is {"prompt": ids, "answer": ids}. Rows are blocks of `micro_batch` rows of similar length, the longest
    first, as if they were grouped by length within the whole data set. The blocks are spread evenly over its lengths,
    so that few rows have the lengths of all.
    """
    folder = ROOT / "data/benchmark-rows"
    pattern = str(folder / f"{mean}-{micro_batch}-{{round}}.jsonl")
    if all(Path(pattern.format(round=number)).exists() for number in range(NUM_ROUNDS)):
        return pattern
    rows = sorted(load_collator().encode(generator_inputs(mean)), key=len, reverse=True)
    folder.mkdir(exist_ok=True)
    for number in range(NUM_ROUNDS):
        chosen = blocks_of_round(rows, micro_batch, number)
        lines = [json.dumps({"prompt": row.prompts[0], "answer": row.answer}) for row in chosen]
        Path(pattern.format(round=number)).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return pattern


def read_rows(path: str) -> list[prompts.EncodedExample]:
    """Return the rows of a file."""
    records = map(json.loads, Path(path).read_text(encoding="utf-8").splitlines())
    return [prompts.EncodedExample([record["prompt"]], record["answer"]) for record in records]
