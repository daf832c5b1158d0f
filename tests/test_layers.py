"""The layers: a file of the library imports only from files listed above it."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ROOT_MODULES = {"errors", "terminal", "timing"}
# A package imports from packages of the lines above its own, and from itself.
PACKAGES = (
    {"data", "distributed"},
    {"retrieval", "prompts"},
    {"models"},
    {"generation"},
    {"evaluation"},
    {"judge", "report", "training"},
    {"doctor", "cli"},
)
FILES = sorted((ROOT / "rqa").glob("*/*.py"))


def imported(path: Path) -> set[str]:
    """The modules of rqa that a file imports, wherever in it, with `rqa.` before their names."""
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in (ROOT / "rqa").rglob("*.py")}
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return {name for name in names if name in modules and name.count(".")}


def test_every_file_has_its_place():
    assert {path.stem for path in (ROOT / "rqa").glob("*.py")} == ROOT_MODULES | {"__init__"}
    assert {path.parent.name for path in FILES} == set().union(*PACKAGES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_imports_only_from_above(path):
    [line] = [i for i, packages in enumerate(PACKAGES) if path.parent.name in packages]
    allowed = ROOT_MODULES | {path.parent.name} | set().union(*PACKAGES[:line])
    assert {name.split(".")[1] for name in imported(path)} <= allowed


@pytest.mark.parametrize("name", sorted(ROOT_MODULES))
def test_a_root_module_imports_root_modules_alone(name):
    assert {module.split(".")[1] for module in imported(ROOT / "rqa" / f"{name}.py")} <= ROOT_MODULES


def test_no_module_imports_itself_through_others():
    graph = {".".join(path.relative_to(ROOT).with_suffix("").parts): imported(path) for path in FILES}
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.name)
def test_nobody_imports_a_recipe(path):
    recipes = {other.stem for other in (ROOT / "recipes").glob("*.py")}
    names = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not names & (recipes | {"recipes"})


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("rqa", {"torch", "numpy", "transformers"}),
        ("rqa.data.records", {"torch", "numpy"}),
        ("rqa.retrieval.index", {"torch"}),
        ("rqa.cli.data_args", {"torch", "accelerate", "faiss", "sentence_transformers"}),
        ("rqa.cli.training_args", {"torch", "accelerate", "faiss", "sentence_transformers"}),
    ],
)
def test_what_stands_alone_does(module, absent):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert not absent & set(loaded.split())


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.name)
@pytest.mark.parametrize("flag", ["--help", "--mispelt"])
def test_help_and_a_misspelt_flag_wait_for_nothing_heavy(path, flag):
    code = f"""
import runpy, sys
sys.argv = ["recipe", "{flag}"]
try:
    runpy.run_path({str(path)!r}, run_name="__main__")
except SystemExit as end:
    print(end.code, *sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    status, *loaded = done.stdout.splitlines()[-1].split()
    assert status == {"--help": "0", "--mispelt": "2"}[flag]
    assert not {"torch", "accelerate", "faiss", "sentence_transformers"} & set(loaded)


def from_state_on(path: Path) -> str:
    """What the recipe does from the state of a run on: everything after its model, to the end of `main`."""
    [main] = [
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == "main"
    ]
    [first] = [i for i, node in enumerate(main.body) if ast.unparse(node).startswith("layout = ")]
    return "\n".join(map(ast.unparse, main.body[first:]))


def test_the_training_recipes_have_one_loop():
    names = ("swr_starling", "sft_mistral", "fid_flan_t5")
    swr, sft, fid = (from_state_on(ROOT / "recipes" / f"{name}.py") for name in names)
    assert "train_steps(" in swr
    assert swr == fid == sft.replace("first_rows, eval_found)", "first_rows, found)")
