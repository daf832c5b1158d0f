"""Files of written questions: those that are kept, those that are rejected, and a report."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rqa.atomic_files import atomic_file, json_text, write_json
from rqa.errors import InputError
from rqa.questions.plan import QuestionSet
from rqa.questions.prompt import KINDS
from rqa.questions.sampling import SPLITS
from rqa.questions.writer import Question

REPORT_FILE, REJECTED_FILE = "report.json", "rejected.jsonl"


def check_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise InputError if a folder has files of a command with other `settings`."""
    names = [*(f"{split}.jsonl" for split in SPLITS), REJECTED_FILE, REPORT_FILE]
    if not any((folder / name).exists() for name in names):
        return
    expected = f"--output_dir {folder}: expected a new folder, or that of the same command, got one with"
    try:
        earlier = json.loads((folder / REPORT_FILE).read_bytes())["settings"]
        others = sorted(name for name in {*earlier, *settings} if earlier.get(name) != settings.get(name))
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{expected} other files. Name a new folder") from None
    if others:
        raise InputError(f"{expected} another {', '.join(others)}. Name a new folder")


def write_files(folder: Path, done: QuestionSet, written_by: Mapping[str, Any], report: Mapping[str, Any]) -> None:
    """Write the questions of each split, the rejected ones, and the report, each file atomically. Raises OSError."""
    for split in done.sampler.num_documents:
        kept = (question for kind in KINDS for question in done.kept[split, kind])
        _write_rows(folder / f"{split}.jsonl", (_row(question, written_by) for question in kept))
    _write_rows(folder / REJECTED_FILE, map(_rejected_row, done.rejected))
    write_json(folder / REPORT_FILE, report)


def counts_of(done: QuestionSet) -> dict[str, Any]:
    """Return the counts of the report."""
    kept = {split: {kind: len(done.kept[split, kind]) for kind in KINDS} for split in done.sampler.num_documents}
    return {
        "kept": kept,
        "missing": done.num_missing,
        "rejected": dict(Counter(question.reason for question in done.rejected).most_common()),
        "passages": {
            "corpus": done.sampler.num_passages,
            "too_short": done.sampler.num_short,
            "asked_about": done.num_passages,
        },
        "documents": done.sampler.num_documents,
    }


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with atomic_file(path) as file:
        for row in rows:
            file.write(f"{json_text(row)}\n".encode())


def _row(question: Question, written_by: Mapping[str, Any]) -> dict[str, Any]:
    """Return a question in the form that `rqa.data.load_examples` reads; it ignores `written_by`."""
    passage = question.task.passage
    metadata = {"source": next(iter(passage.sources), ""), "title": passage.title}
    gold = {"page_content": passage.text, "metadata": {name: value for name, value in metadata.items() if value}}
    is_answered = question.task.kind != "unanswerable"
    return {
        "id": f"{passage.id}-{question.number}",
        "question": question.text,
        **({"gold_answer": question.answer} if is_answered else {"unanswerable": True}),
        "gold_docs": [gold],
        "chat_history": [{"speaker": turn.role, "message": turn.text} for turn in question.history],
        "written_by": {**written_by, **({"evidence": question.evidence} if is_answered else {})},
    }


def _rejected_row(question: Question) -> dict[str, Any]:
    task, passage = question.task, question.task.passage
    return {
        "reason": question.reason,
        "detail": question.detail,
        "split": task.split,
        "kind": task.kind,
        "question": question.text,
        "answer": question.answer,
        "evidence": question.evidence,
        "passage": {"id": passage.id, "title": passage.title, "sources": list(passage.sources)},
    }
