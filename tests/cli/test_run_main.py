"""run_main: the standard output has results alone, without control characters; closed streams end a recipe quietly."""

import json
import subprocess
import sys

import pytest
from world import launch_environment

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m"
PRINTED = "␛[2J␛]0;owned␇\ufffd31m"

RECIPE = f"""
'''The docstring of a recipe.'''
import atexit, ctypes, logging, os, subprocess, sys
from dataclasses import dataclass
from rqa.cli import check_output, flag, parse_args, run_main
from rqa.errors import InputError
from rqa.atomic_files import write_json
from rqa.terminal import Progress, write_json_result, write_result

ESCAPES = {ESCAPES!r}

@dataclass(frozen=True)
class Args:
    end: str = flag("", "how the recipe ends")
    lines: int = flag(1, "lines of the result")
    output: str = flag("", "file", is_path=True)

def main():
    [args] = parse_args(Args())
    output = check_output(args.output)
    atexit.register(print, "library at exit")
    print("library in Python")
    os.write(1, b"library at the descriptor\\n")
    ctypes.CDLL(None).puts(b"library in C")
    ctypes.CDLL(None).fflush(None)
    subprocess.run(["echo", "library in a child"], check=True)
    sys.__stdout__.write("library with the original stream\\n")
    logging.getLogger("transformers.x").warning("record %s", ESCAPES)
    logging.getLogger("rqa").info("record %s", ESCAPES)
    if args.end == "input":
        raise InputError(f"train{{ESCAPES}}.jsonl: expected text")
    if args.end == "bug":
        raise RuntimeError(ESCAPES)
    if args.end == "number":
        raise FloatingPointError(f"step 3{{ESCAPES}}")
    if args.end == "stdin":
        write_json_result({{"read": sys.stdin.read(), "escapes": ESCAPES}})
        return
    for number in range(args.lines):
        write_result(f"result {{number}} {{ESCAPES}}")
    if output:
        write_json(output, {{"escapes": ESCAPES}})

run_main(main)
"""


def run(*argv, shell="", **options):
    """Run RECIPE in its own process; return its status, standard output and standard error."""
    command = [sys.executable, "-c", RECIPE, *argv]
    if shell:
        command = ["bash", "-c", f'set -o pipefail; "$@" {shell}', "bash", *command]
    options = {"capture_output": True, **options}
    done = subprocess.run(command, timeout=60, env=launch_environment(), **options)
    return done.returncode, (done.stdout or b"").decode(), (done.stderr or b"").decode()


def test_only_results_are_on_the_standard_output():
    status, out, err = run("--lines", "2")
    assert (status, out) == (0, f"result 0 {PRINTED}\nresult 1 {PRINTED}\n")
    prints = ["in Python", "at the descriptor", "in C", "in a child", "with the original stream", "at exit"]
    assert all(f"library {place}\n" in err for place in prints)


@pytest.mark.parametrize(
    ("end", "status", "message"),
    [
        ("input", 2, f"error: train{PRINTED}.jsonl: expected text\n"),
        ("number", 1, f"error: step 3{PRINTED}\n"),
        ("bug", 1, f"RuntimeError: {PRINTED}\n"),
    ],
)
def test_errors_and_log_records_have_no_control_characters(end, status, message):
    actual, out, err = run("--end", end)
    assert (actual, out) == (status, "")
    assert message in err
    assert ("Traceback" in err) == (end == "bug")
    assert err.count(f"record {PRINTED}\n") == 2  # of a library, and of this one
    assert not set(ESCAPES) & {"\x1b", "\x07", "\x9b"} & set(err)


def test_the_help_is_on_the_standard_output():
    status, out, _ = run("--help")
    assert status == 0
    assert "The docstring of a recipe." in out
    assert "--lines LINES" in out


def test_a_closed_pipe_ends_quietly():
    status, out, err = run("--lines", "100000", shell="| head -1")
    assert (status, out) == (141, f"result 0 {PRINTED}\n")
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


def test_a_full_disk_is_one_line():
    status, _, err = run(shell="> /dev/full")
    assert status == 2
    assert "error: standard output: cannot be written: No space left on device\n" in err


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_at_the_start_are_the_null_device(closed, tmp_path):
    """Also for files: without a descriptor 1, a file that is opened would get the output of libraries."""
    status, out, _ = run("--end", "stdin", shell=closed)
    assert status == 0
    if ">&-" not in closed.replace("2>&-", ""):
        assert json.loads(out) == {"read": "", "escapes": ESCAPES}
        assert "\x9b" not in out
    status, _, err = run("--output", str(tmp_path / "file.json"), shell=closed)
    assert (status, "Traceback" in err) == (0, False)
    assert json.loads((tmp_path / "file.json").read_bytes()) == {"escapes": ESCAPES}


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1"])
def test_an_output_on_the_standard_output_is_alone_there(path):
    status, out, err = run("--output", path)
    assert status == 0
    assert json.loads(out) == {"escapes": ESCAPES}
    assert "\x9b" not in out
    assert f"result 0 {PRINTED}\n" in err


def test_names_of_bytes_are_printed_in_any_encoding():
    environment = launch_environment(PYTHONIOENCODING="ascii")
    code = "from rqa.cli import run_main\nfrom rqa.terminal import write_result\n"
    code += "run_main(lambda: write_result('caf\\udce9 水'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout) == (0, b"caf\\udce9 \\u6c34\n")
