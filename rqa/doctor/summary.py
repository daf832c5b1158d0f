"""The doctor's output: findings and estimates, printed and as JSON."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import Any, Literal, get_args

import numpy as np

from rqa.atomic_files import write_json
from rqa.doctor.findings import KINDS, Finding, Severity
from rqa.prompts.collators import EncodedExample
from rqa.terminal import plural, write_result

FailOn = Literal["problem", "warning", "never"]
FORMAT = 2  # of findings.json
SHOWN_PLACES = 3  # of each finding


def token_lengths(rows: Sequence[EncodedExample]) -> dict[str, Any]:
    """Return median, 95th percentile and maximum of the tokens of prompts, answers, rows; and the truncated share."""
    lengths = [(row.num_prompt_tokens, len(row.answer), len(row)) for row in rows]
    prompts, answers, whole = np.quantile(lengths, [0.5, 0.95, 1], axis=0, method="higher").T.tolist()
    truncated = sum(row.truncated for row in rows)
    share = truncated / (truncated + sum(map(len, rows)))
    return {"rows": len(rows), "prompt": prompts, "answer": answers, "row": whole, "truncated_share": share}


def exit_status(findings: Sequence[Finding], fail_on: FailOn, accepted: Collection[str]) -> int:
    """Return 1 if a finding that is not `accepted` has at least the severity `fail_on`, else 0."""
    failing = {"problem": {"problem"}, "warning": {"problem", "warning"}, "never": set[str]()}[fail_on]
    return int(any(f.count and f.severity in failing and f.name not in accepted for f in findings))


def print_findings(findings: Sequence[Finding], accepted: Collection[str] = ()) -> None:
    """Print the findings, problems first, then the names of the checks without findings."""
    findings = [finding for finding in findings if finding.total]
    for severity in get_args(Severity):
        for name, (meaning, advice) in KINDS.items():
            same_kind = [f for f in findings if (f.name, f.severity) == (name, severity) and f.count]
            if same_kind:
                write_result(f"{severity:8} {name}{' (accepted)' if name in accepted else ''}: {meaning}; {advice}")
            for finding in same_kind:
                lines = [place.replace("\n", "\\n") for place in finding.places[:SHOWN_PLACES]]
                places = "".join(f"\n             {line}" for line in lines)
                share = finding.count / finding.total
                write_result(f"         {finding.split}: {finding.count} of {finding.total} ({share:.2%}){places}")
    without = {finding.name for finding in findings} - {finding.name for finding in findings if finding.count}
    write_result(fill(f"no findings: {', '.join(name for name in KINDS if name in without)}", 100))


def print_training(report: Mapping[str, Any], sample_size: int) -> None:
    """Print the lengths of the rows, and the estimate of an epoch and of memory."""
    write_result(
        f"\nrows of at most {sample_size} examples of a file; random passages stand in for those of a retriever"
    )
    write_result(f"{'tokens':26}{'rows':>7}{'median':>9}{'95 %':>9}{'maximum':>9}")
    for split, lengths in report["tokens"].items():
        for part in ("prompt", "answer", "row"):
            numbers = "".join(f"{number:>9}" for number in lengths[part])
            write_result(f"{split + ', ' + part:26}{lengths['rows']:>7}{numbers}")
        write_result(f"{split + ', truncated share':33}{lengths['truncated_share']:>9.2%}")
    if "epoch" not in report:
        return
    epoch, tokens = report["epoch"], report["epoch"]["tokens"]
    targets = f"{epoch['targets'] / tokens:.1%} of them targets"
    write_result(f"\nan epoch: {plural(epoch['steps'], 'step')}, {plural(tokens, 'token')}, {targets}")
    write_result(f"in total: {plural(report['steps'], 'step')}")
    write_result(f"positions computed per token: {epoch['positions'] / tokens:.2f}")
    write_result(f"positions per token if all rows had the maximum length: {epoch['padded'] / tokens:.2f}")
    write_result("\nGiB on one device: {parameters} parameters, {precision}, {micro_batch}:".format(**report))
    _print_sizes(report["bytes"])
    accuracy = "within about 10 %" if "activations" in report["bytes"] else "without activations, which are unknown"
    write_result(
        f"  {'total':14}{sum(report['bytes'].values()) / 2**30:8.2f}, {accuracy}, without the device's own use"
    )
    if report["host_bytes"]:
        write_result(f"  in CPU memory {report['host_bytes'] / 2**30:8.2f} for each process")
    write_result("\nGiB on one device in recipes/evaluate.py, for the longest prompts:")
    _print_sizes(report["evaluation_bytes"])


def _print_sizes(sizes: Mapping[str, int]) -> None:
    for use, size in sizes.items():
        write_result(f"  {use:14}{size / 2**30:8.2f}")


def write_findings(path: Path, findings: Sequence[Finding], report: Mapping[str, Any]) -> None:
    """Write all findings, with every place, and the estimates as JSON."""
    rows = [asdict(f) | dict(zip(("meaning", "advice"), KINDS[f.name], strict=True)) for f in findings if f.total]
    write_json(path, {"format": FORMAT, "findings": rows, **report})
