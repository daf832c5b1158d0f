"""Convert questions or a corpus of another data set or library to the JSON Lines that the other recipes read.

    python recipes/convert.py --input_path train-v2.0.json --output_path train.jsonl

The format is recognized by the content of the file or folder. Files are JSON Lines, one array or one object, plain or
.gz. Rows that are left out, and fields that are not read, are counted. Formats:
"""

from dataclasses import dataclass

from rqa import cli
from rqa.conversion import FORMATS, convert
from rqa.terminal import plural, write_result

WIDTH = max(map(len, FORMATS)) + 2  # of the column of names
__doc__ = f"{__doc__}\n" + "\n".join(f"  {name:{WIDTH}}{each.help}" for name, each in FORMATS.items())


@dataclass(frozen=True)
class ConvertArgs:
    """The input, its format, and the files to write."""

    input_path: str = cli.flag("", "file or folder to convert", is_path=True)
    output_path: str = cli.flag("", "JSON Lines file of the questions, or of the corpus: .jsonl", is_path=True)
    corpus_path: str = cli.flag("", "JSON Lines file for the passages of the questions; empty: none", is_path=True)
    format: str = cli.flag("", "name of the format; empty: recognized by the content")
    split: str = cli.flag("", "file in the folder qrels of BEIR, such as test; empty: the only one")
    keep_ids: bool = cli.flag(True, "write the ids of the questions; without, rows are numbered")
    max_bad_rows: int = cli.flag(0, "rows with problems that are left out of each file; more are an error")

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        cli.require(self, "input_path", "output_path")
        cli.at_least(self, 0, "max_bad_rows")


def main() -> None:
    """Convert, and print the numbers of rows."""
    [args] = cli.parse_args(ConvertArgs())
    names = ("format", "corpus_path", "split", "keep_ids", "max_bad_rows")
    done = convert(args.input_path, args.output_path, **cli.options(args, *names))
    write_result(f"format: {done.format}")
    if done.questions:
        write_result(f"{args.output_path}: {plural(done.questions, 'question')}")
    if done.passages:
        write_result(f"{args.corpus_path or args.output_path}: {plural(done.passages, 'passage')}")


if __name__ == "__main__":
    cli.run_main(main)
