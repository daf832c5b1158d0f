"""Run a script with DeepSpeed on a machine without a GPU, without the kernel that it would compile for a minute first.

    DS_ACCELERATOR=cpu torchrun --nproc_per_node 2 tests/deepspeed_on_cpu.py SCRIPT [FLAGS]

The kernel sums over shared memory; without it gloo does.
"""

import runpy
import sys

import deepspeed

sys.modules[f"{deepspeed.__name__}.comm.torch"].build_shm_op = lambda: None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
