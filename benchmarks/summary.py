"""Write the tables and plots of docs/benchmarks.md, and the ratios of README.md, from benchmarks/results/.

    python benchmarks/summary.py

No number there is typed by hand. A line `<!-- NAME -->` begins a block, `<!-- end -->` ends it. NAME is a file of
results, `machine NAME`, `aims`, or `ratios`.
"""

import re
from dataclasses import dataclass

from measure import RATIO, RESULTS, ROOT, Estimate, Question, plot

PAGES = (ROOT / "docs/benchmarks.md", ROOT / "README.md")
BLOCK = re.compile(r"(<!-- (?!end)(?:(machine) )?(\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
DTYPES = ("fp32", "bf16")
PLOTS = {  # name of a plot: the beginning of the names of its results, number, its name
    "training": ("training-", "seconds", "time"),
    "training-memory": ("training-", "memory", "memory"),
    "generation": ("generation-", "seconds", "time"),
    "fid": ("fid-", "seconds", "time"),
}


@dataclass(frozen=True)
class Aim:
    """The smallest value of a number that we want: of a ratio to ours, or, with `way` rqa, of the number itself."""

    text: str
    name: str  # of the results, without the dtype
    way: str
    at_least: float
    key: str = "seconds"

    def measured(self, dtype: str) -> Estimate:
        """Return the number."""
        question = Question.read(f"{self.name}-{dtype}")
        return question.values(self.way, self.key) if self.way == question.ours else question.ratio(self.way, self.key)

    def cell(self, dtype: str) -> str:
        """Return the number, and whether its median reaches the aim."""
        measured = self.measured(dtype)
        return f"{measured:{RATIO}}, {'reached' if measured.median >= self.at_least else 'missed'}"


AIMS = (
    Aim("LocalRQA's way, 300 tokens: time", "training-300", "LocalRQA", 10),
    Aim("TRL's defaults, 300 tokens: time", "training-300", "TRL, defaults", 3),
    Aim("TRL's defaults, 800 tokens: time", "training-800", "TRL, defaults", 3),
    Aim("TRL's best settings, 800 tokens: time", "training-800", "TRL, best", 2.5),
    Aim("TRL's best settings, 300 tokens: memory", "training-300", "TRL, best", 1.33, "memory"),
    Aim("TRL's best settings, 800 tokens: memory", "training-800", "TRL, best", 1.33, "memory"),
    Aim("a plain loop with the same batches, 300 tokens: time", "loop-300", "plain loop, same batches", 0.98),
    Aim("a plain loop with the same batches, 800 tokens: time", "loop-800", "plain loop, same batches", 0.98),
    Aim("training, 300 tokens: share of the matrix product", "loop-300", "rqa", 0.75, "share"),
    Aim("training, 800 tokens: share of the matrix product", "loop-800", "rqa", 0.75, "share"),
    Aim("one `generate()` for each question, 32 tokens: time", "generation-32", "one by one", 2.2),
    Aim("one `generate()` for each question, 128 tokens: time", "generation-128", "one by one", 4),
    Aim("FiD with fixed padding, training, web documents: time", "fid-train-web-10", "fixed", 2.3),
    Aim("FiD with fixed padding, training, 100 words: time", "fid-train-words-10", "fixed", 1.4),
    Aim("FiD with fixed padding, generation, web documents: time", "fid-generate-web-10", "fixed", 2.7),
    Aim("FiD with fixed padding, generation, 100 words: time", "fid-generate-words-10", "fixed", 2),
)


def table_of_aims() -> str:
    """Return the table of all aims."""
    rows = [f"| {aim.text} | {aim.at_least} | {' | '.join(map(aim.cell, DTYPES))} |" for aim in AIMS]
    return "\n".join([f"| × ours, or a share | at least | {' | '.join(DTYPES)} |", "|---|---|---|---|", *rows])


def sentence_of_ratios() -> str:
    """Return the ratios that README.md shows."""

    def times(name: str, way: str) -> str:
        return " and ".join(f"{Question.read(f'{name}-{dtype}').ratio(way, 'seconds').median:.1f}" for dtype in DTYPES)

    return (
        "- **Measured speed.** On two CPU cores, in float32 and bfloat16, a step of training takes "
        f"{times('training-300', 'TRL, defaults')} times as\n  long with TRL's defaults, "
        f"{times('training-300', 'TRL, best')} with its best settings, {times('training-300', 'LocalRQA')} with "
        "LocalRQA's\n  rows. One `generate()` for each question takes "
        f"{times('generation-32', 'one by one')} times as long as an evaluation.\n"
        "  [Conditions, intervals, and the aims that are missed](docs/benchmarks.md)."
    )


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
    """Return the page with every block from the results."""

    def block(match: re.Match[str]) -> str:
        start, is_machine, name, end = match.groups()
        if name in ("aims", "ratios"):
            text = table_of_aims() if name == "aims" else sentence_of_ratios()
        else:
            question = Question.read(name)
            text = describe_machine(question) if is_machine else question.table()
        return f"{start}{text}\n{end}" if name == "ratios" else f"{start}\n{text}\n\n{end}"

    return BLOCK.sub(block, page)


def main() -> None:
    """Write the pages and the plots."""
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    for name, (beginning, key, unit) in PLOTS.items():
        files = sorted(path.stem for path in RESULTS.glob(f"{beginning}*.json"))
        if files:
            plot(name, {each.removeprefix(beginning): Question.read(each) for each in files}, key, unit)


if __name__ == "__main__":
    main()
