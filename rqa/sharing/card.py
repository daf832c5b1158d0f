"""The card of a trained model: README.md in its folder, with the front matter that the hub reads.

Names and flags in a card are texts of users. In Markdown they are code spans without control characters, so that they
stay text. The front matter has only names in the hub's form, and values that were checked. A card has no path of this
machine, no time and no memory: a resumed run writes the same bytes.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from rqa import __version__
from rqa.atomic_files import write_text
from rqa.distributed.hub import base_model, is_adapter
from rqa.errors import InputError
from rqa.evaluation.metrics import LABELS
from rqa.evaluation.results import ScoreRecord, read_object, read_record, write_record
from rqa.terminal import plural

CARD = "README.md"
RECORD = "card.json"  # in the folder of a run: the facts that its cards contain
EXPORTS = ("model", "merged")
SPLITS = {"train": "Training", "eval": "Validation", "test": "Test"}
METHODS = {
    "SFT": "a decoder, trained on the gold passages in one prompt",
    "SwR": "a decoder, trained on gold passages and those of a frozen retriever in one prompt",
    "FiD": "fusion-in-decoder: an encoder-decoder that encodes gold and retrieved passages one by one",
}
LICENSE_KEYS = ("license", "license_name", "license_link")
MAX_LICENSE = 200  # characters of a value


@dataclass(frozen=True, kw_only=True)
class CardRecord:
    """The content of card.json. A model is a hub name, or the last name of a folder if `..._is_local`."""

    method: str
    base_model: str
    base_is_local: bool
    retriever: str
    retriever_is_local: bool
    files: dict[str, str]  # by split: names without folders
    questions: dict[str, int | None]  # by split; None if it was not recorded
    flags: dict[str, Any]
    usage_flags: dict[str, Any]
    license: dict[str, str]
    versions: dict[str, str]


def config_of(folder: Path) -> dict[str, Any]:
    """Return the flags of a run that has exported its model. Raises InputError if there is no such run."""
    path = folder / "config.json"
    config = read_object(path) if path.is_file() and (folder / EXPORTS[0]).is_dir() else {}
    if not {"train_file", "model_name_or_path"} <= config.keys():
        raise InputError(f"{folder}: expected the folder of a training run, with config.json and model/, got another")
    return config


def record_run(
    folder: Path,
    splits: Sequence[Sized] | None,
    *,
    config: Mapping[str, Any],
    flags: Mapping[str, Any],
    usage_flags: Mapping[str, Any],
) -> None:
    """Write card.json of a run that has exported its model, and the cards of the model without scores.

    `splits` are the examples for training, validation and test. If they are None, the run ended before: numbers and
    versions are those of its evaluations. `config` is the content of config.json. `flags` shaped the training, and
    `usage_flags` the prompts.
    """
    exported = str(folder / "model")
    base = base_model(exported) if is_adapter(exported) else str(config["model_name_or_path"])
    base_name, base_is_local = public_name(base)
    retriever, retriever_is_local = public_name(str(config.get("embedding_model") or ""))
    files = {split: Path(str(config[f"{split}_file"])).name for split in SPLITS if config.get(f"{split}_file")}
    packages = ("accelerate", "torch", "transformers", *(["peft"] if is_adapter(exported) else []))
    installed = {"rqa": __version__} | {name: version(name) for name in packages}
    counts = dict(zip(SPLITS, map(len, splits), strict=True)) if splits else _counts_of_evaluations(folder)
    record = CardRecord(
        method="FiD" if "max_passage_length" in config else "SwR" if "passage_order" in config else "SFT",
        base_model=base_name,
        base_is_local=base_is_local,
        retriever=retriever,
        retriever_is_local=retriever_is_local,
        files=files,
        questions={split: counts.get(split) for split in files},
        flags=dict(sorted(flags.items())),
        usage_flags=dict(usage_flags),
        license=license_of(base),
        versions=installed if splits else _versions_of_test(folder),
    )
    write_record(folder / RECORD, record)
    _write(folder, record, None)


def write_cards(folder: Path) -> None:
    """Write the cards of an exported model again, with the scores of the test if there are any."""
    record, path = read_record(folder / RECORD, CardRecord), folder / "test/score.json"
    _write(folder, record, read_record(path, ScoreRecord) if "test" in record.files and path.is_file() else None)


def _write(folder: Path, record: CardRecord, score: ScoreRecord | None) -> None:
    for name in EXPORTS:
        if (folder / name).is_dir():
            write_text(folder / name / CARD, card(record, score, is_adapter=is_adapter(str(folder / name))))


def public_name(name_or_path: str) -> tuple[str, bool]:
    """Return a name that others may see, and True if it is that of a local folder."""
    try:
        validate_repo_id(name_or_path)
        is_local = Path(name_or_path).is_dir()
    except HFValidationError:
        is_local = bool(name_or_path)
    return (Path(name_or_path).resolve().name if is_local else name_or_path), is_local


def _counts_of_evaluations(folder: Path) -> dict[str, int]:
    """Return the number of questions of validation and test, as far as a run was evaluated."""
    paths = {split: sorted(folder.glob(f"{split}*/score.json")) for split in ("eval", "test")}
    return {split: read_record(found[-1], ScoreRecord).examples for split, found in paths.items() if found}


def _versions_of_test(folder: Path) -> dict[str, str]:
    path = folder / "test/score.json"
    return read_record(path, ScoreRecord).versions if path.is_file() else {}


def license_of(base: str) -> dict[str, str]:
    """Return the license in the base model's card, or in its config.json, on this machine; {} if there is none."""
    _, is_local = public_name(base)
    for name in (CARD, "config.json"):
        path = Path(base, name) if is_local else _cached(base, name)
        if path and path.is_file():
            values = _front_matter(path) if name == CARD else read_object(path)
            found = {key: values[key] for key in LICENSE_KEYS if _is_short_text(values.get(key))}
            if re.fullmatch(r"[a-z0-9.-]+", found.get("license", "")):  # the form of the hub's names
                return found
    return {}


def _cached(name: str, file: str) -> Path | None:
    path = try_to_load_from_cache(name, file)
    return Path(path) if isinstance(path, str) else None


def _is_short_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= MAX_LICENSE


def _front_matter(path: Path) -> dict[str, Any]:
    """Return the front matter of a card, {} if it has none that can be read."""
    match = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(?:\n|$)", path.read_text("utf-8", errors="replace"), re.DOTALL)
    try:
        values = yaml.safe_load(match[1]) if match else None
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: of a date that does not exist
        return {}
    return values if isinstance(values, dict) else {}


# The text


def card(record: CardRecord, score: ScoreRecord | None, *, is_adapter: bool) -> str:
    """Return the card of an adapter or of a plain model."""
    sections = (
        f"---\n{yaml.safe_dump(_metadata(record, is_adapter), sort_keys=False)}---",
        f"# A generator of answers from passages\n\n{_summary(record, is_adapter)}",
        f"## Training\n\n{_training(record)}",
        f"## Test\n\n{_test(record, score)}",
        f"## Use\n\n{_usage(record, is_adapter)}",
        f"## Limits\n\n{_limits(record)}",
    )
    return "\n\n".join(sections) + "\n"


def _metadata(record: CardRecord, is_adapter: bool) -> dict[str, Any]:
    base = {} if record.base_is_local else {"base_model": record.base_model}
    relation = {} if record.base_is_local else {"base_model_relation": "adapter" if is_adapter else "finetune"}
    return {
        **record.license,
        **base,
        **relation,
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text2text-generation" if record.method == "FiD" else "text-generation",
        "tags": ["rqa", "retrieval-augmented-generation", record.method.lower(), *(["lora"] if is_adapter else [])],
    }


def _summary(record: CardRecord, is_adapter: bool) -> str:
    kind = "A low-rank adapter" if is_adapter else "A model"
    local = ", a local folder of the author" if record.base_is_local else ""
    lines = [
        f"{kind} that answers questions from retrieved passages, trained with rqa.",
        f"Base model: {code(record.base_model)}{local}.",
    ]
    if not record.license:
        lines.append("License: that of the base model, which was not found on the machine of the author.")
    return "\n".join(lines)


def _training(record: CardRecord) -> str:
    lines = [f"- Method: {record.method}, {METHODS[record.method]}"]
    if record.retriever:
        local = ", a local folder of the author" if record.retriever_is_local else ""
        lines.append(f"- Retriever, frozen: {code(record.retriever)}{local}")
    for split, file in record.files.items():
        count = record.questions[split]
        number = "number of questions not recorded" if count is None else plural(count, "question")
        lines.append(f"- {SPLITS[split]} file: {code(file)}, {number}")
    lines.append("- Flags that differ from the defaults of the library:" if record.flags else "- Flags: the defaults")
    lines += [f"  - {code(f'--{name} {_flag_text(value)}')}" for name, value in record.flags.items()]
    versions = ", ".join(f"{name} {code(number)}" for name, number in record.versions.items())
    return "\n".join([*lines, f"- Versions: {versions or 'not recorded'}"])


def _test(record: CardRecord, score: ScoreRecord | None) -> str:
    if score is None:
        return "No test file was set." if "test" not in record.files else "The test has not run."
    percent = f"{100 * score.level:g} %"
    rows = [f"| score | value | {percent} interval |", "|---|---|---|"]
    for name, label in {**LABELS, **(score.labels or {})}.items():
        if name in score.metrics:
            text = LABELS[name].strip() if name in LABELS else code(label)
            ends = [f"{end:.{3 if name == 'loss' else 1}f}" for end in score.intervals.get(name, ())]
            rows.append(f"| {text} | {score.metrics[name]:.{3 if name == 'loss' else 1}f} | {' to '.join(ends)} |")
    notes = replace(score, runtime={}).notes  # without the count of one attempt
    method = f"{percent} intervals: percentile bootstrap over {plural(score.examples, 'question')}."
    return "\n".join([*rows, "", " ".join([method, *(f"{note}." for note in notes)])])


def _usage(record: CardRecord, is_adapter: bool) -> str:
    """Return the command that asks a question, or without a retriever the one that evaluates on a file."""
    flags: dict[str, Any] = {"model_name_or_path": "path/to/model"}
    if record.retriever:
        flags["embedding_model"] = "path/to/retriever" if record.retriever_is_local else record.retriever
        flags |= {"full_dataset_file_path": "path/to/corpus.jsonl", "full_dataset_index_path": "path/to/index"}
    else:
        flags |= {"test_file": "path/to/questions.jsonl", "output_dir": "path/to/evaluation"}
    flags |= {name: value for name, value in record.usage_flags.items() if is_adapter or name != "load_in_4bit"}
    words = [f"--{name} {_shell_word(_flag_text(value))}" for name, value in flags.items()]
    command = " \\\n    ".join([f"python recipes/{'ask' if record.retriever else 'evaluate'}.py", *words])
    intro = "`path/to/model` is the folder of this file. The flags make the prompts of the training:"
    local = is_adapter and record.base_is_local
    note = (
        f"\n\nThe base model {code(record.base_model)} must be at the path in `adapter_config.json`." if local else ""
    )
    return f"{intro}\n\n```bash\n{command}\n```{note}"


def _limits(record: CardRecord) -> str:
    place = "in texts of their own, one for each passage" if record.method == "FiD" else "in the prompt"
    lines = [
        f"- It was trained to answer from passages. Without retrieved passages {place}, its answers are not tested.",
        "- An answer is no better than its passages, and may be wrong with the right ones.",
        "- Other prompts, other retrievers and texts of other domains than the training's are not tested.",
    ]
    return "\n".join(lines)


def _flag_text(value: Any) -> str:
    """Return the value of a flag as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _shell_word(text: str) -> str:
    """Return a text as one word of bash, in one line, without characters that are not visible."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + _escaped(text.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def code(text: str) -> str:
    """Return a text as a Markdown code span, also inside a table, without characters that are not visible."""
    shown = _escaped(text, "|") or " "
    ticks = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    is_padded = shown.strip() and ("`" in shown or shown != shown.strip())  # a reader removes one space at each end
    space = " " if is_padded else ""
    return f"{ticks}{space}{shown}{space}{ticks}"


def _escaped(text: str, others: str = "") -> str:
    """Return a text with escapes in place of characters that are not visible, and of `others`."""
    return "".join(char if char.isprintable() and char not in others else _escape(char) for char in text)


def _escape(char: str) -> str:
    return "\\n" if char == "\n" else f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
