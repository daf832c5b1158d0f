"""Run a script with FSDP2 on a machine without a GPU, where Accelerate would use DDP instead.

accelerate launch --use_fsdp --fsdp_version 2 … tests/helpers/fsdp_on_cpu.py SCRIPT [FLAGS]
"""

import os
import runpy
import sys

from accelerate import DistributedType, PartialState

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
PartialState._prepare_backend = lambda *args, **options: ("gloo", DistributedType.MULTI_GPU)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
