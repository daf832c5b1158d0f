"""The automatic evaluation: retrieve, answer, score, time, write.

All scores are in per cent but the loss, in nats per token; all times are in seconds.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from rqa import __version__, metrics
from rqa.collators import IGNORED, ConcatenatedCollator
from rqa.data import Example
from rqa.generate import Answer
from rqa.passages import REFUSAL_ANSWER, Reading
from rqa.retrieval import Retrieval

KS = (1, 3, 5, 10)

Generate = Callable[[Sequence[Reading]], list[Answer]]
Loss = Callable[[Sequence[Reading]], float]


@dataclass(frozen=True)
class Scores:
    """An evaluation: `metrics` by name, a row for each example, and what was measured with what."""

    metrics: dict[str, float]
    predictions: list[dict[str, Any]]
    about: dict[str, Any] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """Write score.json and predictions.jsonl."""
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "predictions.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.predictions)
        score = {"metrics": self.metrics, **self.about}
        (directory / "score.json").write_text(json.dumps(score, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def evaluate(
    examples: Sequence[Example],
    *,
    retrieval: Retrieval | None = None,
    generate: Generate | None = None,
    loss: Loss | None = None,
    k: int,
    ks: Sequence[int] = KS,
    refusal_answer: str = REFUSAL_ANSWER,
) -> Scores:
    """Score the retrieval of `examples` at each of `ks`, and the answers of a generator that reads the first `k`.

    Without a retrieval the generator reads the gold passages; without a generator the retriever alone is scored. With
    a `loss` the first reference is scored under the model as well.
    """
    parts = []
    if retrieval is not None:
        found = [hits[: max(*ks, k)] for hits in retrieval.found]
        parts.append(_score_retrieval(examples, replace(retrieval, found=found), ks))
    if generate is not None:
        if retrieval is not None:
            readings = retrieval.readings(examples, k)
        else:
            readings = [Reading.ranked(example, example.gold_passages) for example in examples]
        parts.append(_score_answers(readings, generate, refusal_answer))
        if loss is not None:
            answered = [
                replace(reading, answer=_references(reading.example, refusal_answer)[0]) for reading in readings
            ]
            parts.append(Scores({"loss": loss(answered)}, [{}] * len(examples)))
    return Scores(
        metrics={name: value for part in parts for name, value in part.metrics.items()},
        predictions=[
            {"id": example.id, "question": example.question} | {k: v for row in rows for k, v in row.items()}
            for example, *rows in zip(examples, *(part.predictions for part in parts), strict=True)
        ],
        about={
            "examples": len(examples),
            "passages_read": f"the first {k} retrieved" if retrieval else "gold",
            **{name: value for part in parts for name, value in part.about.items()},
            "versions": {"rqa": __version__}
            | {name: version(name) for name in ("torch", "transformers", "sacrebleu", "rouge-score")},
        },
    )


def _score_retrieval(examples: Sequence[Example], retrieval: Retrieval, ks: Sequence[int]) -> Scores:
    """Score the examples that have gold passages; the others are counted."""
    scored, predictions = [], []
    for example, hits in zip(examples, retrieval.found, strict=True):
        gold = {passage.id for passage in example.gold_passages}
        row: dict[str, Any] = {
            "passages": [
                {
                    "id": hit.passage.id,
                    "title": hit.passage.title,
                    "text": hit.passage.text,
                    "sources": hit.passage.sources,
                    "score": hit.score,
                    "gold": hit.passage.id in gold,
                }
                for hit in hits
            ]
        }
        if gold:
            row["retrieval_scores"] = metrics.retrieval_scores(gold, [hit.passage.id for hit in hits], ks)
            scored.append(row["retrieval_scores"])
        predictions.append(row)
    about = {
        "examples_without_gold": len(examples) - len(scored),
        "retrieval": {
            "fingerprint": retrieval.fingerprint,
            "seconds_per_question": retrieval.seconds / max(1, len(examples)),
        },
    }
    return Scores(metrics.mean_scores(scored), predictions, about)


def _score_answers(readings: Sequence[Reading], generate: Generate, refusal_answer: str) -> Scores:
    """Answer, timed, then score. The first question is answered twice: a warm-up, not timed."""
    generate(readings[:1])
    start = time.perf_counter()
    answers = generate(readings)
    seconds = time.perf_counter() - start

    references = [_references(reading.example, refusal_answer) for reading in readings]
    scored = [metrics.answer_scores(answer.text, refs) for answer, refs in zip(answers, references, strict=True)]
    bleu = metrics.corpus_bleu([answer.text for answer in answers], references)
    lengths = [float(metrics.answer_length(answer.text)) for answer in answers]
    predictions = [
        {"answer": answer.text, "references": refs, "finished": answer.finished, "answer_scores": row}
        for answer, refs, row in zip(answers, references, scored, strict=True)
    ]
    about = {
        "signatures": {"bleu": bleu.signature, "rouge": metrics.ROUGE_SIGNATURE},
        "generation": {
            "seconds_per_answer": seconds / len(answers),
            "prompt_tokens": sum(answer.num_prompt_tokens for answer in answers),
            "answer_tokens": sum(answer.num_tokens for answer in answers),
            "unfinished": sum(not answer.finished for answer in answers),
            "warm_up": "one question, not timed",
        },
    }
    scores = {"bleu": bleu.score, **metrics.mean_scores(scored), "answer_words": math.fsum(lengths) / len(lengths)}
    return Scores(scores, predictions, about)


def _references(example: Example, refusal_answer: str) -> tuple[str, ...]:
    return (refusal_answer,) if example.unanswerable or not example.answers else example.answers


class AnswerLoss:
    """The negative log-likelihood of references, in nats per target token, under a prepared model."""

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, collator: ConcatenatedCollator, batch_size: int
    ) -> None:
        self.accelerator = accelerator
        self.model = model
        self.collator = collator
        self.batch_size = batch_size

    @torch.no_grad()
    def __call__(self, readings: Sequence[Reading]) -> float:
        """Score the answers of `readings`; every process must call this, and makes as many forward passes."""
        self.model.eval()
        rows = sorted(self.collator.encode(readings), key=len, reverse=True)
        sums = torch.zeros(2, device=self.accelerator.device)
        for start in range(0, len(rows), self.batch_size * self.accelerator.num_processes):
            mine = start + self.accelerator.process_index * self.batch_size
            batch = self.collator.collate(rows[mine : mine + self.batch_size])  # of no rows: one without targets
            batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
            sums += torch.stack([self.model(**batch).sum(), (batch["labels"] != IGNORED).sum()])
        nll, tokens = self.accelerator.reduce(sums, "sum").tolist()
        return float(nll / tokens)
