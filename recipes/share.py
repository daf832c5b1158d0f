"""Share the model of a finished training run: write its card again, list the files, upload them to the hub.

    python recipes/share.py --run path/to/save/dir --dry_run true
    python recipes/share.py --run path/to/save/dir --push_to_hub owner/name

Uploads model/ with its card, and merged/ if there is one. The report, which contains questions, passages and answers,
is uploaded with --push_report true alone. Checkpoints, optimizer states, predictions and data are never uploaded.
"""

from dataclasses import dataclass
from pathlib import Path

from rqa import cli
from rqa.terminal import write_result


@dataclass(frozen=True, kw_only=True)
class ShareArgs(cli.SharingArgs):
    """The run to share."""

    run: str = cli.flag("", "folder of a finished training run", is_path=True)
    dry_run: bool = cli.flag(False, "write the card and list the files, without an upload")

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        cli.require(self, "run")
        if not self.dry_run:
            super().check()


def main() -> int:
    """Write the card, list the files, upload them; return the exit status."""
    [args] = cli.parse_args(ShareArgs())

    from rqa import sharing

    run = Path(args.run)
    config = sharing.config_of(run)
    if not (run / sharing.RECORD).is_file():  # of a run of an earlier version
        sharing.record_run(run, None, **cli.card_facts(config))
    sharing.write_cards(run)
    files = sharing.files_to_upload(run, push_report=args.push_report)
    for name, path in files.items():
        write_result(f"{path.stat().st_size:>15,}  {name}")
    write_result(f"{sum(path.stat().st_size for path in files.values()):>15,}  bytes in {len(files)} files")
    return int(not args.dry_run and not sharing.push(run, **args.sharing_options))


if __name__ == "__main__":
    cli.run_main(main)
