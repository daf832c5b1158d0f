"""Writing of questions until enough are kept, and an estimate of the cost."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rqa.atomic_files import write_json
from rqa.data.corpus import PassageStore
from rqa.data.records import Turn
from rqa.errors import InputError
from rqa.judge.client import Judge
from rqa.judge.verdicts import Cost, estimate_cost, price_of
from rqa.questions.output import REPORT_FILE, check_folder, counts_of, write_files
from rqa.questions.plan import Plan, QuestionSet, without_broken_conversations
from rqa.questions.prompt import PROMPT_VERSION
from rqa.questions.review import Reviewer, closed_book_body, grading_request, passage_request
from rqa.questions.rules import Rules
from rqa.questions.writer import Question, Task, Writer
from rqa.terminal import plural
from rqa.training.folder_lock import lock_folder

log = logging.getLogger(__name__)

RESPONSES_FILE = "writer.jsonl"  # the response cache of the writer, in the output folder
Prices = Mapping[str, tuple[float | None, float | None]]  # of a million tokens of requests and answers, by model
_NO_PRICE = (None, None)
_QUESTION, _ANSWER = "x" * 80, "x" * 150  # of typical length, for an estimate
_TOKENS_PER_QUESTION = 100.0


def write_questions(
    passages: PassageStore,
    writer: Writer,
    judge: Judge | None,
    plan: Plan,
    folder: Path,
    *,
    settings: Mapping[str, Any],
    prices: Prices | None = None,
) -> dict[str, Any]:
    """Write train.jsonl, validation.jsonl, test.jsonl, rejected.jsonl and report.json, and return the report.

    Passages are sampled until all questions of the `plan` are kept, or a limit is reached: passages, attempts, budget.
    A limit is logged as a warning, and the files are written. Without a `judge` the rules alone decide. `settings` are
    the flags that the questions depend on; a folder with files of others is an error. The same call resumes, and makes
    only calls that have no response yet. `prices` are those of "writer" and "judge". Raises InputError.
    """
    settings = {**settings, "corpus": passages.fingerprint, "prompt_version": PROMPT_VERSION}
    check_folder(folder, settings)
    done, reviewer = QuestionSet(plan, plan.sampler(passages)), Reviewer(judge) if judge else None
    written_by = {"model": writer.model, "prompt_version": PROMPT_VERSION, **({"judge": judge.model} if judge else {})}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock_folder(folder)
        if not (folder / REPORT_FILE).exists():
            write_json(folder / REPORT_FILE, {"settings": settings})
        _ask(done, writer, reviewer)
        tokens = {"writer": writer.tokens_used, **({"judge": reviewer.tokens_used} if reviewer else {})}
        costs = {
            name: price_of(used["prompt_tokens"], used["completion_tokens"], *(prices or {}).get(name, _NO_PRICE))
            for name, used in tokens.items()
        }
        usage = {
            name: {**used, **({} if costs[name] is None else {"cost": costs[name]})} for name, used in tokens.items()
        }
        report = {"settings": settings, **counts_of(done), "usage": usage}
        write_files(folder, done, written_by, report)
    except OSError as error:
        raise InputError(f"--output_dir {folder}: expected a writable folder, got {error}") from error
    return report


def _ask(done: QuestionSet, writer: Writer, reviewer: Reviewer | None) -> None:
    """Ask about passages in rounds, until there are enough questions or a limit is reached."""
    rules, limit = Rules(), ""
    while not limit and (tasks := done.next_tasks()):
        written = [rules(question) for questions in writer(tasks) for question in questions]
        written = _reviewed(without_broken_conversations(written), reviewer)
        done.add(written)
        log.info("%s kept, %s missing", plural(done.num_kept, "question"), f"{done.num_missing:,}")
        used = ((each.role, each.used_budget) for each in (writer, reviewer and reviewer.judge) if each)
        limit = "; ".join(f"{role}: {budget}" for role, budget in used if budget)
    if not done.num_missing:
        return
    if limit:
        log.warning("%s. The same command continues, with a higher limit if needed", limit)
    elif done.is_given_up:
        log.warning("--max_attempts %g: too many questions are rejected, see rejected.jsonl", done.plan.max_attempts)
    for split in () if limit else done.exhausted:
        log.warning("%s: every passage of the split was asked about", split)


def _reviewed(questions: list[Question], reviewer: Reviewer | None) -> list[Question]:
    """Return the questions after the checks of the reviewer, which reads those that have passed the rules."""
    if reviewer is None:
        return questions
    passed = [i for i, question in enumerate(questions) if not question.reason]
    for i, question in zip(passed, reviewer([questions[i] for i in passed]), strict=True):
        questions[i] = question
    return without_broken_conversations(questions)


# Estimate


def estimate_questions(
    passages: PassageStore, writer: Writer, judge: Judge | None, plan: Plan, prices: Prices
) -> dict[str, Cost]:
    """Return the costs of writer and judge if no question is rejected, without a call.

    The judge's part assumes that its model tries to answer every question without the passage.
    """
    tasks = QuestionSet(plan, plan.sampler(passages)).next_tasks()
    bodies = [writer.request_body(task) for task in tasks]
    tokens_per_answer = _TOKENS_PER_QUESTION * sum(task.count for task in tasks) / max(1, len(tasks))
    writer_prices, judge_prices = (prices.get(name, _NO_PRICE) for name in ("writer", "judge"))
    costs = {"writer": estimate_cost(bodies, writer.cached(bodies), *writer_prices, tokens_per_answer)}
    if judge:
        requests = [body for task in tasks for body in _judge_bodies(judge, task)]
        costs["judge"] = estimate_cost(requests, {}, *judge_prices)
    return costs


def _judge_bodies(judge: Judge, task: Task) -> Iterator[str]:
    """Yield the requests about the questions of a task, with texts of typical length."""
    history: tuple[Turn, ...] = ()
    for number in range(task.count):
        is_answered = task.kind != "unanswerable"
        question = Question(task, number, _QUESTION, _ANSWER * is_answered, history=history)
        yield judge.request_body(passage_request(question))
        if is_answered:
            yield closed_book_body(judge, question)
            yield judge.request_body(grading_request(question, _ANSWER))
        if task.kind == "conversation":
            history = (*history, Turn("user", _QUESTION), Turn("assistant", _ANSWER))
