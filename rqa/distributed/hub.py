"""Names of checkpoints: a folder, or a model in the hub or its cache; errors before a library waits for the network."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import httpx
from huggingface_hub import constants, is_offline_mode
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from transformers.utils import logging as transformers_logging

from rqa.distributed.untrusted import ADAPTER_CONFIG, read_settings
from rqa.errors import InputError

log = logging.getLogger(__name__)

PROBE_SECONDS = 5.0  # for a connection to the hub; one that works takes well under a second


def check_checkpoint_name(name_or_path: str) -> None:
    """Raise InputError unless there is a folder `name_or_path`, or it is a hub name that can be looked up.

    If the hub cannot be reached, this process uses its cache alone from here on: huggingface_hub repeats each request
    for 23 seconds, and logs each attempt.
    """
    if Path(name_or_path).is_dir():
        return
    expected = f"{name_or_path}: expected a checkpoint folder or a hub name"
    try:
        validate_repo_id(name_or_path)
    except HFValidationError as error:
        raise InputError(f"{expected}, got neither") from error
    reason = "HF_HUB_OFFLINE is set"
    if not is_offline_mode() and not _hub_is_reachable():
        constants.HF_HUB_OFFLINE = True
        reason = f"{constants.ENDPOINT} cannot be reached"
        if _is_cached(name_or_path):
            log.warning("%s: models are read from its cache alone", reason)
    if is_offline_mode() and not _is_cached(name_or_path):
        raise InputError(f"{expected}, got no such folder. The hub's cache lacks this model, and {reason}")


def is_adapter(name_or_path: str) -> bool:
    """Return True for a folder with a low-rank adapter, which names its base model."""
    return Path(name_or_path, ADAPTER_CONFIG).is_file()


def base_model(name_or_path: str) -> str:
    """Return the name of the base model of an adapter; of another checkpoint its own name."""
    if not is_adapter(name_or_path):
        return name_or_path
    path = Path(name_or_path, ADAPTER_CONFIG)
    settings = read_settings(path)
    base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    if not isinstance(base, str) or not base:
        raise InputError(f"{path}: expected the base model's name in base_model_name_or_path, got {base!r}")
    return base


@cache
def _hub_is_reachable() -> bool:
    try:
        # No certificate is verified, because this request sends and reads nothing.
        httpx.head(constants.ENDPOINT, timeout=PROBE_SECONDS, verify=False)
    except httpx.TransportError:
        return False
    return True


def _is_cached(name: str) -> bool:
    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model")).is_dir()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide the warnings, reports and bars of transformers, where the caller reports missing weights itself."""
    level, has_bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if has_bar:
            transformers_logging.enable_progress_bar()
