"""Run a script with DeepSpeed on a machine without a GPU, without its kernel for shared memory.

    DS_ACCELERATOR=cpu torchrun --nproc_per_node 2 tests/helpers/deepspeed_on_cpu.py SCRIPT [FLAGS]

The kernel takes a minute to compile and sums tensors over shared memory; without it gloo sums them.
"""

import runpy
import sys

import deepspeed

sys.modules[f"{deepspeed.__name__}.comm.torch"].build_shm_op = lambda: None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
