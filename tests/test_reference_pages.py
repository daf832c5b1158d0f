"""The reference pages equal the code: flags and defaults of the parsers, public names; quoted messages occur in it."""

import ast
import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_seq2seq import save_seq2seq
from world import ROOT

import rqa.cli
from rqa.data import load_examples
from rqa.errors import InputError
from rqa.models import FusionInDecoder

sys.path[:0] = [str(ROOT / "docs")]

import reference_pages  # noqa: E402

RECIPES = sorted((ROOT / "recipes").glob("*.py"))
PACKAGES = sorted((ROOT / "rqa").glob("*/__init__.pyi"))
OF_OTHER_PROGRAMS = {"--no-build-isolation", "--quiet"}
OF_THE_PARSER = {"--help", "--config"}


class ParserReadyError(Exception):
    """Ends a recipe before its parser reads the command line."""


def parser_of(path, monkeypatch):
    """Return the argparse parser of a recipe."""

    def take(parser, *_):
        raise ParserReadyError(parser)

    monkeypatch.setattr(rqa.cli.Parser, "parse_args", take)
    spec = importlib.util.spec_from_file_location(f"parsed_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    with pytest.raises(ParserReadyError) as ready:
        module.main()
    return ready.value.args[0]


def flags_of_parser(parser):
    """Return names, default and help of each flag, by its first name; as `--help` shows them."""
    flags = {}
    for action in parser._actions:
        names = action.option_strings or [action.dest]
        if names[0].startswith("--no_") or OF_THE_PARSER & {*names}:
            continue
        help, _, default = (action.help % vars(action)).partition(" (default: ")
        if not default:
            default = "" if action.default in (None, "==SUPPRESS==") else f"{action.default})"
        flags[names[0]] = (names, number(default.removesuffix(")")), help)
    return flags


def number(text):
    """Return a number in one form: a recipe may set 2 for 2.0."""
    return text.removesuffix(".0")


@pytest.fixture(scope="module")
def page():
    return reference_pages.flags_page()


def unescaped(cell):
    return re.sub(r"`(--\w+)`", r"\1", cell).replace("\\|", "|").replace("&lt;", "<").replace("\\[", "[")


def default_in(cell):
    text = number(cell.strip().strip("`"))
    return text[1:-1] if text[:1] == text[-1:] == '"' else text


def rows_of(section):
    """Yield the names, the default and the help of each row of the tables of a section."""
    for line in section.splitlines():
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        if len(cells) == 4 and cells[0].strip() not in ("flag", "---"):
            yield re.findall(r"`(.*?)`", cells[0]), default_in(cells[2]), unescaped(cells[3].strip())


def flags_on(page, recipe):
    """Return the flags of a recipe on the page, with the defaults of its own."""
    section = re.search(rf"(?ms)^### {recipe}\.py .*?(?=^##)", page)[0]
    linked = [
        re.search(rf"(?ms)^### [^\n]*#{anchor} }}.*?(?=^###|\Z)", page)[0]
        for anchor in re.findall(r"\(#(.*?)\)", section)
    ]
    flags = {names[0]: (names, default, help) for part in [*linked, section] for names, default, help in rows_of(part)}
    for name, cell in re.findall(r"(?m)^\| `(--\w+)` \| ([^|]*) \|$", section):
        flags[name] = (flags[name][0], default_in(cell), flags[name][2])
    return flags


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_page_of_flags_equals_the_parser(recipe, page, monkeypatch):
    expected = flags_of_parser(parser_of(recipe, monkeypatch))
    assert flags_on(page, recipe.stem) == expected


def test_a_group_of_several_recipes_has_one_table(page):
    assert page.count("| `--learning_rate` | number | `5e-06` |") == 1
    titles = re.findall(r"(?m)^### (.*)$", page)
    assert len(titles) == len({*titles})


def defined(module, name):
    """Return the node that defines a name, and the file."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if name in (getattr(node, "name", None), *(getattr(target, "id", None) for target in targets)):
            return node, path
    raise AssertionError(f"{module}: no {name}")


@pytest.mark.parametrize("face", PACKAGES, ids=lambda path: path.parent.name)
def test_every_public_name_is_on_the_page_with_a_docstring(face):
    api = reference_pages.api_page()
    package = f"rqa.{face.parent.name}"
    origins = reference_pages.origins(face.parent)
    assert {*origins} == {*importlib.import_module(package).__all__}
    section = re.search(rf"(?ms)^## {package} .*?(?=^## |\Z)", api)[0]
    assert re.findall(r"(?m)^::: (\S+)$", section) == [f"{module}.{name}" for name, module in origins.items()]
    for name, module in origins.items():
        node, path = defined(module, name)
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            assert ast.get_docstring(node), name
        else:
            assert reference_pages.comment_of(str(path), node.lineno, node.end_lineno), name


def test_the_site_has_every_public_name(tmp_path):
    """MkDocs writes both pages, with each name, its signature and its text."""
    pytest.importorskip("mkdocstrings_handlers.python")  # of the extra docs
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# Index\n")
    options = {
        "extensions": [str(ROOT / "docs/comment_docstrings.py")],
        "allow_inspection": False,
        "show_root_heading": True,
    }
    settings = {
        "site_name": "rqa",
        "theme": "mkdocs",
        "use_directory_urls": False,
        "strict": True,
        "hooks": [str(ROOT / "docs/reference_pages.py")],
        "markdown_extensions": ["attr_list", "tables"],
        "plugins": [{"mkdocstrings": {"handlers": {"python": {"paths": [str(ROOT)], "options": options}}}}],
    }
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(settings))
    build(load_config(str(tmp_path / "mkdocs.yml")))
    html = (tmp_path / "site/reference/api.html").read_text(encoding="utf-8")
    for face in PACKAGES:
        for name, module in reference_pages.origins(face.parent).items():
            assert f'id="{module}.{name}"' in html, name
    assert "<p>Cut-offs of the retrieval scores.</p>" in html  # a comment
    assert 'id="swr_starling"' in (tmp_path / "site/reference/flags.html").read_text(encoding="utf-8")


def literals():
    """Return the parts of all texts in the code between the values that are filled in."""
    found = set()
    for path in (*ROOT.glob("rqa/**/*.py"), *RECIPES):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.update(re.split(r"%[-.\d]*[a-z]", node.value))
    return found


def test_the_quoted_messages_occur_in_the_code():
    """A message is split at its placeholders, and where the form of messages joins two texts."""
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    quoted = [" ".join(block.split()) for block in re.findall(r"(?ms)^```text\n(.*?)^```", text)]
    code = literals()
    assert len(quoted) > 50
    for message in quoted:
        parts = re.split(r"<[a-z]+>|[.:;] |, (?:got|then)\b|\bexpected\b", message)
        words = [part.strip(' .,:"(`') for part in parts]
        assert max(map(len, words)) > 8, message
        missing = [part for part in words if part and not any(part in literal for literal in code)]
        assert not missing, message


def flags_in(text):
    return {*re.findall(r"(?<![\w-])--[a-z][\w-]*", text)} - OF_OTHER_PROGRAMS


@pytest.mark.parametrize("name", ["methods", "troubleshooting", "migration"])
def test_the_flags_on_a_page_exist(name, monkeypatch):
    text = (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")
    if name == "migration":  # the flags of other projects are in the first column
        text = "\n".join(line.split("|", 2)[-1] if line.startswith("|") else line for line in text.splitlines())
        text = re.sub("FiD counts micro-batches.*", "", text)
    known = OF_THE_PARSER | {
        name for path in RECIPES for flag in flags_of_parser(parser_of(path, monkeypatch)).values() for name in flag[0]
    }
    assert flags_in(text) - known == set()


def test_the_command_for_files_of_fid_has_flags_of_its_recipe(monkeypatch):
    text = (ROOT / "docs/migration.md").read_text(encoding="utf-8")
    [command] = re.findall(r"(?ms)^```bash\n(accelerate launch .*?)^```", text)
    recipe = Path(re.search(r"recipes/\w+\.py", command)[0])
    known = {name for names, *_ in flags_of_parser(parser_of(ROOT / recipe, monkeypatch)).values() for name in names}
    assert flags_in(command) <= known


def code_of_migration():
    return re.findall(r"(?ms)^```python\n(.*?)^```", (ROOT / "docs/migration.md").read_text(encoding="utf-8"))


def test_the_code_for_questions_of_localrqa_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gold = {"page_content": "The lamps were lit by hand.", "fmt_content": "Content:", "metadata": {}}
    row = {"questions": ["Who lit them?", "How?"], "gold_docs": [gold], "hard_neg_docs": [], "chat_history": []}
    Path("test_w_q.jsonl").write_text(json.dumps(row) + "\n")
    exec(code_of_migration()[0], {})
    examples = load_examples("test_questions.jsonl")
    assert [(example.question, example.answers) for example in examples] == [("Who lit them?", ()), ("How?", ())]
    assert [passage.text for example in examples for passage in example.gold_passages] == [gold["page_content"]] * 2


def test_the_code_for_weights_of_fid_restores_their_names(tmp_path, monkeypatch):
    """The names of FiDT5: its encoder is wrapped, and so is each block of the encoder."""
    monkeypatch.chdir(tmp_path)
    save_seq2seq(tmp_path / "fid")
    plain = load_file("fid/model.safetensors")
    names = {name: re.sub(r"^encoder\.(block\.\d+)?", _wrapped, name) for name in plain}
    assert "encoder.encoder.block.0.module.layer.0.SelfAttention.q.weight" in names.values()
    save_file({names[name]: tensor for name, tensor in plain.items()}, "fid/model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="expected every weight of T5ForConditionalGeneration, the checkpoint lacks"):
        FusionInDecoder.from_pretrained("fid")
    exec(code_of_migration()[1], {})
    assert load_file("fid/model.safetensors").keys() == plain.keys()
    loaded = FusionInDecoder.from_pretrained("fid").model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in plain.items())


def _wrapped(found):
    return "encoder.encoder." + (f"{found[1]}.module" if found[1] else "")
