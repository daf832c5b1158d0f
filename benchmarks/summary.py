"""Write the tables and plots of docs/benchmarks.md from benchmarks/results/: no number there is typed by hand.

    python benchmarks/summary.py

A line `<!-- NAME -->` begins a table, `<!-- end -->` ends it. NAME is a file of results, or `machine NAME`.
"""

import re

from measure import RESULTS, ROOT, Question, plot

PAGE = ROOT / "docs/benchmarks.md"
BLOCK = re.compile(r"(<!-- (?!end)(?:(machine) )?(\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
PLOTS = {  # name of a plot: the beginning of the names of its results, number, its name
    "training": ("training-", "seconds", "time"),
    "training-memory": ("training-", "memory", "memory"),
    "generation": ("generation-", "seconds", "time"),
    "fid": ("fid-", "seconds", "time"),
}


def describe_machine(question: Question) -> str:
    """Return one paragraph about the machine of a measurement."""
    facts = question.machine
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return (
        f"{facts['cpu']} (family, model, stepping {facts['family, model, stepping']}; "
        f"{', '.join(facts['instructions'])}), {facts['cores']} cores, threads: {facts['threads']}, "
        f"{facts['memory_gib']} GiB, Python {facts['python']}, {versions}."
    )


def filled(page: str) -> str:
    """Return the page with every table from its results."""

    def block(match: re.Match[str]) -> str:
        start, is_machine, name, end = match.groups()
        question = Question.read(name)
        return f"{start}\n{describe_machine(question) if is_machine else question.table()}\n\n{end}"

    return BLOCK.sub(block, page)


def main() -> None:
    """Write the page and the plots."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    for name, (beginning, key, unit) in PLOTS.items():
        files = sorted(path.stem for path in RESULTS.glob(f"{beginning}*.json"))
        if files:
            plot(name, {each.removeprefix(beginning): Question.read(each) for each in files}, key, unit)


if __name__ == "__main__":
    main()
