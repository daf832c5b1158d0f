"""Signals that stop a run: it finishes its step, saves, and prints the command that resumes it."""

import ctypes
import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from accelerate import Accelerator

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WARNING_SIGNALS = (signal.SIGXCPU,)  # of a limit that is near; a batch system may repeat them
PR_SET_PDEATHSIG = 1  # option of Linux' prctl


class StopSignals:
    """In its `with` block SIGTERM, SIGINT (Ctrl-C) and SIGHUP request a stop; a second one of the same kind kills.

    SIGXCPU and the `further` signals request it too, and may be repeated. The end of the launcher is a request, because
    `accelerate launch` of one process forwards no signals.
    """

    def __init__(self, accelerator: Accelerator, further: Sequence[signal.Signals] = ()) -> None:
        self.accelerator = accelerator
        self.warnings = {*WARNING_SIGNALS, *further} - {*STOP_SIGNALS}
        self.received: set[int] = set()
        self._handlers_before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in {*STOP_SIGNALS, *self.warnings}:
            # nohup ignores SIGHUP. A launcher may have to ignore a warning, which its processes then inherit.
            if number in self.warnings or signal.getsignal(number) != signal.SIG_IGN:
                self._handlers_before[number] = signal.signal(number, self._receive)
        by_launcher = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & os.environ.keys()
        if by_launcher and sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        is_repeated, is_warning = number in self.received, number in self.warnings
        self.received.add(number)
        name = signal.Signals(number).name
        if not is_repeated:
            again = "" if is_warning else f"; {name} again stops at once"
            os.write(2, f"{name}: stopping after this step{again}\n".encode())
        elif not is_warning:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def stop_requested(self) -> bool:
        """Return True if any rank received a signal: the same on all ranks. Every rank must call this."""
        received = torch.tensor(len(self.received), device=self.accelerator.device)
        return bool(self.accelerator.reduce(received, "sum").item())


def log_resume_command(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Log the command that resumes a run that was stopped after `step`."""
    launcher = "accelerate launch"
    if accelerator.num_processes > 1:
        launcher = f"torchrun --nproc_per_node {os.environ.get('LOCAL_WORLD_SIZE', accelerator.num_processes)}"
        if accelerator.device.type == "cpu":
            launcher = f"ACCELERATE_USE_CPU=true {launcher}"
    flags = ["--config", str(folder / "config.json"), "--resume_from_checkpoint", "latest"]
    log.info("stopped after step %d; resume with:\n%s %s", step, launcher, shlex.join([sys.argv[0], *flags]))
