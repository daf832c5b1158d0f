"""Weights in the pickle format of PyTorch, pytorch_model*.bin: read without running code in them."""

import logging
import pickle
import re
import warnings
from pathlib import Path

import torch
from torch import Tensor

from rqa.atomic_files import LFS_POINTER
from rqa.errors import InputError

log = logging.getLogger(__name__)

_ERRORS = (pickle.UnpicklingError, EOFError, OSError, ValueError, RuntimeError, LookupError, AttributeError, TypeError)
_CALL = re.compile(r"GLOBAL (\S+)")  # in the message of torch


def pickled_files(folder: Path) -> list[Path]:
    """Return the weights files in a folder that are pickles, none if it has safetensors files, which are loaded."""
    return [] if any(folder.glob("*.safetensors")) else sorted(folder.glob("pytorch_model*.bin"))


def read_pickled(path: Path) -> dict[str, Tensor]:
    """Return the names and shapes of a file's weights, on the device "meta".

    Raises InputError if the file is damaged, contains anything but weights, or would run code.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise InputError(f"{path}: expected weights, got a pointer of Git LFS. Run git lfs pull")
        with warnings.catch_warnings():  # of pickle protocols, which torch expects to be 2
            warnings.simplefilter("ignore", UserWarning)
            weights = torch.load(path, map_location="meta", weights_only=True)
    except InputError:
        raise
    except _ERRORS as error:
        if call := _CALL.search(str(error)):
            reason = f"a pickle that calls {call[1]}: it is unsafe, or damaged. Use another copy"
        else:
            reason = f"a damaged file: {str(error).partition('.')[0] or type(error).__name__}. Copy it again"
        raise InputError(f"{path}: expected weights, got {reason}") from error
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise InputError(f"{path}: expected weights by name, got other values. Save the model with save_pretrained")
    return weights


def log_pickled(name: str) -> None:
    """Log that weights are in the pickle format."""
    log.info("%s: weights in the pickle format (pytorch_model.bin); no code in it is run", name)
