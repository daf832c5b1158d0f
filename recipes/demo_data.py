"""A corpus and questions that every machine has: what Python's standard library says of itself.

    python recipes/demo_data.py --output_dir data/stdlib

The docstrings of the interpreter's public modules, classes, functions and methods are the passages. A question asks
what one of them does; the answer is the docstring's first sentence. The same interpreter writes the same bytes.
"""

import argparse
import hashlib
import inspect
import json
import platform
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from itertools import dropwhile, takewhile
from pathlib import Path
from pkgutil import iter_modules
from statistics import median, quantiles
from typing import Any

from rqa.data.records import Passage

EXCLUDED = {
    *("antigravity", "idlelib", "this", "turtledemo"),  # they open windows, or print
    *("tkinter", "turtle"),  # interpreters are built with and without them
    *("test", "tests", "encodings", "pydoc_data"),  # tests and generated tables
    *("distutils", "lib2to3"),  # replaced by setuptools where that is installed; reads and writes files
    *("posix", "posixpath", "genericpath", "ntpath"),  # read as os and os.path, where people know them
}
QUESTIONS = {
    "module": "What is the module `{title}` for?",
    "class": "What is the class `{name}` in the module `{place}`?",
    "exception": "What does the exception `{name}` in the module `{place}` mean?",
    "function": "What does the function `{name}` in the module `{place}` do?",
    "method": "What does the method `{name}` of the class `{place}` do?",
}
CALL = re.compile(r"[\w.]+ ?\(.*\)(\s*(->|=>|--+>?)[^,.]*)?")  # a docstring's line that shows how to call it
MAX_CHARACTERS = 1200  # of a passage: some 300 tokens, so that several fit into a prompt


def main() -> None:
    """Write the passages and the three splits, and tell their sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default="data/stdlib", help="default: %(default)s")
    output_dir = parser.parse_args().output_dir
    warnings.simplefilter("ignore")  # deprecated modules are documented all the same
    passages: dict[str, Any] = {}
    files: dict[str, list[Any]] = {"passages": [], "train": [], "eval": [], "test": []}
    for kind, title, thing in documented():
        text = passage_text(kind, thing)
        passage = {"page_content": text, "metadata": {"source": f"Python {platform.python_version()}", "title": title}}
        if passages.setdefault(Passage(text).id, passage) is not passage:
            continue  # the same object, or the same words, under a second name
        files["passages"].append(passage)
        answer = first_sentence(thing.__doc__)
        if answer and answer in " ".join(text.split()):  # the cut passage still holds it
            place, _, name = title.rpartition(".")
            question = QUESTIONS[kind].format(title=title, place=place, name=name)
            example = {"id": title, "question": question, "gold_answer": answer, "gold_docs": [passage]}
            files[split_of(title)].append({**example, "hard_neg_docs": [], "chat_history": []})
    output_dir.mkdir(parents=True, exist_ok=True)
    for file, rows in files.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (output_dir / f"{file}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{file:8} {len(rows):5}")
    lengths = [len(passage["page_content"]) for passage in files["passages"]]
    print(f"characters of a passage: median {median(lengths):.0f}, 90 % below {quantiles(lengths, n=10)[-1]:.0f}")


def public_modules(names: Iterable[str]) -> Iterator[str]:
    """Import what this interpreter has of the modules `names` and of those inside them, and yield their names."""
    for name in names:
        last = name.rpartition(".")[2]
        if last in EXCLUDED or last.startswith("_") or find_spec(name) is None:  # None: of another operating system
            continue
        with suppress(ImportError):  # built without a C library, or a part for another system
            inner = iter_modules(getattr(import_module(name), "__path__", []))
            yield name
            yield from public_modules(f"{name}.{module.name}" for module in inner)


def documented() -> Iterator[tuple[str, str, Any]]:
    """Yield (kind, dotted name, object) for all that documents itself, in the order of the names."""
    modules = [*public_modules(sorted(sys.stdlib_module_names)), "os.path"]
    for module in modules:
        holder = sys.modules[module]
        exported = getattr(holder, "__all__", ())
        if holder.__doc__:
            yield "module", module, holder
        for name in sorted(exported or vars(holder)):
            thing = getattr(holder, name, None)
            home = getattr(thing, "__module__", None) or ""
            # At home where people import it: json.JSONDecoder; _io.StringIO in io, posix.stat in os.
            private = home not in modules and (name in exported or home == f"_{module}")
            if home == module or home.startswith(f"{module}.") or private:
                yield from described(f"{module}.{name}", name, thing)


def described(title: str, qualname: str, thing: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield a public function, or a public class and what it defines itself; nothing if that is an alias."""
    if title.rpartition(".")[2].startswith("_") or getattr(thing, "__qualname__", None) != qualname:
        return
    if inspect.isclass(thing):
        if thing.__doc__:
            yield "exception" if issubclass(thing, BaseException) else "class", title, thing
        for name, value in sorted(vars(thing).items()):
            function = getattr(value, "__func__", value)  # of a static method or class method
            yield from described(f"{title}.{name}", f"{qualname}.{name}", function)
    elif inspect.isroutine(thing) and thing.__doc__:
        yield "method" if "." in qualname else "function", title, thing


def passage_text(kind: str, thing: Any) -> str:
    """Return how to call it and its docstring, cut at the last end of a paragraph, or else of a line, that fits."""
    text = inspect.cleandoc(thing.__doc__)
    if kind != "module" and not CALL.match(text.splitlines()[0]):
        text = f"{thing.__qualname__}{signature(thing)}\n{text}"
    if len(text) > MAX_CHARACTERS:
        text = text[:MAX_CHARACTERS]
        text = text.rpartition("\n\n")[0] or text.rpartition("\n")[0]
    return text


def signature(thing: Any) -> str:
    """Return the parameters in brackets, or nothing where C code does not tell them."""
    try:
        found = inspect.signature(thing)
    except (AttributeError, TypeError, ValueError):  # AttributeError: a default that is nowhere
        return ""
    parameters = [each.replace(default=shown(each.default)) for each in found.parameters.values()]
    return str(found.replace(parameters=parameters)).replace("Ellipsis", "...")


def shown(default: Any) -> Any:
    """Return a default that is the same in every run, else an ellipsis: one default is os.environ, secrets and all."""
    constants = (bool, int, float, str, bytes, type(None), type)  # a class, as is the mark for no default
    return default if type(default) in constants and default != sys.executable else ...


def first_sentence(docstring: str) -> str:
    """Return the first sentence on one line, or nothing where that is no answer: a fragment, code, under 4 words."""
    prose = dropwhile(lambda line: not line or CALL.fullmatch(line), inspect.cleandoc(docstring).splitlines())
    paragraph = " ".join(" ".join(takewhile(str.strip, prose)).split())
    sentence = re.match(r".+?(?<!e\.g)(?<!i\.e)[.!?](?= [A-Z`'\"(*]|\\?$)", paragraph)
    answer = sentence[0] if sentence else paragraph
    reads_well = re.match(r"[A-Z`'\"*]", answer) and not re.search(r"->|=>| = |: [-*]|:$", answer)
    return answer if reads_well and 4 <= len(answer.split()) <= 40 else ""


def split_of(title: str) -> str:
    """Return the split of a name, whatever else there is: 2 % test, 2 % eval, 96 % train."""
    percent = int(hashlib.sha256(title.encode()).hexdigest(), 16) % 100
    return "test" if percent < 2 else "eval" if percent < 4 else "train"


if __name__ == "__main__":
    main()
