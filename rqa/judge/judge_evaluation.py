"""Judging of an evaluation: verdicts on each answer and on its citations, and the scores of the judge."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rqa.data.data_file import check_file, open_data
from rqa.data.fields import Fields
from rqa.data.jsonl import read_rows
from rqa.data.records import Example, Passage, Role, Turn
from rqa.errors import InputError
from rqa.evaluation.comparison import read_evaluation
from rqa.evaluation.results import EVALUATE_AGAIN, PredictionRecord, VerdictRecord, write_predictions, write_record
from rqa.evaluation.significance import score_intervals
from rqa.judge.citation_support import (
    SUPPORT_SCORES,
    build_support_requests,
    summarize_support,
    support_record,
    support_scores,
)
from rqa.judge.client import Judge
from rqa.judge.prompt import PROMPT_VERSION, JudgeRequest
from rqa.judge.verdicts import Verdict, cohens_kappa, price_of, summarize

log = logging.getLogger(__name__)

RESPONSES_FILE = "judge.jsonl"  # the response cache, in the folder of the evaluation
SCORES = ("judge_accuracy", "judge_accuracy_low", "judge_accuracy_high", *SUPPORT_SCORES)


def judge_answers(
    folder: Path,
    judge: Judge,
    *,
    labels: str = "",
    dry_run: bool = False,
    prompt_price: float | None = None,
    completion_price: float | None = None,
) -> None:
    """Judge the answers of an evaluation and their citations, and write verdicts and scores into its files.

    One request asks if an answer with references is correct. One more asks which citations of an answer are
    supported; they come after all others, if a budget ends. `labels` is a file of people's verdicts: the agreement with
    them is written too. So is the cost of all requests, if a price of a million tokens is given. A dry run logs an
    estimate of the cost and writes nothing. Raises InputError.
    """
    evaluation = read_evaluation(folder)
    predictions = list(evaluation.predictions.values())
    requests = build_requests(predictions)
    if without_references := len(predictions) - len(requests):
        log.info("%s: %d answers without references are not judged", folder, without_references)
    support_requests = build_support_requests(predictions)
    human_verdicts = read_labels(labels, predictions) if labels else {}
    if dry_run:
        cost = judge.estimate_cost([*requests, *support_requests.values()], prompt_price, completion_price)
        cited = f" and the citations of {len(support_requests)}" if support_requests else ""
        log.info("%s: judging %d answers%s takes %s", folder, len(requests), cited, cost)
        return
    results = judge([*requests, *support_requests.values()])
    ids = [prediction.id for prediction in predictions if prediction.references]
    verdicts = dict(zip(ids, results[: len(ids)], strict=True))
    support = dict(zip(support_requests, results[len(ids) :], strict=True))
    predictions = [
        _judged(prediction, verdicts.get(prediction.id), support.get(prediction.id)) for prediction in predictions
    ]
    summary = summarize([*verdicts.values()]) | summarize_support(predictions)
    report: dict[str, Any] = {
        "model": judge.model,
        "endpoint": str(judge.url),
        "parameters": dict(judge.parameters),
        "prompt_version": PROMPT_VERSION,
        **{name.removeprefix("judge_"): value for name, value in summary.items() if name not in SCORES},
    }
    for name in ("calls", "prompt_tokens", "completion_tokens"):
        report[name] = sum(getattr(verdict, name) for verdict in results)
    if support:
        report["citation_support"] = Counter(verdict.status for verdict in support.values())
    price = price_of(report["prompt_tokens"], report["completion_tokens"], prompt_price, completion_price)
    report |= {} if price is None else {"cost": price}
    if human_verdicts:
        by_id = {id: verdict.correct for id, verdict in verdicts.items()}
        try:
            report["agreement"] = asdict(cohens_kappa(by_id, human_verdicts))
        except InputError as problem:  # the verdicts are written nevertheless
            log.warning("--judge_labels %s: %s", labels, problem)
    scores = {name: summary[name] for name in SCORES if name in summary}
    others = {name: value for name, value in evaluation.score.metrics.items() if name not in SCORES}
    score = replace(evaluation.score, metrics=others | scores, intervals=score_intervals(predictions), judge=report)
    # First without the judge's scores: after a kill between these lines, score.json and predictions.jsonl still agree.
    write_record(folder / "score.json", replace(score, metrics=others))
    write_predictions(folder / "predictions.jsonl", predictions)
    write_record(folder / "score.json", score)
    log.info("%s: %s", folder, "  ".join(f"{name} {value:.3g}" for name, value in scores.items()))
    counts = {name: value for name, value in report.items() if name not in ("model", "endpoint", "parameters")}
    log.info("%s", "  ".join(f"{name} {value}" for name, value in counts.items()))


def build_requests(predictions: Iterable[PredictionRecord]) -> list[JudgeRequest]:
    """Return a request for each answer that has references, with the passages in its prompt, whole. Texts have no
    citations if answers cite passages.

    Raises InputError if a prediction has no answer, or if none has references or may have citations.
    """
    requests, has_citations = [], False
    for row in predictions:
        if row.answer is None or row.num_passages_read is None:
            raise InputError(
                f'predictions.jsonl: expected "answer" and "num_passages_read" of {row.id!r}, got an evaluation of the '
                "retriever alone. Evaluate with --model_name_or_path."
            )
        has_citations |= row.citation_scores is not None
        if not row.references:
            continue
        texts = tuple(Passage(each.text, each.title).content for each in row.passages[: row.num_passages_read])
        answer = row.scored_answer or ""
        requests.append(JudgeRequest(row.question, answer, row.scored_references, texts, row.chat_history))
    if not (requests or has_citations):
        raise InputError(
            'predictions.jsonl: expected "references" to judge by, got none. Add answers to the questions. '
            f"{EVALUATE_AGAIN}"
        )
    return requests


def read_labels(path: str | Path, questions: Iterable[Example | PredictionRecord]) -> dict[str, bool]:
    """Return people's verdicts by the id of a question.

    A row is {"id": that of a question, "correct": true or false}. A row of feedback.jsonl belongs to the prediction
    with its question, conversation and answer; an example has no answer, which is then not compared. Raises DataError
    with all invalid rows, and InputError if no row of feedback belongs to a question.
    """
    check_file(path, (".jsonl", ".jsonl.gz"))
    by_id, labels = {each.id: each for each in questions}, dict[str, bool]()
    feedback: dict[tuple[Any, ...], list[bool]] = {}
    for *_, row in read_rows(path, open_data(path)):
        if not row.has("correct"):
            row.problem("correct", "expected true or false, got nothing")
        if row.has("answer") and row.has("passages"):
            rated = (row.text("question"), _history(row))
            for key in (rated, (*rated, row.text("answer", optional=True))):
                feedback.setdefault(key, []).append(row.flag("correct"))
            continue
        id = row.identifier("id")
        if id not in by_id or id in labels:
            row.problem("id", f'expected the id of a question of the evaluation, once, got "{id}"')
        labels[id] = row.flag("correct")
    return _matched(path, feedback, by_id.values()) | labels if feedback else labels


def _history(row: Fields) -> tuple[Turn, ...]:
    turns = row.objects("chat_history", optional=True)
    roles: list[Role] = ["user" if turn.text("speaker") == "user" else "assistant" for turn in turns]
    return tuple(Turn(role, turn.text("message", optional=True)) for role, turn in zip(roles, turns, strict=True))


def _matched(
    path: str | Path,
    feedback: Mapping[tuple[Any, ...], Sequence[bool]],
    questions: Iterable[Example | PredictionRecord],
) -> dict[str, bool]:
    """Return the verdict of users on each question; different verdicts on one answer are left out.

    `feedback` has the verdicts by question and conversation, and by these and the answer.
    """
    keys = {
        each.id: (each.question, each.chat_history, *([each.answer] if isinstance(each, PredictionRecord) else ()))
        for each in questions
    }
    verdicts = {id: feedback[key] for id, key in keys.items() if key in feedback}
    labels = {id: rated[0] for id, rated in verdicts.items() if len({*rated}) == 1}
    count = sum(len(feedback[key]) for key in {*keys.values()} & feedback.keys())
    total = sum(len(rated) for key, rated in feedback.items() if len(key) == 2)
    if not count:
        asked = sum(len(feedback.get(key, ())) for key in {key[:2] for key in keys.values()})
        raise InputError(
            f"--judge_labels {path}: expected feedback on answers of the evaluation, got none in {total} rows, of "
            f"which {asked} are on its questions with other answers. Serve the model that is evaluated."
        )
    left_out = f"; {len(verdicts) - len(labels)} answers with different verdicts are left out"
    log.info("%s: %d of %d rows are on answers of the evaluation%s", path, count, total, left_out)
    return labels


def _judged(prediction: PredictionRecord, verdict: Verdict | None, support: Verdict | None) -> PredictionRecord:
    record, cited, scores = None, support_record(prediction, support), dict[str, float]()
    if verdict is not None:
        record = VerdictRecord(status=verdict.status, correct=verdict.correct, explanation=verdict.explanation)
        scores = {} if verdict.correct is None else {"judge_accuracy": 100.0 * verdict.correct}
    if cited and cited.sentences:
        scores |= support_scores(cited.sentences)
    return replace(prediction, verdict=record, citation_support=cited, judge_scores=scores or None)
