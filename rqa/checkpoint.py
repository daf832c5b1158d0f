"""What a run leaves behind: the plain model."""

import os
from pathlib import Path

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase


def export(accelerator: Accelerator, model: nn.Module, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write the plain model inside the prepared wrapper `model`, and its tokenizer, to the new folder `path`.

    It loads with the plain class's `from_pretrained`, and appears whole or not at all. Every process must call this.
    """
    state = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        plain = accelerator.unwrap_model(model).plain
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        plain.save_pretrained(
            unfinished, state_dict={name.removeprefix("plain."): tensor for name, tensor in state.items()}
        )
        tokenizer.save_pretrained(unfinished)
        unfinished.rename(path)
    accelerator.wait_for_everyone()
