"""The layers: a file of the library imports only from files listed above it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = (
    "errors legacy jsonl data metrics index hardware retriever passages prompts batching collators decoder train "
    "checkpoint generate evaluate config run"
).split()


def imported(path: Path) -> set[str]:
    """The modules of rqa that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return {name.split(".")[1] for name in names if name.startswith("rqa.")} & set(LAYERS)


def test_every_file_has_its_layer():
    assert {path.stem for path in (ROOT / "rqa").glob("*.py")} - {"__init__"} == set(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_a_file_imports_only_from_above(name):
    allowed = set(LAYERS[: LAYERS.index(name)])
    assert imported(ROOT / "rqa" / f"{name}.py") <= allowed


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
    [("rqa", {"torch", "numpy", "transformers"}), ("rqa.data", {"torch", "numpy"}), ("rqa.index", {"torch"})],
)
def test_what_stands_alone_does(module, absent):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert not absent & set(loaded.split())


def loop_body(path: Path) -> str:
    """The body of the recipe's `for step in train_steps(...)`."""
    [loop] = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.For) and "train_steps" in ast.unparse(node.iter)
    ]
    return ast.unparse(loop)


def test_the_training_recipes_have_one_loop():
    loops = {loop_body(ROOT / "recipes" / f"{name}.py") for name in ("swr_starling", "sft_mistral")}
    assert len(loops) == 1
