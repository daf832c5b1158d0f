"""The order of the packages: a module imports only from root modules, its own package, and packages before it."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from world import ROOT, launch_environment

ROOT_MODULES = {"atomic_files", "errors", "terminal", "timing"}
# A package imports from packages of earlier lines, and from itself.
PACKAGES = (
    {"data", "distributed"},
    {"conversion", "documents", "endpoint"},
    {"retrieval", "prompts"},
    {"models"},
    {"generation"},
    {"evaluation"},
    {"judge", "report", "serving", "training"},
    {"sharing"},
    {"doctor", "cli"},
    {"questions"},
)
FILES = sorted((ROOT / "rqa").glob("*/*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
TRAINING_RECIPES = ("swr_starling", "sft_mistral", "fid_flan_t5")
HEAVY = {"torch", "accelerate", "faiss", "sentence_transformers"}


def imported(path: Path) -> set[str]:
    """Return the names that a file imports, anywhere in it: modules, and modules with a dot and the imported name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: expected an absolute import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path) for path in (ROOT / "rqa").rglob("*.py")}


def imported_modules(path: Path) -> set[str]:
    """Return the modules of rqa that a file imports."""
    return imported(path) & MODULES - {"rqa"}


def test_the_root_modules_and_packages_are_the_listed_ones():
    assert {path.stem for path in (ROOT / "rqa").glob("*.py")} == ROOT_MODULES | {"__init__", "__main__"}
    assert {path.parent.name for path in FILES} == set().union(*PACKAGES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_module_imports_only_from_packages_before_its_own(path):
    [line] = [i for i, packages in enumerate(PACKAGES) if path.parent.name in packages]
    allowed = ROOT_MODULES | {path.parent.name} | set().union(*PACKAGES[:line])
    assert {name.split(".")[1] for name in imported_modules(path)} <= allowed


@pytest.mark.parametrize("name", sorted(ROOT_MODULES))
def test_a_root_module_imports_only_root_modules(name):
    assert {module.split(".")[1] for module in imported_modules(ROOT / "rqa" / f"{name}.py")} <= ROOT_MODULES


def test_modules_import_each_other_without_cycles():
    graph = {module_of(path): imported_modules(path) for path in FILES}
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_library_imports_modules_not_packages(path):
    """A package loads its names on use; inside the library an import names the module that defines them."""
    packages = {f"rqa.{name}" for name in set().union(*PACKAGES)}
    names = {name for name in imported(path) if name.rpartition(".")[0] in packages}
    assert names <= MODULES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_do_not_import_recipes(path):
    assert not {name.split(".")[0] for name in imported(path)} & {"recipes", *(other.stem for other in RECIPES)}


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.name)
def test_tests_do_not_import_test_modules(path):
    assert not [name for name in imported(path) if name.startswith("test_")]


def test_names_of_test_files_are_unique():
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert len(names) == len(set(names))


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=launch_environment(),
    ).stdout


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("rqa", {"torch", "numpy", "transformers"}),
        ("rqa.data.records", {"torch", "numpy"}),
        ("rqa.retrieval.index", {"torch"}),
        ("rqa.cli.data_args", HEAVY),
        ("rqa.cli.training_args", HEAVY),
    ],
)
def test_a_light_module_loads_nothing_heavy(module, absent):
    assert not absent & set(run_python(f"import sys, {module}; print(*sys.modules)").split())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_help_and_a_misspelt_flag_load_nothing_heavy(path):
    code = f"""
import runpy, sys
for flag in ("--help", "--mispelt"):
    sys.argv = ["recipe", flag]
    try:
        runpy.run_path({str(path)!r}, run_name="__main__")
    except SystemExit as end:
        print(end.code, *sys.modules)
"""
    lines = [line.split() for line in run_python(code).splitlines()]
    statuses = [line for line in lines if "runpy" in line]
    assert [status for status, *_ in statuses] == ["0", "2"]
    assert not HEAVY & {module for _, *modules in statuses for module in modules}


def statements_of_main(name: str) -> list[str]:
    tree = ast.parse((ROOT / "recipes" / f"{name}.py").read_text(encoding="utf-8"))
    [main] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    return list(map(ast.unparse, main.body))


def test_the_training_recipes_have_one_loop():
    """From the layout of the global batch to its end, `main` is the same in all three.

    SFT retrieves nothing for training, so the retriever in its fingerprint is that of the validation file.
    """
    parts = []
    for name in TRAINING_RECIPES:
        statements = statements_of_main(name)
        [start] = [i for i, statement in enumerate(statements) if statement.startswith("layout = ")]
        parts.append("\n".join(statements[start:]))
    swr, sft, fid = parts
    assert "train_steps(" in swr
    assert swr == fid == sft.replace("first_rows, eval_hits)", "first_rows, train_hits)")
