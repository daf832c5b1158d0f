"""recipes/demo_facts.py: questions that can be answered by reading, and by nothing else."""

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


def asked(example):
    """(person, what is asked of them)"""
    return QUESTION.fullmatch(example.question).groups()


def told(passage):
    """(person, relation as the question names it, value)"""
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


def test_a_seed_makes_the_same_bytes_and_another_seed_other_ones(demo, folder, tmp_path):
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


def test_the_numbers_of_questions_and_passages_are_as_told(demo, examples):
    for split, (count, fewest, most) in {**demo.SPLITS, "train": (3000, *demo.SPLITS["train"][1:])}.items():
        assert len(examples[split]) == count
        assert {len(example.contexts) for example in examples[split]} == {*range(fewest, most + 1)}  # distinct


def test_splits_have_neither_a_person_nor_a_fact_in_common_and_all_names(demo, examples):
    people = {name: {told(p)[0] for e in examples[name] for p in e.contexts} for name in SPLITS}
    passages = {name: {p.id for e in examples[name] for p in e.contexts} for name in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert people[one].isdisjoint(people[other])
        assert passages[one].isdisjoint(passages[other])
    names = {name for person in people["train"] for name in person.split()}
    assert names == {*demo.FIRST_NAMES, *demo.LAST_NAMES}
    assert len(names) == len(demo.FIRST_NAMES) + len(demo.LAST_NAMES)
    assert all({name for person in people[split] for name in person.split()} == names for split in SPLITS)


def test_exactly_one_passage_answers_and_it_is_the_gold_one(examples):
    for example in (example for split in SPLITS for example in examples[split]):
        facts = [told(passage) for passage in example.contexts]
        answering = [i for i, fact in enumerate(facts) if fact[:2] == asked(example)]
        assert answering == [0]
        assert example.gold_passages == example.contexts[:1]
        assert example.answers == (facts[0][2],)
        assert [value for *_, value in facts].count(facts[0][2]) == 1


def test_withheld_is_the_test_without_the_answers(examples):
    for given, withheld in zip(examples["test"], examples["withheld"], strict=True):
        assert (withheld.id, withheld.question, withheld.answers) == (given.id, given.question, given.answers)
        assert withheld.gold_passages == given.gold_passages
        assert withheld.contexts == given.contexts[1:]
        assert given.answers[0] not in {told(passage)[2] for passage in withheld.contexts}


def test_neither_the_name_nor_the_relation_alone_tells_the_passage(examples):
    """First name, last name, both with another relation: the answer of who reads no more than that is ambiguous."""
    for example in examples["test"]:
        (first, last), relation = asked(example)[0].split(), asked(example)[1]
        others = [(*person.split(), verb) for person, verb, _ in map(told, example.contexts[1:])]
        assert sum(other[:2] == (first, last) for other in others) == 5
        assert any(other[0] == first and other[1] != last and other[2] == relation for other in others)
        assert any(other[0] != first and other[2] == relation for other in others)


def test_nothing_can_be_known_by_heart(examples):
    answers = defaultdict(list)
    for example in examples["train"]:
        answers[example.question].extend(example.answers)
    repeated = [found for found in answers.values() if len(found) > 1]
    assert len(repeated) > 300
    assert sum(len({*found}) == len(found) for found in repeated) > 0.9 * len(repeated)


def test_the_tokenizer_knows_every_word_and_writes_every_text_back(examples, tokenizer):
    texts = {"question: context: title:"}
    for example in (example for found in examples.values() for example in found):
        texts.update((example.question, *example.answers, *(passage.text for passage in example.contexts)))
    for text, ids in zip(texts, tokenizer([*texts])["input_ids"], strict=True):
        assert tokenizer.unk_token_id not in ids
        assert ids.index(tokenizer.eos_token_id) == len(ids) - 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_model_reads_them(folder, examples, tokenizer):
    collator = ParallelCollator(PassagePromptBuilder(tokenizer), max_answer_length=8)
    collator.check(examples["train"], answers=True)
    batch = collator([GeneratorInput.from_ranked(example, example.contexts) for example in examples["eval"][:4]])
    model = FusionInDecoder.from_pretrained(str(folder / "model"))
    nll = model(**batch) / (batch["labels"] != -100).sum(1)  # (4,)
    assert len(tokenizer) == model.config.vocab_size
    assert torch.isfinite(nll).all()
    assert tokenizer.decode(batch["labels"][0]) == f"{examples['eval'][0].answers[0]}</s>"
