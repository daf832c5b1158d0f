"""Tests of recipes/demo_facts.py: only the passages of a question answer it."""

import importlib.util
import re
import subprocess
import sys
from collections import defaultdict
from itertools import combinations, islice
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import load_examples
from rqa.models.fid import FusionInDecoder
from rqa.prompts.collators import ParallelCollator
from rqa.prompts.fid_prompt import PassagePromptBuilder

RECIPE = Path(__file__).parents[2] / "recipes" / "demo_facts.py"
SPLITS = ("train", "eval", "test")
QUESTION = re.compile(r"(?:Where|What) does (\w+ \w+) (\w+)\?")
STATEMENT = re.compile(r"(\w+ \w+) (\w+) (?:in|many) (\w+)\.")


def relation_of(example):
    """Return (person, relation) of a question."""
    return QUESTION.fullmatch(example.question).groups()


def fact_of(passage):
    """Return (person, relation as in the question, value) of a passage."""
    person, verb, value = STATEMENT.fullmatch(passage.text).groups()
    return person, {"studies": "study"}.get(verb, verb.removesuffix("s")), value


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo_facts", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "new" / "facts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(demo.SPLITS, "train", (3000, *demo.SPLITS["train"][1:]))
        patch.setattr(sys, "argv", ["demo_facts.py", "--output_dir", str(folder)])
        demo.main()
    return folder


@pytest.fixture(scope="module")
def examples(folder):
    return {name: load_examples(folder / f"{name}.jsonl") for name in (*SPLITS, "withheld")}


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder / "model")


def test_output_is_a_function_of_the_seed(demo, folder, tmp_path):
    program = f"import sys; sys.path.insert(0, {str(RECIPE.parent)!r}); import demo_facts, json, itertools\n" + (
        "for split in demo_facts.SPLITS:\n    for row in itertools.islice(demo_facts.questions(split, 0), 100):\n"
        "        print(json.dumps(row))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    ).stdout
    first = [islice((folder / f"{split}.jsonl").open(), 100) for split in SPLITS]
    assert printed == "".join(line for lines in first for line in lines)
    assert next(demo.questions("test", 0)) != next(demo.questions("test", 1))

    made = {seed: tmp_path / f"model-{seed}" for seed in (0, 1)}
    for seed, model in made.items():
        demo.save_model(model, seed)
    same = {path.name: path.read_bytes() == (folder / "model" / path.name).read_bytes() for path in made[0].iterdir()}
    assert all(same.values()), same
    weights = [(model / "model.safetensors").read_bytes() for model in made.values()]
    assert weights[0] != weights[1]


def test_numbers_of_questions_and_passages(demo, examples):
    for split, (count, fewest, most) in {**demo.SPLITS, "train": (3000, *demo.SPLITS["train"][1:])}.items():
        assert len(examples[split]) == count
        assert {len(example.contexts) for example in examples[split]} == {*range(fewest, most + 1)}  # distinct


def test_splits_share_all_names_but_no_person_and_no_fact(demo, examples):
    people = {name: {fact_of(p)[0] for e in examples[name] for p in e.contexts} for name in SPLITS}
    passages = {name: {p.id for e in examples[name] for p in e.contexts} for name in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert people[one].isdisjoint(people[other])
        assert passages[one].isdisjoint(passages[other])
    names = {name for person in people["train"] for name in person.split()}
    assert names == {*demo.FIRST_NAMES, *demo.LAST_NAMES}
    assert len(names) == len(demo.FIRST_NAMES) + len(demo.LAST_NAMES)
    assert all({name for person in people[split] for name in person.split()} == names for split in SPLITS)


def test_gold_passage_alone_has_the_answer(examples):
    for example in (example for split in SPLITS for example in examples[split]):
        facts = [fact_of(passage) for passage in example.contexts]
        answering = [i for i, fact in enumerate(facts) if fact[:2] == relation_of(example)]
        assert answering == [0]
        assert example.gold_passages == example.contexts[:1]
        assert example.answers == (facts[0][2],)
        assert [value for *_, value in facts].count(facts[0][2]) == 1


def test_withheld_is_the_test_split_without_gold_passages(examples):
    for example, withheld in zip(examples["test"], examples["withheld"], strict=True):
        assert (withheld.id, withheld.question, withheld.answers) == (example.id, example.question, example.answers)
        assert withheld.gold_passages == example.gold_passages
        assert withheld.contexts == example.contexts[1:]
        assert example.answers[0] not in {fact_of(passage)[2] for passage in withheld.contexts}


def test_name_or_relation_alone_is_ambiguous(examples):
    """Other passages have the first name, the last name, or both with another relation."""
    for example in examples["test"]:
        (first, last), relation = relation_of(example)[0].split(), relation_of(example)[1]
        others = [(*person.split(), verb) for person, verb, _ in map(fact_of, example.contexts[1:])]
        assert sum(other[:2] == (first, last) for other in others) == 5
        assert any(other[0] == first and other[1] != last and other[2] == relation for other in others)
        assert any(other[0] != first and other[2] == relation for other in others)


def test_answers_cannot_be_memorized(examples):
    answers = defaultdict(list)
    for example in examples["train"]:
        answers[example.question].extend(example.answers)
    repeated = [values for values in answers.values() if len(values) > 1]
    assert len(repeated) > 300
    assert sum(len({*values}) == len(values) for values in repeated) > 0.9 * len(repeated)


def test_tokenizer_has_every_word_and_decodes_every_text(examples, tokenizer):
    texts = {"question: context: title:"}
    for example in (example for split in examples.values() for example in split):
        texts.update((example.question, *example.answers, *(passage.text for passage in example.contexts)))
    for text, ids in zip(texts, tokenizer([*texts])["input_ids"], strict=True):
        assert tokenizer.unk_token_id not in ids
        assert ids.index(tokenizer.eos_token_id) == len(ids) - 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_model_computes_a_loss(folder, examples, tokenizer):
    collator = ParallelCollator(PassagePromptBuilder(tokenizer), max_answer_length=8)
    collator.check(examples["train"], answers=True)
    batch = collator([GeneratorInput.from_ranked(example, example.contexts) for example in examples["eval"][:4]])
    model = FusionInDecoder.from_pretrained(str(folder / "model"))
    nll = model(**batch) / (batch["labels"] != -100).sum(1)  # (4,)
    assert len(tokenizer) == model.config.vocab_size
    assert torch.isfinite(nll).all()
    assert tokenizer.decode(batch["labels"][0]) == f"{examples['eval'][0].answers[0]}</s>"
