"""Measure the time from launch to the first step: without index and cache, and with those of the first run.

    python benchmarks/startup.py --config recipes/configs/quickstart.yaml

Takes the flags of recipes/swr_starling.py. --output_dir and --full_dataset_index_path are temporary folders.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "recipes/swr_starling.py"]


def seconds_to_first_step(flags: list[str], out: Path) -> float:
    """Return the seconds from the launch until the first step has its batch."""
    one = ["--output_dir", str(out), "--max_steps", "1", "--logging_steps", "1", "--eval_file", "", "--test_file", ""]
    start = time.perf_counter()
    with subprocess.Popen([*LAUNCH, *flags, *one], stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr
        for line in run.stderr:
            if line.startswith("step 1/1"):
                trained = time.perf_counter() - start
        run.stderr.close()
    if run.returncode:
        raise SystemExit(run.returncode)
    timing = json.loads((out / "timings.jsonl").read_text().splitlines()[0])
    return trained - float(timing["seconds"] - timing["batch_seconds"])


def main() -> None:
    """Print the table."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "recipes/swr_starling.py", "--help"], check=True, stdout=subprocess.DEVNULL)
    print(f"--help                        {time.perf_counter() - start:6.1f} s")
    with TemporaryDirectory() as folder:
        flags = [*sys.argv[1:], "--full_dataset_index_path", str(Path(folder, "index"))]
        first, again = (seconds_to_first_step(flags, Path(folder, name)) for name in ("first", "again"))
    print(f"first step, nothing cached    {first:6.1f} s")
    print(f"first step, cached            {again:6.1f} s, {first / again:.1f} times as fast")


if __name__ == "__main__":
    main()
