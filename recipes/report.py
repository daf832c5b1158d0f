"""Write report.html: an evaluation or a training run, or two evaluations side by side, on one page.

python recipes/report.py path/to/save/dir
python recipes/report.py path/to/evaluation path/to/another --output page.html

The page holds all that it shows and loads nothing: send it, or open it without a network. Of a training run it shows
the updates and the evaluation at their end: the test, or the last one on the way.
"""

import argparse
from pathlib import Path

from rqa.cli.parser import cli


def main() -> None:
    """Write the page, and print where it is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, help="folder of an evaluation or of a training run")
    parser.add_argument("other", nargs="?", type=Path, help="another one, with an evaluation of the same questions")
    parser.add_argument(
        "--output",
        type=Path,
        help="the file to write; default: report.html in the folder, of two comparison.html in the first",
    )
    args = parser.parse_args()

    from rqa.report.html import write_report  # what it draws with takes a second to import

    print(write_report(args.folder, args.other, args.output))


if __name__ == "__main__":
    cli(main)
