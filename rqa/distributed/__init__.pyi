from .accelerator import exchange_lists as exchange_lists
from .accelerator import is_sharded as is_sharded
from .accelerator import leave_group as leave_group
from .accelerator import make_accelerator as make_accelerator
from .device import AttentionKernel as AttentionKernel
from .device import attention_kernel as attention_kernel
from .device import bf16_is_fast as bf16_is_fast
from .device import default_device as default_device
from .device import peak_memory_gib as peak_memory_gib

__all__ = [
    "AttentionKernel",
    "attention_kernel",
    "bf16_is_fast",
    "default_device",
    "exchange_lists",
    "is_sharded",
    "leave_group",
    "make_accelerator",
    "peak_memory_gib",
]
