"""Checkpoints to resume a run from, and the export of the plain model.

A checkpoint is a folder, OUTPUT_DIR/checkpoints/step-00000050, that is whole or does not exist: it is written under
another name, with a manifest of the size and SHA-256 of every file, flushed to the disk and renamed. Older checkpoints
are deleted after that. All ranks must see the same folder.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedTokenizerBase

from rqa import __version__
from rqa.atomic_files import atomic_file, atomic_folder, publish_folder, read_manifest, sha256_of, write_manifest
from rqa.errors import InputError
from rqa.terminal import Progress, track
from rqa.training.early_stopping import EarlyStopping

log = logging.getLogger(__name__)

FORMAT = 2
MANIFEST = "manifest.json"
LOGS = ("metrics.jsonl", "timings.jsonl")
MAX_FAILURES_IN_A_ROW = 3
WRITE_ERRORS = (
    OSError,
    RuntimeError,
    SafetensorError,
)  # errors if the disk is full; torch.save then raises RuntimeError


class DamagedCheckpointError(InputError):
    """A folder is not a whole checkpoint."""


@dataclass
class Checkpoints:
    """The checkpoints of a run: the newest `keep`, and the best.

    `fingerprint` must be equal for a run to resume from a checkpoint; an error names the keys that differ. The state of
    the accelerator's prepared models and optimizers is saved. Every rank must make every call.
    """

    accelerator: Accelerator
    folder: Path
    fingerprint: Mapping[str, Any]
    early_stopping: EarlyStopping
    keep: int = field(default=2, kw_only=True)
    failures: int = field(default=0, init=False)  # in a row

    def __post_init__(self) -> None:
        self.fingerprint = json.loads(json.dumps(self.fingerprint))  # as a manifest returns it

    def save(self, step: int) -> bool:
        """Save the state after a step. Return False if that failed; raise OSError after three failures in a row."""
        final, partial = _folder(self.folder, step), _folder(self.folder, step, ".partial")
        with Progress(f"step {step}: saving a checkpoint"):
            problem = (
                self._attempt(lambda: self._create(partial))
                or self._attempt(lambda: self.accelerator.save_state(str(partial)), everywhere=True)
                or self._attempt(lambda: self._publish(step, partial, final))
            )
        self.failures = self.failures + 1 if problem else 0
        if problem:
            if self.accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)  # makes room on a full disk
            self.early_stopping.values.pop(step, None)  # only a saved step can be the best
            log.error("step %d: the checkpoint could not be written: %s", step, problem)
        if self.failures == MAX_FAILURES_IN_A_ROW:
            raise OSError(f"{self.folder}: {self.failures} checkpoints in a row could not be written: {problem}")
        return not problem

    def _attempt(self, write: Callable[[], object], *, everywhere: bool = False) -> str:
        """Run `write`, on the main process or `everywhere`. Return "" or the problem on all ranks."""
        problem = ""
        try:
            if everywhere or self.accelerator.is_main_process:
                write()
        except WRITE_ERRORS as error:
            if everywhere and self.accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP):
                raise  # the other ranks wait inside the save; only the end of this process ends them
            problem = f"{type(error).__name__}: {error}"
        failed = torch.tensor(int(bool(problem)), device=self.accelerator.device)
        return (problem or "another rank failed") if self.accelerator.reduce(failed, "sum").item() else ""

    def _create(self, partial: Path) -> None:
        for leftover in partial.parent.glob(".*.partial"):
            shutil.rmtree(leftover)
        partial.mkdir(parents=True)

    def _publish(self, step: int, partial: Path, final: Path) -> None:
        """Add the logs and the manifest to a written state, rename it, and delete older checkpoints."""
        for name in LOGS:
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, partial / name)
        files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
        manifest = {
            "format": FORMAT,
            "step": step,
            "fingerprint": self.fingerprint,
            "evaluations": list(self.early_stopping.values.items()),
            "versions": _versions(),
            "files": {str(path.relative_to(partial)): [path.stat().st_size, sha256_of(path)] for path in files},
        }
        write_manifest(partial / MANIFEST, manifest)
        publish_folder(partial, final)
        for old in _saved_steps(self.folder)[: -self.keep]:
            if old != self.early_stopping.best:
                shutil.rmtree(_folder(self.folder, old))

    def resume(self, checkpoint: str) -> int:
        """Restore a run, with its logs, and return the number of steps done.

        `checkpoint` is the folder of a checkpoint, or "latest", the newest whole one; if the run has none yet, no step
        is done. Raises InputError if the checkpoint is damaged, or of another format or run.
        """
        is_main = self.accelerator.is_main_process
        verified = (self._latest() if checkpoint == "latest" else _verified(Path(checkpoint))) if is_main else None
        [verified] = broadcast_object_list([verified])
        if verified is None:
            log.info("no checkpoint to resume from: training starts at step 1")
            for name in LOGS if is_main else ():
                (self.folder / name).unlink(missing_ok=True)
            return 0
        path, manifest = verified
        _check_fingerprint(path, manifest["fingerprint"], self.fingerprint)
        for name, installed in _versions().items():
            if manifest["versions"].get(name) != installed:
                log.warning("%s: written with %s %s, now %s", path, name, manifest["versions"].get(name), installed)
        with Progress(f"loading {path}"):
            self.accelerator.load_state(str(path))
        self.early_stopping.values = dict(manifest["evaluations"])
        if is_main:
            self._restore_logs(path, manifest["step"])
        self.accelerator.wait_for_everyone()
        log.info("resumed after step %d, from %s", manifest["step"], path)
        return int(manifest["step"])

    def load(self, step: int) -> None:
        """Restore the state after a step, and nothing else."""
        with Progress(f"loading the checkpoint of step {step}"):
            self.accelerator.load_state(str(_folder(self.folder, step)))

    def _latest(self) -> tuple[Path, dict[str, Any]] | None:
        steps = _saved_steps(self.folder)
        for step in reversed(steps):
            try:
                return _verified(_folder(self.folder, step))
            except DamagedCheckpointError as error:
                log.warning("%s The checkpoint before it is tried.", error)
        if steps:
            problem = f"{self.folder}: expected a whole checkpoint, got {len(steps)} damaged"
            raise InputError(f"{problem}. Name a new --output_dir.")
        return None

    def _restore_logs(self, path: Path, step: int) -> None:
        """Restore the logs of the checkpoint at `path`, and delete later checkpoints: their steps are repeated."""
        for name in LOGS:
            if (path / name).exists():
                with (path / name).open("rb") as saved, atomic_file(self.folder / name) as file:
                    shutil.copyfileobj(saved, file)
            else:
                (self.folder / name).unlink(missing_ok=True)
        for later in _saved_steps(self.folder):
            if later > step:
                log.info("%s is deleted: it is later than step %d", _folder(self.folder, later), step)
                shutil.rmtree(_folder(self.folder, later))


def _folder(folder: Path, step: int, suffix: str = "") -> Path:
    name = f"step-{step:08d}"
    return folder / "checkpoints" / (f".{name}{suffix}" if suffix else name)


def _saved_steps(folder: Path) -> list[int]:
    """Return the steps of a run's checkpoints, in order."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("checkpoints/step-" + "[0-9]" * 8))


def _verified(path: Path) -> tuple[Path, dict[str, Any]]:
    """Read every byte of a checkpoint. Return it with its manifest; raise InputError if it cannot be used."""
    try:
        manifest = read_manifest(path / MANIFEST)
    except (OSError, ValueError) as error:
        raise DamagedCheckpointError(f"{path}: expected a whole checkpoint, got {error!r} for {MANIFEST}.") from error
    written = manifest.get("format", manifest.get("rqa_checkpoint", "none"))
    if "evaluations" not in manifest and "selection" not in manifest:
        raise DamagedCheckpointError(f"{path}: expected the {MANIFEST} of a checkpoint, got another one.")
    if written != FORMAT:
        raise InputError(
            f"{path}: expected a checkpoint of format {FORMAT}, got format {written}. Resume with the version of rqa "
            "that wrote it, or start in a new --output_dir."
        )
    for name, (size, digest) in track(manifest["files"].items(), f"verifying {path}", unit="files"):
        file = path / name
        actual = file.stat().st_size if file.is_file() else "no file"
        if actual != size:
            raise DamagedCheckpointError(f"{file}: expected {size} bytes, got {actual}.")
        if sha256_of(file) != digest:
            raise DamagedCheckpointError(f"{file}: expected the SHA-256 in {MANIFEST}, got another.")
    return path, manifest


def _check_fingerprint(path: Path, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise InputError, which names every difference, unless two fingerprints are equal."""
    lines = [
        f"  {name}: expected {saved.get(name)!r}, as in the checkpoint, got {current.get(name)!r}"
        for name in sorted({*saved, *current})
        if saved.get(name) != current.get(name)
    ]
    if lines:
        raise InputError("\n".join([f"{path}: this is a checkpoint of another run:", *lines]))


def _versions() -> dict[str, str]:
    return {"rqa": __version__} | {name: version(name) for name in ("accelerate", "torch", "transformers")}


def export(accelerator: Accelerator, model: nn.Module, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write the plain model inside the prepared wrapper `model`, and its tokenizer, to the folder `path`.

    The plain class loads it. The folder is whole or does not exist; an older one is replaced. Every rank calls this.
    """
    with Progress(f"exporting the model to {path}"):
        state = accelerator.get_state_dict(model)
        if accelerator.is_main_process:
            plain = accelerator.unwrap_model(model).model
            state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
            for tied, source in plain.all_tied_weights_keys.items():
                if source in state:
                    state.pop(tied, None)  # DeepSpeed returns copies, which would be saved in addition to their source
            with atomic_folder(path) as partial:
                plain.save_pretrained(partial, state_dict=state)
                tokenizer.save_pretrained(partial)
        accelerator.wait_for_everyone()
