"""The command `rqa`: lists the recipes that were installed with the library, and copies them."""

import argparse
import ast
import difflib
import shutil
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import rqa
from rqa.cli.parser import run_main
from rqa.errors import InputError
from rqa.terminal import write_result

FOLDER = "share/rqa/recipes"  # of the installed files, as in setup.cfg
EXAMPLE = "swr_starling.py"


def recipes_folder() -> Path:
    """Return the folder of the recipes: in the checkout, or where pip installed them. Raises InputError without one."""
    checkout = Path(rqa.__file__).parents[1] / "recipes"
    if (checkout / EXAMPLE).is_file():
        return checkout
    try:
        installed = files("rqa") or []
    except PackageNotFoundError:
        installed = []
    for path in installed:
        if path.as_posix().endswith(f"{FOLDER}/{EXAMPLE}"):
            return Path(str(path.locate())).parent
    raise InputError("rqa: expected the recipes in its package, got none. Install it again with pip")


def recipe_files(folder: Path) -> dict[str, Path]:
    """Return the recipes and configurations by their names, such as ask.py and configs/ds_config.json."""
    paths = [*folder.glob("*.py"), *folder.glob("configs/*.yaml"), *folder.glob("configs/*.json")]
    return {path.relative_to(folder).as_posix(): path for path in sorted(paths)}


def list_recipes() -> None:
    """Print each recipe with the first line of its docstring, then the configurations."""
    named = recipe_files(recipes_folder())
    recipes = {name: path for name, path in named.items() if path.suffix == ".py"}
    width = max(map(len, recipes)) + 2
    for name, path in recipes.items():
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        write_result(f"{name:{width}}{docstring.partition(chr(10))[0]}")
    write_result()
    for name in sorted(named.keys() - recipes.keys()):
        write_result(name)
    write_result("\nrqa copy NAME FOLDER copies one, to run or to edit: accelerate launch FOLDER/NAME --help")


def copy_recipes(names: Sequence[str], folder: str, *, force: bool = False) -> None:
    """Copy recipes or configurations into a folder, all if `names` is "all".

    The folder is created. Configurations keep their folder if all files are copied. Raises InputError for unknown
    names, and for files that exist, unless `force`; then nothing is copied.
    """
    named = recipe_files(recipes_folder())
    if [*names] == ["all"]:
        copies = {path: Path(folder, name) for name, path in named.items()}
    else:
        copies = {(path := _named(named, name)): Path(folder, path.name) for name in names}
    if existing := [str(target) for target in copies.values() if target.exists() and not force]:
        raise InputError(f"{existing[0]}: expected a new file, got an existing one. --force replaces it")
    try:
        for path, target in copies.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            write_result(target)
    except OSError as error:
        raise InputError(f"{folder}: expected a folder for the recipes, got {error.strerror}") from error


def _named(named: dict[str, Path], name: str) -> Path:
    for known in (name, f"{name}.py", f"configs/{name}"):
        if known in named:
            return named[known]
    close = difflib.get_close_matches(name, named, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]}? " if close else ""
    raise InputError(f"{name}: expected the name of a recipe, got none. {hint}`rqa recipes` lists them")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="rqa", description=rqa.__doc__)
    parser.add_argument("--version", action="version", version=f"rqa {rqa.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("recipes", help="list the recipes and configurations")
    copy = commands.add_parser("copy", help="copy recipes or configurations into a folder")
    copy.add_argument("names", nargs="+", metavar="NAME", help="as `rqa recipes` lists them; or the one word all")
    copy.add_argument("folder", metavar="FOLDER", help="folder to copy them into")
    copy.add_argument("--force", action="store_true", help="replace existing files")
    args = parser.parse_args()
    if args.command == "recipes":
        run_main(list_recipes)
    run_main(partial(copy_recipes, args.names, args.folder, force=args.force))
