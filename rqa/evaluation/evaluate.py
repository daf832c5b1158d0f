"""The automatic evaluation: retrieve, answer, score, time, write.

All scores are in per cent but the loss, in nats per token; all times are in seconds.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from rqa import __version__
from rqa.data.passage_selection import REFUSAL_ANSWER, GeneratorInput
from rqa.data.records import Example, Passage
from rqa.evaluation import metrics
from rqa.evaluation.attribution import Attribution, Losses, share_on_gold
from rqa.evaluation.significance import LEVEL, RESAMPLES, score_intervals
from rqa.generation.generator import Answer
from rqa.prompts.collators import Collator
from rqa.retrieval.retrieve import KS, Retrieval, Stages
from rqa.timing import record_spans, summarize_spans

Generate = Callable[[Sequence[GeneratorInput]], list[Answer]]


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
            file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in self.predictions)
        score = {"metrics": {name: _finite(value) for name, value in self.metrics.items()}, **self.about}
        (directory / "score.json").write_text(json.dumps(score, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Part:
    """What one part of an evaluation adds: scores, a row for each example, what was measured, and its stages."""

    metrics: dict[str, float]
    predictions: list[dict[str, Any]]
    about: dict[str, Any] = field(default_factory=dict)
    stages: Stages = field(default_factory=dict)


def evaluate(
    examples: Sequence[Example],
    *,
    retrieval: Retrieval | None = None,
    generate: Generate | None = None,
    loss: Losses | None = None,
    attributions: Mapping[str, Attribution] | None = None,
    k: int,
    ks: Sequence[int] = KS,
    refusal_answer: str = REFUSAL_ANSWER,
    environment: Mapping[str, Any] | None = None,
) -> Scores:
    """Score the retrieval of `examples` at each of `ks`, and the answers of a generator that reads the first `k`.

    Without a retrieval the generator reads the gold passages; without a generator the retriever alone is scored. With
    a `loss` the first reference is scored under the model as well; each of `attributions` tells, by its name, what the
    answers that were generated rest on. Times are those of retrieving and answering, on this process; what they were
    measured under, the `environment`, stands beside them. No time of a metric is in them.
    """
    parts: list[_Part] = []
    if retrieval is not None:
        found = [hits[: max(*ks, k)] for hits in retrieval.found]
        parts.append(_score_retrieval(examples, replace(retrieval, found=found), ks))
    if generate is not None:
        if retrieval is not None:
            readings = retrieval.readings(examples, k)
        else:
            readings = [GeneratorInput.from_ranked(example, example.gold_passages) for example in examples]
            parts.append(_Part({}, [{"passages": _passages(example, example.gold_passages)} for example in examples]))
        parts.append(_score_answers(readings, generate, refusal_answer))
        if attributions:
            given = [
                replace(read, answer=row["answer"]) for read, row in zip(readings, parts[-1].predictions, strict=True)
            ]
            parts.append(_score_attributions(given, attributions))
        if loss is not None:
            answered = [
                replace(reading, answer=_references(reading.example, refusal_answer)[0]) for reading in readings
            ]
            parts.append(_score_losses(loss(answered)))
    predictions = [
        {"id": example.id, "question": example.question, **_history(example)}
        | {k: v for row in rows for k, v in row.items()}
        for example, *rows in zip(examples, *(part.predictions for part in parts), strict=True)
    ]
    stages = {name: value for part in parts for name, value in part.stages.items()}
    return Scores(
        metrics={name: value for part in parts for name, value in part.metrics.items()},
        predictions=predictions,
        about={
            "intervals": {name: list(ends) for name, ends in score_intervals(predictions).items()},
            "level": LEVEL,
            "resamples": RESAMPLES,
            "examples": len(examples),
            "passages_read": f"the first {k} {retrieval.origin}" if retrieval else "gold",
            **{name: value for part in parts for name, value in part.about.items()},
            "runtime": {**(environment or {}), "warm_up": "one question, not timed", "stages": stages},
            "versions": {"rqa": __version__}
            | {name: version(name) for name in ("torch", "transformers", "sacrebleu", "rouge-score")},
        },
    )


def _score_retrieval(examples: Sequence[Example], retrieval: Retrieval, ks: Sequence[int]) -> _Part:
    """Score the examples that have gold passages; the others are counted."""
    scored, predictions = [], []
    for example, hits in zip(examples, retrieval.found, strict=True):
        gold = {passage.id for passage in example.gold_passages}
        row: dict[str, Any] = {
            "passages": _passages(example, [hit.passage for hit in hits], [hit.score for hit in hits])
        }
        if gold:
            row["retrieval_scores"] = metrics.retrieval_scores(gold, [hit.passage.id for hit in hits], ks)
            scored.append(row["retrieval_scores"])
        predictions.append(row)
    measured: dict[str, Any] = {"fingerprint": retrieval.fingerprint}
    if retrieval.seconds is not None:
        measured["seconds_per_question"] = retrieval.seconds / max(1, len(examples))
    about = {"examples_without_gold": len(examples) - len(scored), "retrieval": measured}
    return _Part(metrics.mean_scores(scored), predictions, about, retrieval.stages)


def _passages(example: Example, passages: Sequence[Passage], scores: Sequence[float] = ()) -> list[dict[str, Any]]:
    gold = {passage.id for passage in example.gold_passages}
    return [
        {
            "id": passage.id,
            "title": passage.title,
            "text": passage.text,
            "sources": passage.sources,
            "score": _finite(score),
            "gold": passage.id in gold,
        }
        for passage, score in zip(passages, scores or [math.nan] * len(passages), strict=True)
    ]


def _history(example: Example) -> dict[str, Any]:
    turns = [{"role": turn.role, "text": turn.text} for turn in example.chat_history]
    return {"chat_history": turns} if turns else {}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # NaN is no JSON


def _score_answers(readings: Sequence[GeneratorInput], generate: Generate, refusal_answer: str) -> _Part:
    """Answer, timed, then score. The first question is answered twice: a warm-up, not timed."""
    generate(readings[:1])
    start = time.perf_counter()
    with record_spans() as spans:
        answers = generate(readings)
    seconds = time.perf_counter() - start

    references = [_references(reading.example, refusal_answer) for reading in readings]
    scored = [metrics.answer_scores(answer.text, refs) for answer, refs in zip(answers, references, strict=True)]
    bleu = metrics.corpus_bleu([answer.text for answer in answers], references)
    lengths = [float(metrics.answer_length(answer.text)) for answer in answers]
    predictions = [
        {"read": _num_read(reading, answer), "answer": answer.text, "references": refs, "finished": answer.finished}
        | {"answer_scores": row}
        for reading, answer, refs, row in zip(readings, answers, references, scored, strict=True)
    ]
    about = {
        "signatures": {"bleu": bleu.signature, "rouge": metrics.ROUGE_SIGNATURE},
        "generation": {
            "seconds_per_answer": seconds / len(answers),
            "prompt_tokens": sum(answer.num_prompt_tokens for answer in answers),
            "passage_tokens_cut": sum(answer.num_cut for answer in answers),
            "answer_tokens": sum(answer.num_tokens for answer in answers),
            "unfinished": sum(not answer.finished for answer in answers),
        },
    }
    scores = {"bleu": bleu.score, **metrics.mean_scores(scored), "answer_words": math.fsum(lengths) / len(lengths)}
    return _Part(scores, predictions, about, summarize_spans(spans))


def _num_read(reading: GeneratorInput, answer: Answer) -> int:
    return len(reading.passages) if answer.num_read is None else answer.num_read


def _score_losses(losses: Sequence[tuple[float, int]]) -> _Part:
    nll, tokens = math.fsum(nll for nll, _ in losses), sum(tokens for _, tokens in losses)
    rows = [{"reference_nll": _finite(nll), "reference_tokens": tokens} for nll, tokens in losses]
    return _Part({"loss": nll / tokens}, rows)


def _score_attributions(readings: Sequence[GeneratorInput], attributions: Mapping[str, Attribution]) -> _Part:
    """Attribute, and score the examples that read a gold passage: how much of their evidence it is."""
    found = {name: attribute(readings) for name, attribute in attributions.items()}
    scored: list[dict[str, float]] = []
    predictions: list[dict[str, Any]] = []
    for i, reading in enumerate(readings):
        gold = {passage.id for passage in reading.example.gold_passages}
        is_gold = [passage.id in gold for passage in reading.passages]
        values = {name: of_all[i] for name, of_all in found.items()}
        rows: list[dict[str, Any]] = [
            {"id": passage.id, "gold": is_gold[place]}
            | {name: _finite(of_one[place]) for name, of_one in values.items()}
            for place, passage in enumerate(reading.passages)
        ]
        predictions.append({"attribution": rows})
        if any(is_gold) and all(map(math.isfinite, chain(*values.values()))):
            scored.append({f"{name}_on_gold": 100 * share_on_gold(value, is_gold) for name, value in values.items()})
            predictions[-1]["attribution_scores"] = scored[-1]
    return _Part(metrics.mean_scores(scored), predictions, {"examples_that_read_gold": len(scored)})


def _references(example: Example, refusal_answer: str) -> tuple[str, ...]:
    return (refusal_answer,) if example.unanswerable or not example.answers else example.answers


class AnswerLoss:
    """The negative log-likelihood of references, in nats per target token, under a prepared model."""

    def __init__(self, accelerator: Accelerator, model: nn.Module, collator: Collator, batch_size: int) -> None:
        self.accelerator = accelerator
        self.model = model
        self.collator = collator
        self.batch_size = batch_size

    @torch.no_grad()
    def __call__(self, readings: Sequence[GeneratorInput]) -> list[tuple[float, int]]:
        """Return for each answer its negative log-likelihood, in nats, and its tokens.

        Every process must call this, and makes as many forward passes.
        """
        self.model.eval()
        rows = self.collator.encode(readings)
        longest_first = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        numbered: list[tuple[int, float]] = []
        for start in range(0, len(rows), self.batch_size * self.accelerator.num_processes):
            first = start + self.accelerator.process_index * self.batch_size
            mine = longest_first[first : first + self.batch_size]
            batch = self.collator.collate([rows[i] for i in mine])  # of no rows: one without targets
            batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
            numbered += zip(mine, self.model(**batch).tolist(), strict=False)
        losses = dict(gather_object(numbered))
        return [(losses[i], len(row.answer)) for i, row in enumerate(rows)]
