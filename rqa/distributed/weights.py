"""The weights of a prepared model on this rank, and their checksum over all ranks."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import align_module_device
from torch import Tensor, nn

from rqa.distributed.accelerator import is_sharded

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size in bytes


def local_parts(parameter: nn.Parameter) -> Iterator[Tensor]:
    """Yield the tensors of a parameter on this rank: ZeRO-3 keeps its shard in ds_tensor, FSDP2 in a DTensor."""
    for part in (parameter.data, getattr(parameter, "ds_tensor", None)):
        if part is not None:
            yield part.to_local() if hasattr(part, "to_local") else part


def quantization_tensors(parameter: Tensor) -> Iterator[Tensor]:
    """Yield the tensors of a weight in 4 bits that are in no state: maxima of blocks, of these, and their mean."""
    if (state := getattr(parameter, "quant_state", None)) is not None:
        yield from (state.absmax, state.state2.absmax, state.offset)


def weights_checksum(accelerator: Accelerator, model: nn.Module, *, only_frozen: bool = False) -> int:
    """Return a checksum of weights, the same on any number of ranks: sums of their bits. Every rank must call this.

    It changes with a single bit, but not if values of one parameter change places.
    """
    total, number = torch.zeros((), dtype=torch.int64, device=accelerator.device), 0
    for module in model.modules():
        with align_module_device(module):  # weights on the CPU or on disk are read
            for parameter in module.parameters(recurse=False):
                number += 1
                parts = (*local_parts(parameter), *quantization_tensors(parameter))
                for part in () if only_frozen and parameter.requires_grad else parts:
                    bits = part.view(_INTEGERS[part.element_size()]).sum(dtype=torch.int64)
                    total += number * bits.to(total.device)
    if is_sharded(accelerator):
        total = accelerator.reduce(total, "sum")
    return int(total.item())
