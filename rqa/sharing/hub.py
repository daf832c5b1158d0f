"""Upload of an exported model, its card and its report to the hub, in one commit."""

import json
import logging
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from huggingface_hub import CommitOperationAdd, HfApi, get_token, is_offline_mode
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from tqdm.contrib.logging import logging_redirect_tqdm

from rqa.distributed.hub import base_model
from rqa.distributed.untrusted import ADAPTER_CONFIG, read_settings
from rqa.endpoint.redaction import without_key
from rqa.errors import InputError
from rqa.report.html import write_report
from rqa.sharing.card import EXPORTS, public_name, write_cards
from rqa.terminal import Progress

log = logging.getLogger("rqa")

REPORT = "report.html"
# Names of the files of a model, an adapter and a tokenizer. Others in their folder are left out, and named.
MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "*config.json", "README.md"),
    *("tokenizer.json", "vocab.json", "added_tokens.json", "special_tokens_map.json"),
    *("vocab.txt", "merges.txt", "*.model", "*.tiktoken", "*.spm", "*.vocab", "*.bpe"),
    *("chat_template.jinja", "additional_chat_templates/*.jinja"),
)


def check_push(repo: str) -> None:
    """Raise InputError unless `repo` is a name of the form owner/name, and this machine can log in to the hub."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"--push_to_hub {repo}: expected owner/name, got another form: {error}") from error
    if "/" not in repo:
        raise InputError(f"--push_to_hub {repo}: expected owner/name, got no owner")
    if is_offline_mode():
        raise InputError(f"--push_to_hub {repo}: expected a connection, got HF_HUB_OFFLINE. Unset it")
    if not get_token():
        raise InputError(f"--push_to_hub {repo}: expected a token, got none. Run `hf auth login`, or set HF_TOKEN")


def files_to_upload(run: Path, *, push_report: bool = False) -> dict[str, Path]:
    """Return the files of a run that are uploaded, by their names in the repository: model, merged model, report.

    Names of other files beside the model are logged. Raises InputError if the report is missing.
    """
    files: dict[str, Path] = {}
    for export in EXPORTS:
        folder = run / export
        selected = {path for pattern in MODEL_FILES for path in folder.glob(pattern)}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if path in selected:
                name = path.relative_to(folder if export == EXPORTS[0] else run).as_posix()
                files[name] = path
            else:
                log.warning("%s: not uploaded, because it is no file of a model or a tokenizer", path)
    if push_report:
        if not (run / REPORT).is_file():
            raise InputError(f"--push_report true: expected {run / REPORT}, got no such file. Run recipes/report.py")
        files[f"report/{REPORT}"] = run / REPORT
    return files


def push(run: Path, *, push_to_hub: str, hub_private: bool = True, push_report: bool = False) -> bool:
    """Upload a run to the hub repository `push_to_hub` in one commit; "" uploads nothing. Return False if it failed.

    Then the reason is logged, and the command that repeats the upload. A repository that does not exist is created. One
    that exists keeps its files of other names.
    """
    problem = ""
    try:
        if push_to_hub:
            problem = _push(push_to_hub, hub_private, files_to_upload(run, push_report=push_report))
    except Exception as error:  # the client raises exceptions of many types
        problem = _reason(error)
    if problem:
        flags = {"run": run, "push_to_hub": push_to_hub, "hub_private": hub_private, "push_report": push_report}
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        command = shlex.join(["python", "recipes/share.py", *words])
        fix = f"Repeat the upload: {command}"
        log.warning("%s: the upload failed, the run is complete. %s\n%s", push_to_hub, problem, fix)
    return not problem


def _push(repo: str, private: bool, files: Mapping[str, Path]) -> str:
    """Return "" or the problem."""
    api = HfApi()
    api.create_repo(repo, private=private, exist_ok=True)
    if private and not api.model_info(repo).private:  # it existed
        return "expected a private repository, got a public one. To use it, set --hub_private false"
    operations = [CommitOperationAdd(name, _content(path)) for name, path in files.items()]
    with Progress(f"uploading to {repo}", len(files), unit="files") as progress:
        for operation in operations:
            api.preupload_lfs_files(repo, [operation], free_memory=False)
            progress.advance()
        commit = api.create_commit(repo, operations, commit_message="Upload a model trained with rqa")
    stored = {file.rfilename for file in api.model_info(repo, revision=commit.oid).siblings or ()}
    if missing := sorted(files.keys() - stored):
        return f"expected {', '.join(missing)} in the repository, got none, such as by its .gitignore"
    if others := sorted(stored - files.keys() - {".gitattributes"}):
        log.info("%s: these files were there before and stay: %s", repo, ", ".join(others))
    log.info("uploaded to %s: %d files", commit.repo_url, len(files))
    return ""


def _content(path: Path) -> Path | bytes:
    """Return the file to upload: of an adapter's settings a copy that names no folder of this machine."""
    if path.name == ADAPTER_CONFIG:
        name, is_local = public_name(base_model(str(path.parent)))
        if is_local:
            return json.dumps(read_settings(path) | {"base_model_name_or_path": name}, indent=2).encode()
    return path


def _reason(error: BaseException) -> str:
    """Return the messages of an error and its causes, in one line, without the token and without signed addresses."""
    parts = []
    cause: BaseException | None = error
    while cause is not None:
        parts.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__
    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]+", r"\1", " ".join("; ".join(parts).split()))
    return without_key(text, get_token() or "")


def finish_run(accelerator: Accelerator, run: Path, **push_options: Any) -> int:
    """Write the report, and the cards with the scores of the test, then `push`. Return the exit status.

    The main process alone writes and uploads; the others return 0.
    """
    if not accelerator.is_main_process:
        return 0
    with logging_redirect_tqdm():
        log.info("report: %s", write_report(run))
        write_cards(run)
        return int(not push(run, **push_options))
