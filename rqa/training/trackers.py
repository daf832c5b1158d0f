"""Trackers: Weights & Biases or TensorBoard. An error of a tracker never stops a run."""

import importlib.util
import json
import logging
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rqa.atomic_files import write_json
from rqa.errors import InputError

if TYPE_CHECKING:
    from rqa.training.loop import Step

log = logging.getLogger(__name__)

TrackerName = Literal["wandb", "tensorboard", "none"]


def check_tracker(name: TrackerName) -> None:
    """Raise InputError if the tracker's package is not installed."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise InputError(
            f"--report_to {name}: expected the package {name}, got none. `pip install {name}`, or set --report_to none."
        )


class Tracker:
    """Sends numbers to a tracker. After an error, which is logged once, it sends no more.

    `folder` is the run's output folder: trackers keep their files there, and tracker.json has the run's id in wandb.
    TensorBoard deletes the numbers that an earlier attempt logged after `first_step`. Only `config` and logged numbers
    are sent: no environment, no command line, no code.
    """

    def __init__(
        self, name: TrackerName, folder: Path, config: Mapping[str, Any], *, group: str = "", first_step: int = 0
    ) -> None:
        self._send: Callable[[Mapping[str, float], int], object] | None = None
        match name:
            case "wandb":
                self._attempt(lambda: self._start_wandb(folder, config, group))
            case "tensorboard":
                self._attempt(lambda: self._start_tensorboard(folder, config, first_step))

    def log_step(self, step: "Step") -> None:
        """Send the numbers of an optimizer step."""
        names = ("loss", "gradient_norm", "learning_rate", "seconds")
        self.log({f"train/{name}": getattr(step, name) for name in names}, step.number)

    def log_evaluation(self, split: str, metrics: Mapping[str, float], step: int) -> None:
        """Send the metrics of an evaluation after `step`."""
        self.log({f"{split}/{name}": value for name, value in metrics.items()}, step)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send numbers by name."""
        if send := self._send:
            self._attempt(lambda: send(values, step))

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # clients of online services raise exceptions of any type
            self._send = None
            log.warning("the tracker failed; training continues without it: %s: %s", type(error).__name__, error)

    def _start_wandb(self, folder: Path, config: Mapping[str, Any], group: str) -> None:
        import wandb

        disabled: Any = dict.fromkeys(("disable_code", "disable_git", "x_disable_machine_info", "x_disable_meta"), True)
        run = wandb.init(
            project="rqa",
            id=_run_id(folder),
            resume="allow",
            group=group or None,
            name=folder.resolve().name,
            dir=str(folder),
            config=dict(config),
            settings=wandb.Settings(console="off", save_code=False, x_save_requirements=False, **disabled),
        )
        self._send = lambda values, step: run.log(dict(values), step=step)

    def _start_tensorboard(self, folder: Path, config: Mapping[str, Any], first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)
        writer.add_text("config", f"```\n{json.dumps(dict(config), indent=2)}\n```", first_step)

        def send(values: Mapping[str, float], step: int) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()  # the run may be killed at any time

        self._send = send


def _run_id(folder: Path) -> str:
    """Return the id in tracker.json, drawn once: a resumed run is the same run in wandb."""
    path = folder / "tracker.json"
    if not path.exists():
        write_json(path, {"id": secrets.token_hex(4)})
    return str(json.loads(path.read_text())["id"])
