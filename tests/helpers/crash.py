"""Run a recipe, and kill it with SIGKILL when it touches a folder for the N-th time (0: never).

    python tests/helpers/crash.py FOLDER N RECIPE [FLAGS]

At the end it prints the names of the files, in the order of the touches. Of several processes, rank 0 counts and is
killed.
"""

import atexit
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "shutil.copyfile"}

folder, last = sys.argv[1], int(sys.argv[2])
touched: list[str] = []


def count_touches(event: str, args: tuple[Any, ...]) -> None:
    paths = [os.fspath(arg) for arg in args if isinstance(arg, str | os.PathLike)] if event in EVENTS else []
    if inside := [path for path in paths if path.startswith(folder)]:
        touched.append(Path(inside[-1]).name)
        if 0 < last <= len(touched):  # threads may touch at once
            os.kill(os.getpid(), signal.SIGKILL)


if os.environ.get("RANK", "0") == "0":
    sys.addaudithook(count_touches)
    atexit.register(lambda: print("touched:", *touched))
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
