"""Write report.html: an evaluation or a training run, or two evaluations side by side, on one page.

python recipes/report.py path/to/save/dir
python recipes/report.py path/to/evaluation path/to/another --output page.html

The page contains everything it shows and loads nothing: send it, or open it without a network. The page of a training
run shows its steps, and the test evaluation or else the last validation.
"""

import argparse
from pathlib import Path

from rqa.cli import run_main


def main() -> None:
    """Write the page and print its path."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, help="folder of an evaluation or of a training run")
    parser.add_argument("other", nargs="?", type=Path, help="folder with an evaluation of the same questions")
    parser.add_argument(
        "--output",
        type=Path,
        help="HTML file to write; default: report.html in the folder, or comparison.html in the first of two",
    )
    args = parser.parse_args()

    from rqa.report import write_report  # imports matplotlib, which takes a second

    print(write_report(args.folder, args.other, args.output))


if __name__ == "__main__":
    run_main(main)
