"""Flags of the upload to the hub."""

from dataclasses import dataclass
from typing import Any

from rqa.cli.parser import flag, options
from rqa.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SharingArgs:
    """The upload of a trained model."""

    push_to_hub: str = flag("", "hub repository, owner/name, to upload model and card to after training; empty: none")
    hub_private: bool = flag(True, "a new repository is private, and an existing one has to be")
    push_report: bool = flag(False, "also upload report.html, with the questions, passages and answers of the test")

    @property
    def sharing_options(self) -> dict[str, Any]:
        """Keyword arguments of `finish_run`."""
        return options(self, "push_to_hub", "hub_private", "push_report")

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        if self.push_report and not self.push_to_hub:
            raise InputError("--push_report true: no effect without --push_to_hub. Set it, or remove the flag")
        if self.push_to_hub:
            from rqa.sharing.hub import check_push  # imports torch, which flags do not need

            check_push(self.push_to_hub)
