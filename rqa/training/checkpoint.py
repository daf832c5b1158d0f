"""Checkpoints to resume a run from, and the export of the plain model.

A checkpoint is a folder, OUTPUT_DIR/checkpoints/step-00000050, that is whole or does not exist: it is written under
another name, with a manifest of the size and SHA-256 of every file, flushed to the disk and renamed. Older checkpoints
are deleted after that. A later evaluation of the same step replaces only the manifest. All ranks must see the same
folder.

Training stops while the state is written to files. A thread of the main process does the rest: hashes, flush, rename.
"""

import copy
import json
import logging
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rqa import __version__
from rqa.atomic_files import atomic_file, atomic_folder, checksums, flush, publish_folder, read_manifest, write_manifest
from rqa.distributed.accelerator import call_on_main
from rqa.distributed.weights import local_parts
from rqa.errors import InputError
from rqa.models.lora import has_adapter, merged_state, save_adapter
from rqa.models.quantization import dequantized
from rqa.terminal import Progress
from rqa.training.early_stopping import EarlyStopping

log = logging.getLogger(__name__)

FORMAT = 3
MANIFEST = "manifest.json"
MERGED = "merged"
METRICS = "metrics.jsonl"
LOGS = (METRICS, "timings.jsonl")
MAX_FAILURES_IN_A_ROW = 3
# Parts of a fingerprint that change updates by rounding at most: they may change on resume, with a warning.
FREE_ON_RESUME = frozenset(
    "--eval_file --test_file --eval_steps --per_device_eval_batch_size --max_new_tokens --max_answer_length "
    "--embedding_batch_size --early_stopping_patience --gradient_checkpointing".split()
)
_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module)\.")  # of torch.compile and FSDP in names of weights
LENGTHS = frozenset({"--num_train_epochs", "--max_steps"})
NO_MORE_STEPS = (
    "The learning rate of every step depends on the number of steps: a run cannot be extended. To train further, start "
    "a new run from its exported model: --model_name_or_path OUTPUT_DIR/model --output_dir NEW_FOLDER"
)
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
    last_step: int = field(default=0, init=False)  # that `save` was called for, or that was resumed from
    _problem: str | None = field(default=None, init=False)  # "" or that of writing; None if nothing waits
    _publication: Future[None] | None = field(default=None, init=False)  # on the main process
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1), init=False)

    def __post_init__(self) -> None:
        self.fingerprint = json.loads(json.dumps(self.fingerprint))  # as a manifest returns it
        self.accelerator.register_save_state_pre_hook(_leave_out_frozen)

    def save(self, step: int) -> None:
        """Start to save the state after a step; `wait` waits for the end. A second call adds the evaluation since."""
        is_saved = self.wait(step)
        if step != self.last_step:
            self.last_step, self._problem = step, self._write(step)
            if self._problem:
                self.wait()
            elif self.accelerator.is_main_process:
                evaluations = replace(self.early_stopping, values=dict(self.early_stopping.values))
                self._publication = self._thread.submit(self._publish, step, evaluations)
        elif not is_saved or (problem := self._attempt(lambda: self._add_evaluation(step))):
            self._forget(step, step + 1, problem if is_saved else "")

    def wait(self, next_step: float = math.inf) -> bool:
        """Wait until the last checkpoint is whole. Return False if it failed; raise OSError after three in a row.

        If it failed, its evaluation is removed, and those of later steps before `next_step`, which were not saved
        because they were worse.
        """
        if self._problem is not None:
            publication, problem = self._publication, self._problem
            self._publication = self._problem = None
            with Progress(f"step {self.last_step}: waiting for the checkpoint"):
                problem = problem or self._attempt(lambda: publication and publication.result())
            self.failures = self.failures + 1 if problem else 0
            if problem:
                self._forget(self.last_step, next_step, problem)
            if self.failures == MAX_FAILURES_IN_A_ROW:
                raise OSError(f"{self.folder}: {self.failures} checkpoints in a row could not be written: {problem}")
        return not self.failures

    def _forget(self, step: int, end: float, problem: str) -> None:
        """Log the problem of a save, if there is one, and remove evaluations: only a saved step can be the best."""
        if problem:
            log.error("step %d: the checkpoint could not be written: %s", step, problem)
        values = self.early_stopping.values
        self.early_stopping.values = {at: value for at, value in values.items() if not step <= at < end}

    def _write(self, step: int) -> str:
        """Write the state after a step to a partial folder. Return "" or the problem."""
        partial = _folder(self.folder, step, ".partial")
        is_deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        options = {"exclude_frozen_parameters": True} if is_deepspeed else {}
        with Progress(f"step {step}: saving a checkpoint"):
            problem = self._attempt(lambda: self._create(partial)) or self._attempt(
                lambda: self.accelerator.save_state(str(partial), **options), everywhere=True
            )
        if problem and self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)  # makes room on a full disk
        return problem

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
        """Create a partial folder with the logs of the steps so far."""
        for leftover in partial.parent.glob(".*.partial"):
            shutil.rmtree(leftover)
        partial.mkdir(parents=True)
        for name in LOGS:
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, partial / name)

    def _publish(self, step: int, evaluations: EarlyStopping) -> None:
        """Complete a partial folder, or delete it, which makes room on a full disk. Runs in a thread."""
        partial = _folder(self.folder, step, ".partial")
        try:
            self._complete(partial, step, evaluations)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _complete(self, partial: Path, step: int, evaluations: EarlyStopping) -> None:
        """Add the manifest to a partial folder, rename it, and delete older checkpoints."""
        files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
        with ThreadPool(1) as disk:
            flushed = disk.map_async(flush, files)  # while the processor hashes
            digests = checksums(files)
            flushed.get()
        manifest = {
            "format": FORMAT,
            "step": step,
            "fingerprint": self.fingerprint,
            "evaluations": list(evaluations.values.items()),
            "versions": _versions(),
            "files": {
                str(path.relative_to(partial)): [path.stat().st_size, digest]
                for path, digest in zip(files, digests, strict=True)
            },
        }
        write_manifest(partial / MANIFEST, manifest)
        publish_folder(partial, _folder(self.folder, step))
        for old in _saved_steps(self.folder)[: -self.keep]:
            if old != evaluations.best:
                shutil.rmtree(_folder(self.folder, old))

    def _add_evaluation(self, step: int) -> None:
        """Add the lines of metrics.jsonl since the save to the manifest, which is replaced as a whole."""
        path = _folder(self.folder, step) / MANIFEST
        manifest = read_manifest(path)
        with (self.folder / METRICS).open("rb") as file:
            file.seek(manifest["files"][METRICS][0])
            added = file.read().decode()
        evaluations = list(self.early_stopping.values.items())
        write_manifest(path, {**manifest, "evaluations": evaluations, "added_to_metrics": added})

    def resume(self, checkpoint: str) -> int:
        """Restore a run, with its logs, and return the number of steps done.

        `checkpoint` is the folder of a checkpoint, that of a run, whose newest whole one is used, or "latest", for this
        run; if it has none yet, no step is done. Raises InputError if the checkpoint is damaged, or of another format
        or run.
        """
        is_main = self.accelerator.is_main_process
        verified = call_on_main(self.accelerator, lambda: _find(checkpoint, self.folder))
        if verified is None:
            log.info("no checkpoint to resume from: training starts at step 1")
            for name in LOGS if is_main else ():
                (self.folder / name).unlink(missing_ok=True)
            return 0
        path, manifest = verified
        _check_fingerprint(path, manifest["fingerprint"], self.fingerprint, bool(self.early_stopping.metric))
        for name, installed in _versions().items():
            if manifest["versions"].get(name) != installed:
                log.warning("%s: written with %s %s, now %s", path, name, manifest["versions"].get(name), installed)
        self._load(path)
        self.early_stopping.values = dict(manifest["evaluations"])
        if (best := self.early_stopping.best) and not (best_path := _folder(self.folder, best)).is_dir():
            problem = f"{path}: expected the checkpoint of the best evaluation too, {best_path}, got no such folder"
            raise InputError(f"{problem}. Copy it there, or resume in the folder of that run.")
        if is_main:
            self._restore_logs(path, manifest["step"], manifest.get("added_to_metrics", ""))
        if path.absolute() == _folder(self.folder, manifest["step"]).absolute():
            self.last_step = manifest["step"]
        self.accelerator.wait_for_everyone()
        log.info("resumed after step %d, from %s", manifest["step"], path)
        return int(manifest["step"])

    def load_best(self) -> None:
        """Restore the state after the best evaluation, if there is one, and nothing else.

        Raises InputError if its checkpoint is missing or damaged.
        """
        self.wait()
        if step := self.early_stopping.best:
            path, _ = call_on_main(self.accelerator, lambda: _verified(_folder(self.folder, step)))
            self._load(path)

    def _load(self, path: Path) -> None:
        """Load trained weights and the optimizer; frozen weights are those of the base model."""
        is_deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        with Progress(f"loading {path}"):
            self.accelerator.load_state(str(path), **{"load_module_strict" if is_deepspeed else "strict": False})

    def _restore_logs(self, path: Path, step: int, added_to_metrics: str) -> None:
        """Restore the logs of the checkpoint at `path`, and delete later checkpoints: their steps are repeated."""
        for name in LOGS:
            if (path / name).exists():
                with (path / name).open("rb") as saved, atomic_file(self.folder / name) as file:
                    shutil.copyfileobj(saved, file)
                    file.write(added_to_metrics.encode() if name == METRICS else b"")
            else:
                (self.folder / name).unlink(missing_ok=True)
        for later in _saved_steps(self.folder):
            if later > step:
                log.info("%s is deleted: it is later than step %d", _folder(self.folder, later), step)
                shutil.rmtree(_folder(self.folder, later))


def _leave_out_frozen(models: Sequence[nn.Module], states: Sequence[dict[str, Any]], _folder: str) -> None:
    """Remove frozen weights from the states that are saved. DeepSpeed and FSDP save their own."""
    for model, state in zip(models, states, strict=False):
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if not parameter.requires_grad:
                state.pop(name, None)


def _folder(folder: Path, step: int, suffix: str = "") -> Path:
    name = f"step-{step:08d}"
    return folder / "checkpoints" / (f".{name}{suffix}" if suffix else name)


def _saved_steps(folder: Path) -> list[int]:
    """Return the steps of a run's checkpoints, in order."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("checkpoints/step-" + "[0-9]" * 8))


def _find(checkpoint: str, folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return a checkpoint, verified, with its manifest; None if the run in `folder` has no "latest" yet."""
    if checkpoint == "latest":
        return _newest(folder) if _saved_steps(folder) else None
    path = Path(checkpoint).absolute()
    for run in (path, path.parent):  # the folder of a run, or the folder "checkpoints" in it
        if path in (run, run / "checkpoints") and _saved_steps(run):
            return _newest(run)
    return _verified(Path(checkpoint))


def _newest(run: Path) -> tuple[Path, dict[str, Any]]:
    """Return the newest whole checkpoint of a run, with its manifest. Raises InputError if all are damaged."""
    steps = _saved_steps(run)
    for step in reversed(steps):
        try:
            return _verified(_folder(run, step))
        except DamagedCheckpointError as error:
            log.warning("%s The checkpoint before it is tried.", error)
    problem = f"{run}: expected a whole checkpoint, got {len(steps)} damaged"
    raise InputError(f"{problem}. Name a new --output_dir.")


def _verified(path: Path) -> tuple[Path, dict[str, Any]]:
    """Read every byte of a checkpoint. Return it with its manifest; raise InputError if it cannot be used."""
    try:
        manifest = read_manifest(path / MANIFEST)
    except FileNotFoundError as error:
        kinds = "a checkpoint, the folder of a run, or latest"
        raise DamagedCheckpointError(f"{path}: expected {kinds}, got a folder without {MANIFEST}.") from error
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
    files = {path / name: values for name, values in manifest["files"].items()}
    for file, (size, _) in files.items():
        actual = file.stat().st_size if file.is_file() else "no file"
        if actual != size:
            raise DamagedCheckpointError(f"{file}: expected {size} bytes, got {actual}.")
    with Progress(f"verifying {path}"):
        digests = checksums([*files])
    for (file, (_, digest)), actual in zip(files.items(), digests, strict=True):
        if actual != digest:
            raise DamagedCheckpointError(f"{file}: expected the SHA-256 in {MANIFEST}, got another.")
    return path, manifest


def _check_fingerprint(
    path: Path, saved: Mapping[str, Any], current: Mapping[str, Any], selects_the_best: bool = False
) -> None:
    """Raise InputError, which names every difference, unless two fingerprints have the same updates."""
    free = FREE_ON_RESUME - ({"--eval_file"} if selects_the_best else set())
    changed = [name for name in sorted({*saved, *current}) if saved.get(name) != current.get(name)]
    lines = [
        f"  {name}: expected {saved.get(name)!r}, as in the checkpoint, got {current.get(name)!r}"
        for name in changed
        if name not in free
    ]
    if lines:
        advice = [NO_MORE_STEPS] if LENGTHS & {*changed} else []
        raise InputError("\n".join([f"{path}: this is a checkpoint of another run:", *lines, *advice]))
    for name in changed:
        was, now = saved.get(name), current.get(name)
        log.warning(
            "%s: %r in %s, now %r: updates stay equal up to rounding, evaluations may differ", name, was, path, now
        )


def _versions() -> dict[str, str]:
    return {"rqa": __version__} | {name: version(name) for name in ("accelerate", "torch", "transformers")}


def export(
    accelerator: Accelerator,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    dtype: torch.dtype = torch.float32,
    *,
    merge_adapter: bool = False,
) -> None:
    """Write the plain model inside the prepared wrapper `model`, and its tokenizer, to the folder `path`.

    The weights of `model` are rounded to `dtype` in place, so that later evaluations are those of the exported
    model. The plain class loads it. Of a model with an adapter, `path` gets the adapter alone, in float32.
    `merge_adapter` adds the adapter to the weights, rounds them to `dtype`, and writes that plain model to the
    folder "merged" beside it; weights in 4 bits are there the values that the adapter was trained with. A folder is
    whole or does not exist; an older one is replaced. Every rank calls this.
    Raises InputError if a weight is not finite in `dtype`.
    """
    plain: PreTrainedModel = accelerator.unwrap_model(model, keep_torch_compile=False).model
    is_adapted = has_adapter(plain)
    if not is_adapted:
        _round_weights(accelerator, model, dtype)
    with Progress(f"exporting the model to {path}"):
        state = accelerator.get_state_dict(model)
        if accelerator.is_main_process:
            state = _plain_state(state, plain)
            with atomic_folder(path) as partial:
                if is_adapted:
                    save_adapter(plain, state, partial)
                else:
                    _save_plain(plain, state, partial, dtype)
                tokenizer.save_pretrained(partial)
            if is_adapted and merge_adapter:
                with torch.device("meta"):
                    base = type(plain)(plain.config)
                with atomic_folder(path.with_name(MERGED)) as partial:
                    _save_plain(base, merged_state(plain, dequantized(plain, state)), partial, dtype)
                    tokenizer.save_pretrained(partial)
        accelerator.wait_for_everyone()


def _save_plain(plain: PreTrainedModel, state: Mapping[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    """Write the `state` of a plain model, with weights of `dtype`, and its settings."""
    weights = {_WRAPPERS.sub("", name) for name, _ in plain.named_parameters(remove_duplicate=False)}
    rounded = {name: tensor.to(dtype) if name in weights else tensor for name, tensor in state.items()}
    plain.save_pretrained(folder, state_dict=rounded)
    config = copy.deepcopy(plain.config)
    config.dtype = dtype  # save_pretrained writes that of the module
    config.save_pretrained(folder)


def _round_weights(accelerator: Accelerator, model: nn.Module, dtype: torch.dtype) -> None:
    """Round the weights of a prepared model in place; of sharded weights the part on this rank."""
    if dtype == torch.float32:
        return
    overflows = torch.zeros((), device=accelerator.device)
    for parameter in model.parameters():
        for part in local_parts(parameter):
            overflows += (~part.copy_(part.to(dtype)).isfinite()).sum()
    name = str(dtype).removeprefix("torch.")
    if count := int(accelerator.reduce(overflows, "sum").item()):
        raise InputError(f"--save_dtype {name}: expected finite weights, got {count} that overflow. Set another dtype.")
    log.info("the weights are rounded to %s, for the exported model and its test", name)


def _plain_state(prepared: Mapping[str, Tensor], plain: PreTrainedModel) -> dict[str, Tensor]:
    """Return the state of a prepared model as that of the model in it.

    Raises RuntimeError if a name is missing or unknown: the plain class could not load it.
    """
    state = {_WRAPPERS.sub("", name).removeprefix("model."): tensor for name, tensor in prepared.items()}
    for tied, source in plain.all_tied_weights_keys.items():
        if source in state:
            state.pop(tied, None)  # DeepSpeed returns copies, which would be saved in addition to their source
    weights = {_WRAPPERS.sub("", name) for name, _ in plain.named_parameters(remove_duplicate=False)}
    buffers = {_WRAPPERS.sub("", name) for name, _ in plain.named_buffers()}
    lacking = weights - plain.all_tied_weights_keys.keys() - state.keys()
    if wrong := lacking | (state.keys() - weights - buffers):
        raise RuntimeError(f"export: the names of weights are not those of {type(plain).__name__}: {sorted(wrong)[:3]}")
    return state
