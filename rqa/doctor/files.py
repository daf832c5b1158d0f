"""The files of a run, read past their problems."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rqa.data.corpus import PassageStore, open_passages
from rqa.data.file_report import FileReport
from rqa.data.records import Example, read_examples
from rqa.doctor.findings import Finding, Severity

SPLITS = ("train", "eval", "test")


def read_splits(
    *paths: str, gold_required: bool | Sequence[bool], max_bad_rows: int = 0, **speakers: str | None
) -> tuple[dict[str, list[Example]], list[Finding]]:
    """Return the examples of the good rows of train, eval and test, and findings about rows and fields.

    The arguments are those of `load_splits`. Raises InputError for a file that is missing, empty, or no JSON.
    """
    splits: dict[str, list[Example]] = {}
    findings = []
    required = [gold_required] * len(paths) if isinstance(gold_required, bool) else gold_required
    for split, path, gold in zip(SPLITS, paths, required, strict=True):
        splits[split] = []
        if path:
            splits[split], report = read_examples(path, gold_required=gold, **speakers)
            findings += _file_findings(split, report, max_bad_rows)
    return splits, findings


def read_corpus(
    path: str, *, cache_dir: Path | None = None, **options: Any
) -> tuple[PassageStore | None, list[Finding]]:
    """Return the corpus of the good rows, None without a path, and findings about rows and fields.

    `options` are those of `open_passages`; a folder for the cache is not created.
    Raises as `open_passages` does if no row is good.
    """
    if not path:
        return None, []
    report = FileReport(path)
    has_cache = cache_dir is not None and cache_dir.is_dir()
    corpus = open_passages(path, report, cache_dir=cache_dir if has_cache else None, **options)
    if not corpus:
        report.check()
    return corpus, _file_findings("corpus", report, 0)


def _file_findings(split: str, report: FileReport, max_bad_rows: int) -> list[Finding]:
    report.log_notes()
    bad: Severity = "problem" if report.is_refused(max_bad_rows) else "warning"
    misnamed, unread = report.misnamed_fields, report.unread_fields
    return [
        Finding("bad_row", bad, split, report.num_bad_rows, report.num_rows, tuple(report.bad_rows)),
        Finding("misnamed_field", "warning", split, report.num_misnamed_rows, report.num_rows, tuple(misnamed)),
        Finding("unread_field", "note", split, report.num_unread_rows, report.num_rows, tuple(unread)),
    ]
