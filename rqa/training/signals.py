"""Signals as a request: a run that is told to stop finishes its update, saves, and says how to go on."""

import ctypes
import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from accelerate import Accelerator

REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # of Linux' prctl


class StopSignals:
    """Within its `with` block SIGTERM, SIGINT (Ctrl-C) and SIGHUP only ask to stop; the same one again stops at once.

    A launcher's end is such a request too: `accelerate launch` of one process passes no signal on.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.received: set[int] = set()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in REQUESTS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup's SIGHUP stays ignored
                self._before[number] = signal.signal(number, self._receive)
        by_launcher = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & os.environ.keys()
        if by_launcher and sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if number in self.received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received.add(number)
        name = signal.Signals(number).name
        os.write(2, f"{name}: stopping after this update; {name} again stops at once\n".encode())

    def stop_requested(self) -> bool:
        """Tell whether any process was asked to stop: the same answer on all; every process must call this."""
        asked = torch.tensor(len(self.received), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, "sum").item())


def resume_command(accelerator: Accelerator, folder: Path) -> str:
    """Return the command that goes on with this run from its newest checkpoint."""
    launcher = "accelerate launch"
    if accelerator.num_processes > 1:
        launcher = f"torchrun --nproc_per_node {os.environ.get('LOCAL_WORLD_SIZE', accelerator.num_processes)}"
        if accelerator.device.type == "cpu":
            launcher = f"ACCELERATE_USE_CPU=true {launcher}"
    flags = ["--config", str(folder / "config.json"), "--resume_from_checkpoint", "latest"]
    return f"{launcher} {shlex.join([sys.argv[0], *flags])}"
