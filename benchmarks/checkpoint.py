"""Seconds that a checkpoint stops training, in three ways.

    python benchmarks/checkpoint.py [--gigabytes 1.6] [--processes 1 2] [--rounds 3]

one by one: training waits while rank 0 hashes a file after the other, then flushes them. waiting: training waits for
`Checkpoints.save`. rqa: training continues after the state is written. The state is that of AdamW in float32, a third
of it weights. The ways take turns, and the fastest save of each counts.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import Accelerator
from torch import nn

from rqa.atomic_files import publish_folder, sha256_of
from rqa.distributed.accelerator import leave_group
from rqa.training.checkpoint import Checkpoints
from rqa.training.early_stopping import EarlyStopping

WIDTH = 2048  # of a layer
WAYS = ("one by one", "waiting", "rqa")


def save_one_by_one(accelerator: Accelerator, folder: Path) -> None:
    """Write the state to a folder. Rank 0 hashes, flushes and renames it while the others wait."""
    partial = folder / "partial"
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for path in partial.rglob("*"):
            sha256_of(path)
        publish_folder(partial, folder / "checkpoint")
    accelerator.wait_for_everyone()


def measure_here(gigabytes: float, rounds: int, folder: Path) -> None:
    """Print the seconds of each way, in this process."""
    accelerator = Accelerator()
    layers = max(1, round(gigabytes * 1e9 / (12 * WIDTH**2)))
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    checkpoints = Checkpoints(accelerator, folder, {}, EarlyStopping(), keep=1)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for step in range(1, 2 * rounds, 2):
        for way in WAYS:
            start = time.perf_counter()
            if way == "one by one":
                save_one_by_one(accelerator, folder)
            else:
                checkpoints.save(step + (way == "rqa"))
                if way == "waiting":
                    checkpoints.wait()
            seconds[way].append(time.perf_counter() - start)
            checkpoints.wait()
            if accelerator.is_main_process:
                shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    if accelerator.is_main_process:
        fastest = {way: min(seconds[way]) for way in WAYS}
        cells = [f"{fastest[way]:6.1f} s ({fastest['one by one'] / fastest[way]:4.1f}x)" for way in WAYS]
        print(f"{accelerator.num_processes:9}  {'  '.join(cells)}", flush=True)
    leave_group()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=1.6)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--here", type=Path)
    args = parser.parse_args()
    if args.here:
        measure_here(args.gigabytes, args.rounds, args.here)
        return
    print("processes  " + "  ".join(f"{way:>16}" for way in WAYS), flush=True)
    environment = os.environ if torch.cuda.is_available() else {**os.environ, "ACCELERATE_USE_CPU": "true"}
    for processes in args.processes:
        with TemporaryDirectory(dir=".") as folder:
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
            flags = ["--gigabytes", str(args.gigabytes), "--rounds", str(args.rounds), "--here", folder]
            subprocess.run([sys.executable, *launcher, __file__, *flags], check=True, env=environment)


if __name__ == "__main__":
    main()
