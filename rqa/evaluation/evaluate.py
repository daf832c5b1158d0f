"""The automatic evaluation: retrieve, answer, score, measure the time, write.

Scores are in per cent but the loss, in nats per token; times are in seconds.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm.contrib.logging import logging_redirect_tqdm

from rqa import __version__
from rqa.data.citations import without_citations
from rqa.data.passage_selection import REFUSAL_ANSWER, GeneratorInput
from rqa.data.records import Example, Passage
from rqa.distributed.accelerator import call_on_main
from rqa.evaluation.attribution import Attribution, CrossAttention, Losses, leave_one_out, share_on_gold
from rqa.evaluation.citation_scores import mean_citation_scores, score_citations
from rqa.evaluation.metrics import (
    METRICS,
    ROUGE_SIGNATURE,
    Metric,
    answer_length,
    answer_scores,
    corpus_bleu,
    format_scores,
    mean_scores,
    retrieval_scores,
)
from rqa.evaluation.results import PassageRecord, PredictionRecord, ScoreRecord, write_predictions, write_record
from rqa.evaluation.significance import LEVEL, RESAMPLES, score_intervals
from rqa.generation.answers import ANSWERS_FILE, Answer
from rqa.generation.batches import map_batches
from rqa.generation.endpoint_generator import EndpointGenerator
from rqa.generation.generator import Generator
from rqa.models.decoder import AnswerLM
from rqa.models.fid import FusionInDecoder
from rqa.prompts.collators import Collator, EncodedExample
from rqa.retrieval.retrieve import KS, Retrieval
from rqa.terminal import track
from rqa.timing import Span, environment, record_spans, summarize_spans

log = logging.getLogger(__name__)

Generate = Callable[[Sequence[GeneratorInput]], list[Answer]]
Row = dict[str, Any]  # the fields of a PredictionRecord, or of the ScoreRecord, that are computed so far

# Ways to compute the evidence of each passage.
ATTRIBUTIONS = ("cross_attention", "leave_one_out", "leave_one_out_reference")
MAX_CUT_ANSWERS = 10.0  # per cent; more are a warning: their scores are those of another text


@dataclass(frozen=True)
class Scores:
    """An evaluation: the content of score.json, and a prediction for each example."""

    score: ScoreRecord
    predictions: list[PredictionRecord]

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics by name."""
        return self.score.metrics

    @property
    def summary(self) -> str:
        """The main scores in one line, with the counts without which they can be misread."""
        notes = "; ".join(self.score.notes)
        return format_scores(self.metrics) + (f"  ({notes})" if notes else "")

    def write(self, folder: Path) -> None:
        """Write predictions.jsonl and score.json, then remove the stored answers. Raises OSError."""
        write_predictions(folder / "predictions.jsonl", self.predictions)
        write_record(folder / "score.json", self.score)
        (folder / ANSWERS_FILE).unlink(missing_ok=True)


class Evaluator:
    """Scores retrieval and answers of any examples: `evaluator(examples, retrieval)`. Every rank must call it.

    `model` is a prepared generator; without one only the retrieval is scored, at each cut-off in `ks`. `attributions`
    are names in ATTRIBUTIONS; cross-attention requires a fusion-in-decoder, `leave_one_out_reference` is of the first
    reference in place of the answer. With a collator with `citations` these are scored, see `citation_scores`,
    and all other scores are of texts without them. To add a metric of your own:
    `metrics=(*METRICS, Metric("name", score=function))`. `generate` answers without evaluation.
    An `endpoint` answers in place of a local model: without losses and attributions, with the latencies of the server.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: AnswerLM | FusionInDecoder | None,
        collator: Collator | None,
        *,
        k: int,
        batch_size: int,
        max_new_tokens: int,
        prompt_lookup_tokens: int = 8,
        ks: Sequence[int] = KS,
        refusal_answer: str = REFUSAL_ANSWER,
        attributions: Sequence[str] = (),
        metrics: Sequence[Metric] = METRICS,
        endpoint: EndpointGenerator | None = None,
    ) -> None:
        if unknown := {*attributions} - {*ATTRIBUTIONS}:
            raise ValueError(f"attributions: expected some of {', '.join(ATTRIBUTIONS)}, got {', '.join(unknown)}")
        if (model is None) != (collator is None):
            raise ValueError("model and collator: expected both or neither, got one")
        if endpoint is not None and (model is not None or attributions):
            raise ValueError("endpoint: expected neither a model nor attributions, got one of them")
        self.k, self.ks, self.refusal_answer, self.metrics = k, ks, refusal_answer, metrics
        self.accelerator, self.max_new_tokens = accelerator, max_new_tokens
        self.environment = environment(accelerator, batch_size)
        self.attributions: dict[str, Attribution] = {}
        self.citations = collator is not None and collator.citations
        self.endpoint = endpoint
        self.has_generator = model is not None or endpoint is not None
        self.loss: Losses | None = None
        self.attributes_references = "leave_one_out_reference" in attributions
        if endpoint is not None:
            self.generate: Generator | EndpointGenerator = endpoint
        elif model is not None and collator is not None:
            self.generate = Generator(accelerator, model, collator, batch_size, max_new_tokens, prompt_lookup_tokens)
            self.environment |= {"prompt_lookup_tokens": self.generate.prompt_lookup_tokens}
            self.loss = AnswerLoss(accelerator, model, collator, batch_size)
            if "cross_attention" in attributions:
                self.attributions["cross_attention"] = CrossAttention(accelerator, model, collator, batch_size)
            if "leave_one_out" in attributions:
                self.attributions["leave_one_out"] = partial(leave_one_out, self.loss)

    def __call__(
        self, examples: Sequence[Example], retrieval: Retrieval | None, folder: Path | None = None, *, left_out: int = 0
    ) -> Scores:
        """Return the scores of all examples; the prompts contain the first k passages, or gold without a retrieval.

        The loss is that of the first references. Examples without references are answered, and left out of all scores
        of their answers. Times include no metric. Scores are computed on the main process, and are equal on every rank.

        With a `folder`, finished answers are stored in it until `Scores.write`: after a kill, the same call reads them
        there, and generates the others. Stored answers have no times; losses and attributions are computed again.
        `left_out` is the number of other examples in the file, for the record.
        """
        if retrieval is not None:
            retrieval = replace(retrieval, retrieved=[hits[: max(*self.ks, self.k)] for hits in retrieval.retrieved])
            inputs = retrieval.inputs(examples, self.k)
        else:
            inputs = [GeneratorInput.from_ranked(example, example.gold_passages) for example in examples]
        results = self._results(inputs, folder) if self.has_generator else None
        return call_on_main(self.accelerator, lambda: self._scores(inputs, retrieval, results, left_out))

    def _results(self, inputs: Sequence[GeneratorInput], folder: Path | None) -> "_Results":
        """Answer with time measurement, then attribute, and compute the losses of the references.

        The first question is answered twice by a local model: an untimed warm-up.
        """
        generate: Generate = self.generate if folder is None else self.generate.resumable(folder)
        if self.endpoint is None:
            self.generate(inputs[:1])
        start = time.perf_counter()
        with record_spans() as spans:
            answers = generate(inputs)
        seconds = time.perf_counter() - start
        answered = [_answered(item, answer) for item, answer in zip(inputs, answers, strict=True)]
        attributions = {name: attribute(answered) for name, attribute in self.attributions.items()}
        references = [_references(item.example, self.refusal_answer) for item in inputs]
        scored = [replace(item, answer=own[0]) for item, own in zip(inputs, references, strict=True) if own]
        losses = self.loss(scored) if scored and self.loss else []
        if self.attributes_references:
            increases = iter(leave_one_out(self.loss, scored) if scored and self.loss else [])
            attributions["leave_one_out_reference"] = [
                next(increases) if own else [math.nan] * len(item.passages)
                for item, own in zip(inputs, references, strict=True)
            ]
        return _Results(answers, seconds, spans, references, attributions, losses)

    def _scores(
        self,
        inputs: Sequence[GeneratorInput],
        retrieval: Retrieval | None,
        results: "_Results | None",
        left_out: int,
    ) -> Scores:
        examples = [item.example for item in inputs]
        rows: list[Row] = [
            {"id": one.id, "question": one.question, "chat_history": one.chat_history} for one in examples
        ]
        packages = ("torch", "transformers", "sacrebleu", "rouge-score")
        own = [metric for metric in self.metrics if metric.name not in {built_in.name for built_in in METRICS}]
        score: Row = {
            "metrics": {},
            "level": LEVEL,
            "resamples": RESAMPLES,
            "examples": len(examples),
            "examples_left_out": left_out,
            "passages_read": f"the first {self.k} {retrieval.origin}" if retrieval else "gold",
            "runtime": {**self.environment, "warm_up": "one question, not timed", "stages": {}},
            "versions": {"rqa": __version__} | {name: version(name) for name in packages},
            "labels": {metric.name: metric.label or metric.name for metric in own} or None,
        }
        if retrieval is not None:
            _score_retrieval(score, rows, examples, retrieval, self.ks)
        else:
            for row, example in zip(rows, examples, strict=True):
                row["passages"] = _passages(example, example.gold_passages)
        if results is not None:
            self._score_answers(score, rows, results)
            if self.endpoint is not None:
                del score["runtime"]["batch_size"]
                score["runtime"] |= {"warm_up": "none", "endpoint": self.endpoint.conditions()}
            if results.attributions:
                _score_attributions(score, rows, inputs, results.attributions)
            if results.losses:
                _score_losses(score, [row for row in rows if row["references"]], results.losses)
        predictions = [PredictionRecord(**row) for row in rows]
        return Scores(ScoreRecord(intervals=score_intervals(predictions), **score), predictions)

    def _score_answers(self, score: Row, rows: Sequence[Row], results: "_Results") -> None:
        answers = results.answers
        pairs = zip(rows, answers, results.references, strict=True)
        for row, answer, references in track(pairs, "metrics of answers", len(rows), unit="answers"):
            row |= {
                "num_passages_read": answer.num_passages,
                "answer": answer.text,
                "reasoning": answer.reasoning or None,
                "references": references,
                "finished": answer.finished,
            }
            if self.citations:
                row |= score_citations(answer.text, row["passages"][: answer.num_passages])
            if references:
                [text] = self._all_scored([answer.text])
                row["answer_scores"] = answer_scores(text, self._all_scored(references), self.metrics)
        if self.citations:
            score["metrics"] |= mean_citation_scores(rows)
        if scored := [row for row in rows if row["references"]]:
            bleu = corpus_bleu(
                self._all_scored(row["answer"] for row in scored),
                [self._all_scored(row["references"]) for row in scored],
            )
            score["metrics"] |= {"bleu": bleu.score, **mean_scores([row["answer_scores"] for row in scored])}
            score["signatures"] = {"bleu": bleu.signature, "rouge": ROUGE_SIGNATURE}
        cut = sum(not answer.finished for answer in answers)
        score["metrics"] |= {
            "answer_words": math.fsum(map(answer_length, self._all_scored(answer.text for answer in answers)))
            / len(answers),
            "cut_answers": 100 * cut / len(answers),
        }
        score["examples_without_references"] = len(rows) - len(scored)
        timed = sum(not answer.is_stored for answer in answers)
        score["runtime"] |= {"timed_answers": timed}
        score["runtime"]["stages"] |= summarize_spans(results.spans)
        score["generation"] = {
            "seconds_per_answer": results.seconds / timed if timed else None,
            "prompt_tokens": sum(answer.num_prompt_tokens for answer in answers),
            "truncated_passage_tokens": sum(answer.truncated for answer in answers),
            "truncated_prompts": sum(answer.truncated > 0 for answer in answers),
            "answer_tokens": sum(answer.num_tokens for answer in answers),
            "unfinished": cut,
            "answers_with_reasoning": sum(bool(answer.reasoning) for answer in answers),
        }
        if score["metrics"]["cut_answers"] > MAX_CUT_ANSWERS:
            _warn_of_cut_answers(cut, len(answers), self.max_new_tokens)

    def _all_scored(self, texts: Iterable[str]) -> list[str]:
        """Return the texts as they are scored: without citations, if answers cite passages."""
        return [without_citations(text) if self.citations else text for text in texts]


@dataclass(frozen=True)
class _Results:
    """The work of the model: of every input an answer, its references and attributions; of references the loss."""

    answers: Sequence[Answer]
    seconds: float
    spans: Sequence[Span]
    references: Sequence[tuple[str, ...]]
    attributions: Mapping[str, Sequence[Sequence[float]]]
    losses: Sequence[tuple[float, int]]


def _answered(item: GeneratorInput, answer: Answer) -> GeneratorInput:
    """Return the input with a generated answer, which cites the passages of its prompt."""
    read = item.passages[: answer.num_passages]
    return replace(item, answer=answer.text, citable_ids=tuple(passage.id for passage in read))


def _warn_of_cut_answers(cut: int, total: int, limit: int) -> None:
    with logging_redirect_tqdm():  # above the progress bar of a training run
        log.warning(
            "--max_new_tokens %d: expected complete answers, got %d of %d that are cut there. Raise it.",
            *(limit, cut, total),
        )


def _score_retrieval(
    score: Row, rows: Sequence[Row], examples: Sequence[Example], retrieval: Retrieval, ks: Sequence[int]
) -> None:
    """Score the examples that have gold passages; count the others."""
    for row, example, hits in zip(rows, examples, retrieval.retrieved, strict=True):
        row["passages"] = _passages(example, [hit.passage for hit in hits], [hit.score for hit in hits])
        if gold := {passage.id for passage in example.gold_passages}:
            row["retrieval_scores"] = retrieval_scores(gold, [hit.passage.id for hit in hits], ks)
    scored = [row["retrieval_scores"] for row in rows if "retrieval_scores" in row]
    score["metrics"] |= mean_scores(scored)
    score["runtime"]["stages"] |= retrieval.stages
    score["examples_without_gold"] = len(examples) - len(scored)
    score["retrieval"] = {"fingerprint": retrieval.fingerprint}
    if retrieval.seconds is not None:
        score["retrieval"]["seconds_per_question"] = retrieval.seconds / max(1, len(examples))


def _passages(example: Example, passages: Sequence[Passage], scores: Sequence[float] = ()) -> tuple[PassageRecord, ...]:
    gold = {passage.id for passage in example.gold_passages}
    return tuple(
        PassageRecord(passage.id, passage.title, passage.text, passage.sources, score, passage.id in gold)
        for passage, score in zip(passages, scores or [math.nan] * len(passages), strict=True)
    )


def _references(example: Example, refusal_answer: str) -> tuple[str, ...]:
    """Return the texts that an answer is scored against, () if it is not scored."""
    return (refusal_answer,) if example.unanswerable else example.answers


def _score_losses(score: Row, rows: Sequence[Row], losses: Sequence[tuple[float, int]]) -> None:
    for row, (nll, tokens) in zip(rows, losses, strict=True):
        row |= {"reference_nll": nll, "reference_tokens": tokens}
    score["metrics"]["loss"] = math.fsum(nll for nll, _ in losses) / sum(tokens for _, tokens in losses)


def _score_attributions(
    score: Row,
    rows: Sequence[Row],
    inputs: Sequence[GeneratorInput],
    by_name: Mapping[str, Sequence[Sequence[float]]],
) -> None:
    """Record the attributions, and score the share on gold of the inputs that contain a gold passage."""
    for i, (row, item) in enumerate(zip(rows, inputs, strict=True)):
        gold = {passage.id for passage in item.example.gold_passages}
        is_gold = [passage.id in gold for passage in item.passages]
        values = {name: of_items[i] for name, of_items in by_name.items()}
        row["attribution"] = tuple(
            {"id": passage.id, "is_gold": is_gold[j], **{name: of_item[j] for name, of_item in values.items()}}
            for j, passage in enumerate(item.passages)
        )
        if any(is_gold) and all(map(math.isfinite, chain(*values.values()))):
            row["attribution_scores"] = {
                f"{name}_on_gold": 100 * share_on_gold(value, is_gold) for name, value in values.items()
            }
    scored = [row["attribution_scores"] for row in rows if "attribution_scores" in row]
    score["metrics"] |= mean_scores(scored)
    score["examples_that_read_gold"] = len(scored)


class AnswerLoss:
    """The negative log-likelihood of references under a prepared model, in nats."""

    def __init__(self, accelerator: Accelerator, model: nn.Module, collator: Collator, batch_size: int) -> None:
        self.accelerator = accelerator
        self.model = model
        self.collator = collator
        self.batch_size = batch_size

    def __call__(self, inputs: Sequence[GeneratorInput]) -> list[tuple[float, int]]:
        """Return the negative log-likelihood of each answer, and its number of tokens; every rank must call this."""
        self.model.eval()
        rows = self.collator.encode(inputs)
        losses = map_batches(
            self.accelerator, rows, self._losses, batch_size=self.batch_size, description="computing losses"
        )
        return [(loss, len(row.answer)) for loss, row in zip(losses, rows, strict=True)]

    @torch.no_grad()
    def _losses(self, rows: Sequence[EncodedExample]) -> list[float]:
        batch = {name: tensor.to(self.accelerator.device) for name, tensor in self.collator.collate(rows).items()}
        losses: list[float] = self.model(**batch).tolist()
        return losses
