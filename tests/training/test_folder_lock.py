"""folder_lock: a folder has one run, until the last process of the run has ended."""

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict

import pytest
from world import files, launch_environment

from rqa.errors import InputError
from rqa.training import folder_lock
from rqa.training.folder_lock import OWN_NAME, PREFIX, lock_folder

HOLD = """
import sys, time
from pathlib import Path
from rqa.training.folder_lock import join_lock, lock_folder
from rqa.errors import InputError
try:
    {take}(Path(sys.argv[1]))
except InputError as error:
    sys.exit(str(error))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(folder, take="lock_folder"):
    """Yield a process that has tried to take the lock, and its first line: "held", or the end of its output."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(take=take), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=launch_environment(),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def is_held(process):
    return process.stdout.readline() == "held\n"


def write_lock(folder, **changes):
    """Write the lock of a process that does not exist."""
    record = asdict(folder_lock._this_process()) | {"pid": 7, "host": "elsewhere", "command": "train"} | changes
    path = folder / f"{PREFIX}7-0000"
    path.write_text(json.dumps(record))
    return path


def test_a_living_process_holds_the_folder_until_its_end_however_it_ends(tmp_path):
    with holder(tmp_path) as first:
        assert is_held(first)
        for break_lock in (False, True):  # the lock of a process that lives on this machine is never broken
            with pytest.raises(InputError) as refused:
                lock_folder(tmp_path, break_lock=break_lock)
            words = rf"--output_dir {tmp_path}: .*process {first.pid} on {os.uname().nodename}, started 20\d\d-.*kill"
            assert re.match(words, str(refused.value))
        assert OWN_NAME not in files(tmp_path)
        first.kill()  # its file stays
        first.wait()
        assert len(files(tmp_path)) == 1
        lock_folder(tmp_path)
        assert files(tmp_path) == {OWN_NAME}
    with holder(tmp_path) as second:
        assert not is_held(second)
        assert f"process {os.getpid()} on " in second.communicate()[1]


def test_a_rank_that_outlives_the_main_process_holds_the_folder(tmp_path):
    with holder(tmp_path) as main:
        assert is_held(main)
        with holder(tmp_path, "join_lock") as rank:
            assert is_held(rank)
            main.kill()
            main.wait()
            with pytest.raises(InputError, match=f"process {rank.pid} "):
                lock_folder(tmp_path)
            rank.communicate()  # closes its input: it ends by itself, and removes its file
    assert len(files(tmp_path)) == 1
    lock_folder(tmp_path)


def test_of_processes_that_start_at_once_one_gets_the_folder(tmp_path):
    started = [holder(tmp_path) for _ in range(4)]
    processes = [process.__enter__() for process in started]
    try:
        assert sorted(map(is_held, processes)) == [False, False, False, True]
    finally:
        for one in started:
            one.__exit__(None, None, None)


@pytest.mark.parametrize("content", [{"boot": "of another machine"}, None], ids=["another machine", "no content"])
def test_the_lock_of_another_machine_is_broken_only_by_the_flag(tmp_path, content, caplog):
    """Its name may be that of this machine, as in containers."""
    path = write_lock(tmp_path, host=os.uname().nodename, **content or {})
    if content is None:
        path.write_text("")
    with pytest.raises(InputError, match="--break_lock true"):
        lock_folder(tmp_path)
    assert files(tmp_path) == {path.name}
    lock_folder(tmp_path, break_lock=True)
    assert files(tmp_path) == {OWN_NAME}
    assert "--break_lock" in caplog.text


def test_a_process_id_in_use_again_does_not_hold_the_folder(tmp_path):
    write_lock(tmp_path, pid=os.getpid())
    lock_folder(tmp_path)
    assert files(tmp_path) == {OWN_NAME}


def test_without_locks_in_the_file_system_the_user_decides(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    path = write_lock(tmp_path)
    with pytest.raises(InputError, match=r"process 7 on elsewhere, .*--break_lock true"):
        lock_folder(tmp_path)
    path.unlink()
    lock_folder(tmp_path)
    lock_folder(tmp_path)  # of the same process
    assert files(tmp_path) == {OWN_NAME}


def test_control_characters_of_a_lock_do_not_reach_the_terminal(tmp_path):
    write_lock(tmp_path, boot="other", command="\x1b[2J")
    with pytest.raises(InputError) as refused:
        lock_folder(tmp_path)
    assert "\x1b" not in str(refused.value)


def test_a_long_command_is_cut(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipe", "x" * 5000])
    assert len(str(folder_lock._this_process())) < 400
