"""What a run tells a tracker: Weights & Biases or TensorBoard. A tracker that fails never stops a run."""

import importlib.util
import json
import logging
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from rqa.errors import InputError

log = logging.getLogger(__name__)

TrackerName = Literal["wandb", "tensorboard", "none"]


def check_tracker(name: TrackerName) -> None:
    """Raise InputError where the tracker's package is missing."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise InputError(
            f"--report_to {name}: the package is not installed: `pip install {name}`, or give --report_to none"
        )


class Tracker:
    """Sends numbers to a tracker until that fails, which is said once.

    `directory` is the run's output folder: wandb keeps its files there, and tracker.json the run's id, so that a run
    that goes on is the same run; what an earlier attempt told TensorBoard after `first_step` is taken back. Nothing is
    sent but `config` and what is logged: no environment, no command line, no code.
    """

    def __init__(
        self, name: TrackerName, directory: Path, config: Mapping[str, Any], *, group: str = "", first_step: int = 0
    ) -> None:
        self._send: Callable[[Mapping[str, float], int], object] | None = None
        match name:
            case "wandb":
                self._attempt(lambda: self._begin_wandb(directory, config, group))
            case "tensorboard":
                self._attempt(lambda: self._begin_tensorboard(directory, config, first_step))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send numbers that belong to update `step`."""
        send = self._send
        if send is not None:
            self._attempt(lambda: send(values, step))

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # a client of somebody else's service can raise anything, and training is dearer
            self._send = None
            log.warning("tracking ends, training goes on: %s: %s", type(error).__name__, error)

    def _begin_wandb(self, directory: Path, config: Mapping[str, Any], group: str) -> None:
        import wandb

        run = wandb.init(
            project="rqa",
            id=_run_id(directory),
            resume="allow",
            group=group or None,
            name=directory.resolve().name,
            dir=str(directory),
            config=dict(config),
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                save_code=False,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_save_requirements=False,
            ),
        )
        self._send = lambda values, step: run.log(dict(values), step=step)

    def _begin_tensorboard(self, directory: Path, config: Mapping[str, Any], first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step + 1)
        writer.add_text("config", f"```\n{json.dumps(dict(config), indent=2)}\n```", first_step)

        def send(values: Mapping[str, float], step: int) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()  # whatever ends the run

        self._send = send


def _run_id(directory: Path) -> str:
    """Return the run's id, made once."""
    path = directory / "tracker.json"
    if not path.exists():
        path.write_text(json.dumps({"id": secrets.token_hex(4)}))
    return str(json.loads(path.read_text())["id"])
