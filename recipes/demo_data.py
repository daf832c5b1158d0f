"""Write a corpus and questions made from the documentation of Python's standard library.

    python recipes/demo_data.py --output_dir data/stdlib

The passages are the docstrings of the interpreter's public modules, classes, exceptions and functions. Each question is
about one of them; the answer is the docstring's first sentence. The same interpreter writes the same bytes.
"""

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

from rqa.atomic_files import write_text
from rqa.cli import Parser, run_main
from rqa.data import Passage
from rqa.terminal import write_result

EXCLUDED = {
    *("antigravity", "idlelib", "this", "turtledemo"),  # they open windows or print when imported
    *("tkinter", "turtle"),  # some interpreters are built without them
    *("test", "tests", "encodings", "pydoc_data"),  # tests and generated tables
    *("distutils", "lib2to3"),  # setuptools replaces them, if installed
    *("posix", "posixpath", "genericpath", "ntpath"),  # documented as os and os.path
}
QUESTIONS = {
    "module": "What is the module `{title}` for?",
    "class": "What is the class `{name}` in the module `{place}`?",
    "exception": "What does the exception `{name}` in the module `{place}` mean?",
    "function": "What does the function `{name}` in the module `{place}` do?",
}
CALL = re.compile(r"[\w.]+ ?\(.*\)(\s*(->|=>|--+>?)[^,.]*)?")  # a line of a docstring that shows a call
MAX_CHARACTERS = 400  # of a passage: about 100 tokens, so that several fit into a short prompt


def main() -> None:
    """Write the passages and the three splits, and print their sizes."""
    parser = Parser()
    parser.add_argument("--output_dir", type=Path, default="data/stdlib", help="default: %(default)s")
    output_dir = parser.parse_args().output_dir
    warnings.simplefilter("ignore")  # deprecated modules have docstrings too
    passages: dict[str, Any] = {}
    files: dict[str, list[Any]] = {"passages": [], "train": [], "eval": [], "test": []}
    for kind, title, thing in documented():
        text = passage_text(kind, thing)
        passage = {"page_content": text, "metadata": {"source": f"Python {platform.python_version()}", "title": title}}
        if passages.setdefault(Passage(text).id, passage) is not passage:
            continue  # the same object or text under a second name
        files["passages"].append(passage)
        answer = first_sentence(thing.__doc__)
        if answer and answer in " ".join(text.split()):  # the truncated passage contains it
            place, _, name = title.rpartition(".")
            question = QUESTIONS[kind].format(title=title, place=place, name=name)
            example = {"id": title, "question": question, "gold_answer": answer, "gold_docs": [passage]}
            files[split_of(title)].append({**example, "hard_neg_docs": [], "chat_history": []})
    for file, rows in files.items():
        write_text(output_dir / f"{file}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        write_result(f"{file:8} {len(rows):5}")
    lengths = [len(passage["page_content"]) for passage in files["passages"]]
    write_result(
        f"characters of a passage: median {median(lengths):.0f}, 90 % below {quantiles(lengths, n=10)[-1]:.0f}"
    )


def public_modules(names: Iterable[str]) -> Iterator[str]:
    """Import the modules `names` that this interpreter has, and the modules inside them, and yield their names."""
    for name in names:
        last = name.rpartition(".")[2]
        if last in EXCLUDED or last.startswith("_") or find_spec(name) is None:  # None: for another operating system
            continue
        with suppress(ImportError):  # a C library is missing, or for another system
            inner = iter_modules(getattr(import_module(name), "__path__", []))
            yield name
            yield from public_modules(f"{name}.{module.name}" for module in inner)


def documented() -> Iterator[tuple[str, str, Any]]:
    """Yield (kind, dotted name, object) of everything with a docstring, in the order of the names."""
    modules = [*public_modules(sorted(sys.stdlib_module_names)), "os.path"]
    for module in modules:
        holder = sys.modules[module]
        exported = getattr(holder, "__all__", ())
        if holder.__doc__:
            yield "module", module, holder
        for name in sorted(exported or vars(holder)):
            thing = getattr(holder, name, None)
            home = getattr(thing, "__module__", None) or ""
            # Under its public name: json.JSONDecoder; io.StringIO of _io; os.stat of posix.
            is_private = home not in modules and (name in exported or home == f"_{module}")
            is_own = home == module or home.startswith(f"{module}.") or is_private
            if is_own and (kind := kind_of(name, thing)):
                yield kind, f"{module}.{name}", thing


def kind_of(name: str, thing: Any) -> str:
    """Return the kind of a public class or function with a docstring; "" for all else, and if the name is an alias."""
    if name.startswith("_") or getattr(thing, "__qualname__", None) != name or not thing.__doc__:
        return ""
    if inspect.isclass(thing):
        return "exception" if issubclass(thing, BaseException) else "class"
    return "function" if inspect.isroutine(thing) else ""


def passage_text(kind: str, thing: Any) -> str:
    """Return signature and docstring, truncated after the last paragraph that fits, or else after the last line."""
    text = inspect.cleandoc(thing.__doc__)
    if kind != "module" and not CALL.match(text.splitlines()[0]):
        text = f"{thing.__qualname__}{signature(thing)}\n{text}"
    start = text[:MAX_CHARACTERS]
    return text if text == start else start.rpartition("\n\n")[0] or start.rpartition("\n")[0]


def signature(thing: Any) -> str:
    """Return the parameters in brackets, or "" if C code does not declare them."""
    try:
        parsed = inspect.signature(thing)
    except (AttributeError, TypeError, ValueError):  # AttributeError: a default that does not exist
        return ""
    parameters = [each.replace(default=shown(each.default)) for each in parsed.parameters.values()]
    return str(parsed.replace(parameters=parameters)).replace("Ellipsis", "...")


def shown(default: Any) -> Any:
    """Return a default that is the same in every run, else an ellipsis: one default is os.environ, with secrets."""
    constants = (bool, int, float, str, bytes, type(None), type)  # a class: also the mark of no default
    return default if type(default) in constants and default != sys.executable else ...


def first_sentence(docstring: str) -> str:
    """Return the first sentence on one line, or "" if it is no answer: a fragment, code, or under 4 words."""
    prose = dropwhile(lambda line: not line or CALL.fullmatch(line), inspect.cleandoc(docstring).splitlines())
    paragraph = " ".join(" ".join(takewhile(str.strip, prose)).split())
    sentence = re.match(r".+?(?<!e\.g)(?<!i\.e)[.!?](?= [A-Z`'\"(*]|\\?$)", paragraph)
    answer = sentence[0] if sentence else paragraph
    reads_well = re.match(r"[A-Z`'\"*]", answer) and not re.search(r"->|=>| = |: [-*]|:$", answer)
    return answer if reads_well and 4 <= len(answer.split()) <= 40 else ""


def split_of(title: str) -> str:
    """Return the split of a name, a function of the name alone: 2 % test, 2 % eval, 96 % train."""
    percent = int(hashlib.sha256(title.encode()).hexdigest(), 16) % 100
    return "test" if percent < 2 else "eval" if percent < 4 else "train"


if __name__ == "__main__":
    run_main(main)
