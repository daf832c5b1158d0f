"""Run a recipe, and kill it with SIGKILL when it touches a folder for the N-th time (0: never).

    python tests/helpers/crash.py FOLDER N RECIPE [FLAGS]

At the end it prints how often the folder was touched. Of several processes, rank 0 counts and is killed.
"""

import atexit
import os
import runpy
import signal
import sys
from typing import Any

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "shutil.copyfile"}

folder, last = sys.argv[1], int(sys.argv[2])
touched = 0


def count_touches(event: str, args: tuple[Any, ...]) -> None:
    global touched
    if event in EVENTS and any(
        isinstance(arg, str | os.PathLike) and os.fspath(arg).startswith(folder) for arg in args
    ):
        touched += 1
        if touched == last:
            os.kill(os.getpid(), signal.SIGKILL)


if os.environ.get("RANK", "0") == "0":
    sys.addaudithook(count_touches)
    atexit.register(lambda: print(f"touched {touched} times"))
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
