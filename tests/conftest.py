"""Fixtures that several test modules use, and the marker `launch` of every test that starts processes."""

import inspect
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import hypothesis
import pytest

TESTS = Path(__file__).parent
STARTERS = {"subprocess", "sync_playwright"}  # a function that uses one of these names starts processes
hypothesis.settings.register_profile("busy machine", deadline=None)  # a slow example is no fault
hypothesis.settings.load_profile("busy machine")
EXECUTABLES = ("python", "torchrun", "accelerate", "node", "chrom")  # a test may start these if it is marked


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Input files for the recipes."""
    from world import World

    return World.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def deepspeed_on_cpu(tmp_path_factory):
    """Environment of DeepSpeed on a machine without a GPU.

    A killed build of its extensions leaves a lock that blocks later builds, so each module has its own folder.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.mktemp("extensions")))
        patch.delenv("ACCELERATE_USE_CPU", raising=False)
        yield


@pytest.fixture(scope="module")
def browser():
    """A real browser; without one the test is skipped."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not path:
        pytest.skip("there is no Chromium on this machine")
    with pytest.importorskip("playwright.sync_api").sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


# The marker


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark a test if its function, or one of its fixtures, starts processes."""
    for item in items:
        if isinstance(item, pytest.Function):
            definitions = [used[-1].func for used in item._fixtureinfo.name2fixturedefs.values() if used]
            if any(starts_processes(function, set()) for function in (item.function, *definitions)):
                item.add_marker("launch")


def starts_processes(function: Callable[..., Any], seen: set[Any]) -> bool:
    """Return True if a function uses one of STARTERS, itself or through other functions of the tests."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    if not inspect.isfunction(function) or function in seen or TESTS not in Path(function.__code__.co_filename).parents:
        return False
    seen.add(function)
    names = set(names_in(function.__code__))
    if names & STARTERS:
        return True
    values = [function.__globals__[name] for name in names if name in function.__globals__]
    methods = [method for value in values if inspect.isclass(value) for method in vars(value).values()]
    return any(starts_processes(value, seen) for value in (*values, *methods))


def names_in(code: CodeType) -> Iterator[str]:
    """Yield the global names and attributes that a function uses, with those of the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)


running: list[pytest.Item] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    running.append(item)
    try:
        return (yield)
    finally:
        running.pop()


def check_marker(event: str, args: tuple[Any, ...]) -> None:
    """Raise RuntimeError if a test without the marker starts a process of Python or a browser."""
    if event != "subprocess.Popen" or not running or running[-1].get_closest_marker("launch"):
        return
    command = args[1] if isinstance(args[1], list | tuple) else [args[1]]
    if Path(str(args[0] or command[0])).name.startswith(EXECUTABLES):
        raise RuntimeError(f"{running[-1].nodeid} starts a process: it needs @pytest.mark.launch")


sys.addaudithook(check_marker)
