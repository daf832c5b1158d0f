"""Run a recipe and end it, as a power cut would, when it touches a folder for the n-th time (0: never).

    python tests/crash.py FOLDER N RECIPE [FLAGS]

At its end it prints how often the folder was touched. Of several processes the first one is ended.
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


def watch(event: str, args: tuple[Any, ...]) -> None:
    global touched
    if event in EVENTS and any(
        isinstance(arg, str | os.PathLike) and os.fspath(arg).startswith(folder) for arg in args
    ):
        touched += 1
        if touched == last:
            os.kill(os.getpid(), signal.SIGKILL)


if os.environ.get("RANK", "0") == "0":
    sys.addaudithook(watch)
    atexit.register(lambda: print(f"touched {touched} times"))
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
