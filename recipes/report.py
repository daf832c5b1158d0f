"""Write report.html: an evaluation or a training run, or two evaluations side by side, on one page.

python recipes/report.py path/to/save/dir
python recipes/report.py path/to/evaluation path/to/another --output page.html

The page contains everything it shows and loads nothing: send it, or open it without a network. The page of a training
run shows its steps, and the test evaluation or else the last validation.
"""

from pathlib import Path

from rqa.cli import Parser, check_output, run_main
from rqa.terminal import write_result


def main() -> None:
    """Write the page and print its path."""
    parser = Parser()
    parser.add_argument("folder", type=Path, help="folder of an evaluation or of a training run")
    parser.add_argument("other", nargs="?", type=Path, help="folder with an evaluation of the same questions")
    parser.add_argument(
        "--output",
        type=Path,
        help="HTML file to write; default: report.html in the folder, or comparison.html in the first of two",
    )
    args = parser.parse_args()
    output = check_output(args.output)

    from rqa.report import write_report  # imports matplotlib, which takes a second

    write_result(write_report(args.folder, args.other, output))


if __name__ == "__main__":
    run_main(main)
