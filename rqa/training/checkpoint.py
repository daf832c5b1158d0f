"""What a run leaves behind: checkpoints to go on from, and the plain model.

A checkpoint is a folder, OUTPUT_DIR/checkpoints/step-00000050, that is there whole or not at all: it is written beside,
flushed to the disk, sealed with a manifest of every file's size and SHA-256, renamed, and only then are older ones
deleted. All processes must see the same folder.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
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
from rqa.errors import InputError
from rqa.training.early_stopping import EarlyStopping

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
LOGS = ("metrics.jsonl", "timings.jsonl")
MAX_FAILURES_IN_A_ROW = 3
# A full disk shows as any of these: torch.save raises RuntimeError.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


class DamagedCheckpointError(InputError):
    """A folder that is no whole checkpoint."""


class Checkpoints:
    """The checkpoints of a run: the newest `keep`, and the best.

    `identity` is what a run must have in common with a checkpoint to go on from it, by names that tell the user what
    differs. The accelerator's prepared models and optimizers are what is saved; every process must make every call.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        identity: Mapping[str, Any],
        selection: EarlyStopping,
        *,
        keep: int = 2,
    ) -> None:
        self.accelerator = accelerator
        self.folder = folder
        self.identity = json.loads(json.dumps(identity))  # as it will be read
        self.selection = selection
        self.keep = keep
        self.failures = 0

    def save(self, step: int) -> bool:
        """Save the state after update `step`, and tell whether that worked; training can go on where it did not.

        Raises OSError after three failures in a row.
        """
        final, partial = _folder(self.folder, step), _folder(self.folder, step, ".partial")
        problem = (
            self._attempt(lambda: self._begin(partial))
            or self._attempt(lambda: self.accelerator.save_state(str(partial)), everywhere=True)
            or self._attempt(lambda: self._finish(step, partial, final))
        )
        self.failures = self.failures + 1 if problem else 0
        if problem:
            if self.accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)  # makes room, where that was missing
            self.selection.values.pop(step, None)  # what is not saved cannot be chosen
            log.error("update %d: the checkpoint could not be written: %s", step, problem)
        if self.failures == MAX_FAILURES_IN_A_ROW:
            raise OSError(f"{self.folder}: {self.failures} checkpoints in a row could not be written: {problem}")
        return not problem

    def _attempt(self, write: Callable[[], object], *, everywhere: bool = False) -> str:
        """Run `write`, on the main process or `everywhere`; return the same on all processes: "" or what failed."""
        problem = ""
        try:
            if everywhere or self.accelerator.is_main_process:
                write()
        except WRITE_ERRORS as error:
            if everywhere and self.accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP):
                raise  # the other processes wait within the save: only the end of this one ends them
            problem = f"{type(error).__name__}: {error}"
        failed = torch.tensor(int(bool(problem)), device=self.accelerator.device)
        if self.accelerator.reduce(failed, "sum").item():
            return problem or "another process failed"
        return ""

    def _begin(self, partial: Path) -> None:
        for leftover in partial.parent.glob(".*.partial"):
            shutil.rmtree(leftover)
        partial.mkdir(parents=True)

    def _finish(self, step: int, partial: Path, final: Path) -> None:
        """Seal what all processes have written, give it its name, and delete what is too old."""
        for name in LOGS:
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, partial / name)
        files = {}
        for path in sorted(partial.rglob("*")):
            _flush(path)
            if path.is_file():
                files[str(path.relative_to(partial))] = [path.stat().st_size, _sha256(path)]
        manifest = {
            "rqa_checkpoint": FORMAT,
            "step": step,
            "identity": self.identity,
            "selection": list(self.selection.values.items()),
            "versions": _versions(),
            "files": files,
        }
        (partial / MANIFEST).write_text(json.dumps(manifest | {"checksum": _checksum(manifest)}, indent=1))
        _flush(partial / MANIFEST)
        _flush(partial)
        if final.exists():
            shutil.rmtree(final)  # what the run that is repeated here left
        partial.replace(final)
        _flush(final.parent)
        for old in _all(self.folder)[: -self.keep]:
            if _step_of(old) != self.selection.best:
                shutil.rmtree(old)

    def resume(self, checkpoint: str) -> int:
        """Restore a run and return the number of updates that it has done.

        `checkpoint` is a checkpoint's folder, or "latest": the newest whole one of this run, or none where there is
        none yet. The run's logs are put back to where they were. Raises InputError where it is damaged, or of another
        run.
        """
        found: list[Any] = [None]
        if self.accelerator.is_main_process:
            found = [self._latest() if checkpoint == "latest" else _verified(Path(checkpoint))]
        found = broadcast_object_list(found)
        if found == [None]:
            log.info("no checkpoint yet: training begins")
            if self.accelerator.is_main_process:
                for name in LOGS:
                    (self.folder / name).unlink(missing_ok=True)
            return 0
        path, manifest = found[0]
        _expect_same(path, manifest["identity"], self.identity)
        for name, found_version in _versions().items():
            if manifest["versions"].get(name) != found_version:
                log.warning("%s: made with %s %s, now %s", path, name, manifest["versions"].get(name), found_version)
        self.accelerator.load_state(str(path))
        self.selection.values = dict(manifest["selection"])
        if self.accelerator.is_main_process:
            self._restore_logs(path, manifest["step"])
        self.accelerator.wait_for_everyone()
        log.info("going on after update %d, from %s", manifest["step"], path)
        return int(manifest["step"])

    def load(self, step: int) -> None:
        """Restore the state after update `step` and nothing else."""
        self.accelerator.load_state(str(_folder(self.folder, step)))

    def _latest(self) -> tuple[Path, dict[str, Any]] | None:
        paths = _all(self.folder)
        for path in reversed(paths):
            try:
                return _verified(path)
            except DamagedCheckpointError as error:
                log.warning("%s. The one before is used.", error)
        if paths:
            raise InputError(f"{self.folder}: none of the {len(paths)} checkpoints is whole; name a new --output_dir")
        return None

    def _restore_logs(self, path: Path, step: int) -> None:
        """Put the logs back to what they were at `step`, and delete what came later: it will be made again."""
        for name in LOGS:
            if (path / name).exists():
                partial = self.folder / f".{name}.partial"
                shutil.copyfile(path / name, partial)
                partial.replace(self.folder / name)
            else:
                (self.folder / name).unlink(missing_ok=True)
        for later in _all(self.folder):
            if _step_of(later) > step:
                log.info("%s is deleted: it comes after update %d", later, step)
                shutil.rmtree(later)


def _folder(folder: Path, step: int, suffix: str = "") -> Path:
    name = f"step-{step:08d}"
    return folder / "checkpoints" / (f".{name}{suffix}" if suffix else name)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _all(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, the oldest first."""
    return sorted((folder / "checkpoints").glob("step-" + "[0-9]" * 8))


def _verified(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return a checkpoint and its manifest; every byte is read. Raises DamagedCheckpointError."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
        whole = manifest.pop("checksum") == _checksum(manifest) and manifest["rqa_checkpoint"] == FORMAT
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise DamagedCheckpointError(f"{path}: no whole checkpoint: {error!r} in {MANIFEST}") from error
    if not whole:
        raise DamagedCheckpointError(f"{path}: no whole checkpoint of format {FORMAT}: {MANIFEST} was changed")
    for name, (size, digest) in manifest["files"].items():
        file = path / name
        found = file.stat().st_size if file.is_file() else "no file"
        if found != size:
            raise DamagedCheckpointError(f"{file}: found {found}, expected {size} bytes")
        if _sha256(file) != digest:
            raise DamagedCheckpointError(f"{file}: its content is not what was saved")
    return path, manifest


def _expect_same(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise InputError unless two identities are equal, naming what differs."""
    lines = [
        f"  {name}: the checkpoint has {theirs.get(name)!r}, now given is {ours.get(name)!r}"
        for name in sorted({*theirs, *ours})
        if theirs.get(name) != ours.get(name)
    ]
    if lines:
        raise InputError("\n".join([f"{path}: the checkpoint is of another run:", *lines]))


def _versions() -> dict[str, str]:
    return {"rqa": __version__} | {name: version(name) for name in ("accelerate", "torch", "transformers")}


def _checksum(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def export(accelerator: Accelerator, model: nn.Module, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write the plain model inside the prepared wrapper `model`, and its tokenizer, to the folder `path`.

    It loads with the plain class's `from_pretrained`, and appears whole or not at all; what an earlier attempt left
    there is replaced. Every process must call this.
    """
    state = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        plain = accelerator.unwrap_model(model).model
        partial = path.with_name(f".{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
        for tied, source in plain.all_tied_weights_keys.items():
            if source in state:
                state.pop(tied, None)  # DeepSpeed gives copies, which would be saved beside their source
        plain.save_pretrained(partial, state_dict=state)
        tokenizer.save_pretrained(partial)
        for file in partial.rglob("*"):
            _flush(file)
        if path.exists():
            shutil.rmtree(path)
        partial.replace(path)
        _flush(path.parent)
    accelerator.wait_for_everyone()
