"""rqa.doctor.checks and its recipe: what is planted is found, at its line; and what recipes refuse, cut and read."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models
import tiny_tokenizers
from tiny_seq2seq import closing_tokenizer, save_seq2seq
from world import ROOT, files, write_jsonl

from rqa.cli import parser as flags
from rqa.data.corpus import open_passages
from rqa.data.jsonl import DataError
from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Passage, Turn, load_examples, load_splits
from rqa.doctor.checks import (
    KINDS,
    corpus_findings,
    cut_finding,
    leak_findings,
    length_findings,
    record_findings,
    source_of,
    split_findings,
    support,
    unsupported_numbers,
    words,
)
from rqa.errors import InputError
from rqa.evaluation.metrics import answer_length, answer_scores
from rqa.prompts.collators import ConcatenatedCollator, ParallelCollator
from rqa.prompts.decoder_prompt import PromptBuilder
from rqa.prompts.fid_prompt import PassagePromptBuilder

TEXTS = ["Two cats, a dog.", "Кошка и собака", "猫と犬。", "แมว ok 12", "x-ray 3.5", "  ", "naïve l'été", "ミルク2本"]


def doc(text, title="", source=""):
    return {"page_content": text, "metadata": {"title": title, "source": source}}


def lamp(i):
    return doc(f"The lamp number {i} of the harbour was lit in {1800 + i}.", f"Lamp {i}", f"{i}.html")


def row(i, **fields):
    """An example with nothing wrong."""
    return {
        "question": f"When was lamp {i} lit?",
        "gold_answer": f"It was lit in {1800 + i}.",
        "gold_docs": [lamp(i)],
    } | fields


def found(findings):
    """What is not in vain: the lines of each finding, or its places where these are no lines."""
    lines = {}
    for finding in findings:
        if finding.count:
            lines[finding.name, finding.split] = [
                int(place.split(" ")[0].rpartition(":")[2]) if ".jsonl:" in place else place for place in finding.places
            ]
    return lines


def splits_of(folder, train, evals=(), tests=()):
    paths = [
        write_jsonl(folder / f"{name}.jsonl", rows) for name, rows in (("a", train), ("b", evals), ("c", tests)) if rows
    ]
    loaded = load_splits(*paths, *[""] * (3 - len(paths)))
    return dict(zip(("train", "eval", "test"), loaded, strict=True))


# Texts


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_those_of_the_metrics(text):
    assert len(words(text)) == answer_length(text)


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("The harbour LAMP.", 1),
        ("The harbour lamps.", 1 / 2),  # lamps, harbour; the is too short to tell
        ("18079, by the harbour or elsewhere", 1 / 2),  # numbers are for the next check
        ("Yes, so it is.", 1),
        ("1. harbour\n2. lamp", 1),  # the numbers of a list
        ("灯塔", 1 / 2),
    ],
)
def test_support_is_the_share_of_the_words_that_tell(answer, share):
    assert support(answer, ["A harbour's lamp", "of 1807. 灯"]) == pytest.approx(share)


@pytest.mark.parametrize(
    ("answer", "numbers"),
    [
        ("In 1807 and 1808.", ["1808"]),
        ("1,200 or 1200 or 12", ["12"]),
        ("1. Take 3\n2. Return to step 2.\n3) 4 more", ["4"]),
        ("EC2 and v9", []),  # part of a name
        ("versions 3,1807", []),
        ("0.75 %", ["0.75"]),
        ("1.25", []),
    ],
)
def test_numbers_are_unsupported_where_no_text_has_them(answer, numbers):
    assert unsupported_numbers(answer, ["1,200 since 1807 (v3)", "1.25"]) == numbers


@pytest.mark.parametrize("answer", ["The.", "a", "…", "An", "the the", "Theme", "0", "7 a", "水", "A b"])
def test_an_answer_is_empty_where_the_metrics_have_nothing_to_compare(answer):
    [example] = [Example("1", "Who?", (answer,), where="x.jsonl:1")]
    is_empty = ("empty_answer", "train") in found(split_findings("train", [example]))
    assert is_empty == (answer_scores("", [answer])["em"] == 100)


# Records

LONG = "It was lit in 1805 " + "and the harbour was lit by its lamp number 5 of the harbour " * 2
PLANTED = [
    row(1),
    row(2, gold_docs=[lamp(2), lamp(2)]),  # 2: duplicate_gold
    row(2, question="when was LAMP 2 lit"),  # 3: duplicate_question
    row(2, gold_answer="In 1899, by the harbour lamp."),  # 4: conflicting_answers, unsupported_number
    row(2, chat_history=[{"speaker": "user", "message": "Hi."}]),  # another question, with its history
    row(5, gold_answer="When was lamp 5 lit?"),  # 6: answer_is_question
    row(6, gold_answer="The."),  # 7: empty_answer
    row(5, question="How?", gold_answer=LONG),  # 8: unfinished_answer
    row(8, gold_answer="Nobody could possibly know."),  # 9: unsupported_answer
    row(9, gold_docs=[], gold_answer="By the harbour, in 1777."),  # 10: no_gold
    {"question": "Why?", "gold_answer": "Why?", "gold_docs": [], "unanswerable": True},  # 11: unanswerable
    row(5, question="Which?", gold_answer=LONG + "of the harbour."),
    row(5, question="What?", gold_answer=f"{LONG}:\n- the harbour"),  # an item of a list
    row(5, question="Who?", gold_answer=f"{LONG}:\n- the harbour,"),  # 14: unfinished_answer
    row(12, gold_answer=["It was lit in 1812.", "Whatever it may be, 77."]),
    row(13, gold_answer=["Whatever it may be, 77.", "It was lit in 1813."]),  # 16: the first is trained on
    row(
        1,
        question="When did it go out?",
        gold_answer="In 1920.",
        chat_history=[{"speaker": "user", "message": "1920?"}],
    ),
]
EXPECTED = {
    "duplicate_gold": [2],
    "duplicate_question": [3],
    "conflicting_answers": [4],
    "unsupported_number": [4, 16],
    "answer_is_question": [6],
    "empty_answer": [7],
    "unfinished_answer": [8, 14],
    "unsupported_answer": [9, 16],
    "no_gold": [10],
    "unanswerable": [11],
}


def test_what_is_planted_in_records_is_found_at_its_line(tmp_path):
    examples = load_examples(write_jsonl(tmp_path / "x.jsonl", PLANTED))
    findings = split_findings("train", examples)
    assert found(findings) == {(name, "train"): lines for name, lines in EXPECTED.items()}
    assert {finding.of for finding in findings} == {len(PLANTED)}
    assert {finding.name for finding in findings} == EXPECTED.keys()  # no more are looked for


def test_of_references_one_that_is_supported_is_enough(tmp_path):
    examples = load_examples(write_jsonl(tmp_path / "x.jsonl", PLANTED))
    lines = {name: [line for line in lines if line != 16] for name, lines in EXPECTED.items()}
    assert found(split_findings("test", examples)) == {(name, "test"): of for name, of in lines.items()}


def test_the_place_says_what_there_is_to_see(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", PLANTED)
    places = {finding.name: finding.places for finding in split_findings("train", load_examples(path))}
    assert places["unsupported_number"][0] == f"{path}:4 (1899)"
    assert places["conflicting_answers"] == (f"{path}:4 (as {path}:2)",)
    assert places["unsupported_answer"][0] == f"{path}:9 (0 %)"


def test_answers_conflict_where_none_is_the_same(tmp_path):
    rows = [row(1, gold_answer=["One lamp.", "Two lamps."]), row(1, gold_answer=["two lamps", "Three lamps."])]
    rows += [
        row(1, gold_answer="Three lamps."),
        {"question": rows[0]["question"], "gold_docs": [], "unanswerable": True},
    ]
    repeated = found(split_findings("test", load_examples(write_jsonl(tmp_path / "x.jsonl", rows))))
    assert (repeated["duplicate_question", "test"], repeated["conflicting_answers", "test"]) == ([2], [3, 4])


def test_a_question_that_brings_other_ctxs_is_another_question(tmp_path):
    ctxs = [[{"text": text}] for text in ("One.", "Two.", "One.")]
    rows = [{"question": "Which?", "answers": [answer], "ctxs": of} for answer, of in zip("121", ctxs, strict=True)]
    examples = load_examples(write_jsonl(tmp_path / "x.jsonl", rows))
    repeated = {
        name: lines for (name, _), lines in found(split_findings("train", examples)).items() if name != "no_gold"
    }
    assert repeated == {"duplicate_question": [3]}


# Between files


def spoken(example):
    return [turn.text.casefold() for turn in (*example.chat_history, Turn("user", example.question))]


def test_questions_that_two_files_ask_are_found(tmp_path):
    def asked(i, **fields):
        return row(i, **{"question": f"Lamp {i}: when?"} | fields)

    history = [{"speaker": "user", "message": "Hi."}]
    train = [asked(i) for i in range(9)] + [asked(20, chat_history=history), asked(4)]
    evals = [asked(30), asked(4, question="LAMP 4, when"), asked(20)]
    tests = [asked(20, chat_history=history), asked(8), asked(30), asked(31)]
    splits = splits_of(tmp_path, train, evals, tests)
    leaks = {key: lines for key, lines in found(leak_findings(splits)).items() if key[0] != "gold_in_train"}
    assert leaks == {
        ("question_in_train", "eval"): [2],
        ("question_in_train", "test"): [1, 2],
        ("question_in_eval", "test"): [3],
    }
    [of_eval] = [f for f in leak_findings(splits) if (f.name, f.split) == ("question_in_train", "eval")]
    assert of_eval.places == (f"{splits['eval'][1].where} (as {splits['train'][4].where})",)  # the first of two
    severities = {finding.name: finding.severity for finding in leak_findings(splits)}
    assert (severities["question_in_train"], severities["question_in_eval"]) == ("problem", "warning")


def test_gold_that_train_has_too_is_told_and_warned_of_where_it_is_most(tmp_path):
    train = [row(i) for i in range(6)]
    evals = [row(3, question="a"), row(11, question="b"), row(12, question="c", gold_docs=[])]
    tests = [row(i, question=f"{i}") for i in (0, 12)] + [row(9, gold_docs=[lamp(9), lamp(5)])]
    splits = splits_of(tmp_path, train, evals, tests)
    at = {finding.split: finding for finding in leak_findings(splits) if finding.name == "gold_in_train"}
    ids = {passage.id for example in splits["train"] for passage in example.gold_passages}
    for split, finding in at.items():
        assert finding.places == tuple(
            example.where for example in splits[split] if any(p.id in ids for p in example.gold_passages)
        )
    assert [(at[split].count, at[split].of, at[split].severity) for split in at] == [(1, 2, "note"), (2, 3, "warning")]


# Corpus


def corpus_of(folder, rows):
    return open_passages(write_jsonl(folder / "corpus.jsonl", rows))


def test_gold_that_the_corpus_lacks_is_told_apart(tmp_path):
    """Of a source or a title that it has; but not of a source that nearly all have."""
    corpus = [
        lamp(0),
        lamp(1),
        doc("Lamp 2 was cut elsewhere.", "", "2.html"),
        doc("Another text is here now.", "Lamp 3"),
        lamp(0),
    ]
    shared = [
        doc(f"{name} is the first of a row of many.", "", "all.html")
        for name in ("One", "Two", "Three", "Four", "Five")
    ]
    gold = [
        lamp(0),
        doc("The  lamp number 1 of the harbour\nwas lit in 1801."),
        lamp(2),
        lamp(3),
        lamp(4),
        doc("Six.", "", "all.html"),
    ]
    splits = splits_of(
        tmp_path, [row(i, gold_docs=[passage]) for i, passage in enumerate(gold)], [row(0)], [row(3), row(1)]
    )
    findings = corpus_findings(splits, corpus_of(tmp_path, corpus + shared))
    assert found(findings) == {
        ("gold_cut_anew", "train"): [3, 4],
        ("gold_not_in_corpus", "train"): [5, 6],
        ("gold_cut_anew", "test"): [1],
        ("duplicate_passages", "corpus"): [],
    }
    by = {(finding.name, finding.split): finding for finding in findings}
    assert by["gold_cut_anew", "train"].places[1].endswith("(Lamp 3)")
    assert by["gold_cut_anew", "train"].severity == "problem"  # with the others more than half
    assert by["gold_cut_anew", "test"].severity == "warning"
    assert (by["duplicate_passages", "corpus"].count, by["duplicate_passages", "corpus"].of) == (1, 10)


def test_passages_of_a_few_words_are_told(tmp_path):
    texts = ["See also.", "One two three four", "One two three four five", "灯塔在这里吗", "灯塔在"]
    findings = corpus_findings({"train": ()}, corpus_of(tmp_path, [doc(text, "T") for text in texts]))
    assert found(findings) == {("short_passages", "corpus"): [repr(f"T\n{texts[i]}") for i in (0, 1, 4)]}


# What is read

BARE, GOLD, CTXS = (
    Example("1", "Who?", ("I.",), where="x:1"),
    Example("2", "Who?", ("I.",), (Passage("G"),), where="x:2"),
    Example(
        "3", "Who?", ("I.",), (Passage("G"),), contexts=(Passage("A"), Passage("G", "of it"), Passage("B")), where="x:3"
    ),
)
CORPUS = [Passage("A")]


@pytest.mark.parametrize(
    ("method", "evals", "corpus", "sources"),
    [
        ("swr", [CTXS], None, ["ctxs", "ctxs"]),
        ("fid", [GOLD], CORPUS, [CORPUS, CORPUS]),
        ("fid", [GOLD], None, ["ctxs", "ctxs"]),  # though there are none: the recipe refuses that
        ("sft", [GOLD], None, ["gold", "gold"]),
        ("sft", [CTXS], None, ["gold", "ctxs"]),
        ("sft", [CTXS], CORPUS, ["gold", CORPUS]),
    ],
)
def test_passages_come_from_where_the_recipe_takes_them(method, evals, corpus, sources):
    splits = {"train": [CTXS], "eval": evals, "test": []}
    assert [source_of(method, split, splits, corpus) for split in ("train", "eval")] == sources


@pytest.mark.parametrize(("source", "bare"), [("gold", ["x:1"]), ("ctxs", ["x:1", "x:2"]), (CORPUS, [])])
def test_an_example_that_would_read_nothing_is_a_problem(source, bare):
    splits = {"train": [BARE, GOLD, CTXS], "eval": [], "test": []}
    findings = [
        f for f in record_findings(splits, dict.fromkeys(splits, source), None, 3) if f.name == "no_passages" and f.of
    ]
    assert [(*finding.places,) for finding in findings] == ([] if source is CORPUS else [(*bare,)])
    assert all(finding.severity == "problem" for finding in findings)


@pytest.mark.parametrize(("k", "places"), [(1, ["x:2", "x:3"]), (2, ["x:2"])])
def test_gold_that_is_not_among_the_ctxs_read_is_told(k, places):
    splits = {"train": [CTXS], "eval": [BARE, GOLD, CTXS], "test": []}
    findings = record_findings(splits, dict.fromkeys(splits, "ctxs"), None, k)
    [finding] = [finding for finding in findings if finding.name == "gold_not_given" and finding.of]
    assert (finding.split, [*finding.places], finding.of) == ("eval", places, 2)


# Lengths

ASKED = [
    Example(
        f"{i}",
        "Who? " * (7 * i % 40),
        (" ".join(["A word."] * (5 * i % 23 + 1)),),
        where=f"x:{i}",
        unanswerable=i % 6 == 0,
    )
    for i in range(1, 40)
]


def decoders(max_prompt_length=90, max_answer_length=60):
    builder = PromptBuilder(tiny_tokenizers.starling(), tiny_tokenizers.STARLING, max_prompt_length=max_prompt_length)
    return ConcatenatedCollator(builder, max_answer_length)


def parallel(max_passage_length=60, max_answer_length=60):
    return ParallelCollator(PassagePromptBuilder(closing_tokenizer(), max_passage_length), max_answer_length)


COLLATORS = {"decoder": decoders, "fid": parallel}


@pytest.fixture(params=COLLATORS)
def make(request):
    return COLLATORS[request.param]


def refused(collator, example):
    try:
        collator.check([example], answers=True)
    except DataError as error:
        return ["long_answer" if "--max_answer_length" in problem else "long_prompt" for problem in error.problems]
    return []


def test_what_training_refuses_is_a_problem(make):
    collator = make()
    findings = length_findings("train", ASKED, collator, 5, "No.")
    for name in ("long_prompt", "long_answer"):
        [finding] = [finding for finding in findings if finding.name == name]
        expected = [example.where for example in ASKED if name in refused(collator, example)]
        assert [place.split(" ")[0] for place in finding.places] == expected
        assert 0 < finding.count < len(ASKED)
        assert finding.severity == "problem"


@pytest.mark.parametrize("limit", [10, 11, 20, 60])
def test_a_reference_is_too_long_where_no_so_many_tokens_are_it(make, limit):
    collator = make(10_000, 10_000)
    examples = [replace(example, answers=(*example.answers, "No.")[: 1 + i % 2]) for i, example in enumerate(ASKED)]
    expected = []
    for example in examples:
        generated = [collator.builder.answer_text(collator.builder.answer(text)[:limit]) for text in example.answers]
        whole = [text.strip() == made for text, made in zip(example.answers, generated, strict=True)]
        if not example.unanswerable and not any(whole):
            expected.append(example.where)
    _, finding, _ = length_findings("test", examples, collator, limit, "No.")
    assert (finding.name, finding.severity) == ("long_reference", "warning")
    assert [place.split(" ")[0] for place in finding.places] == expected
    assert finding.count > 0


@pytest.mark.parametrize(
    ("split", "dropout", "expected"), [("train", 0, "u"), ("train", 0.1, "ug"), ("test", 0.1, "u")]
)
def test_a_refusal_is_too_long_where_it_is_to_be_said(make, split, dropout, expected):
    examples = [
        Example("1", "Who?", ("I.",), unanswerable=True, where="u"),
        Example("2", "Who?", ("I.",), (Passage("G"),), where="g"),
        Example("3", "Who?", ("I.",), where="n"),
    ]
    collator = make(10_000, 20)
    [*_, finding] = length_findings(split, examples, collator, 20, "A word. " * 9, dropout)
    assert (finding.name, "".join(finding.places)) == ("long_refusal", expected)
    [*_, finding] = length_findings(split, examples, collator, 20, "No.", dropout)
    assert finding.count == 0


def test_cut_passages_are_those_with_fewer_tokens_than_uncut(make):
    readings = [
        GeneratorInput.from_ranked(
            replace(example, question="Who?"), [Passage("The cat. " * (i % 9) * 3)] * (i % 3 + 1)
        )
        for i, example in enumerate(ASKED)
    ]
    rows, uncut = make(100).encode(readings), make(10_000).encode(readings)
    finding = cut_finding("train", readings, rows)
    lost = {f"x:{i}": len(whole) - len(row) for i, (row, whole) in enumerate(zip(rows, uncut, strict=True), 1)}
    told = {place.split(" ")[0]: int(place.split("(")[1].split(" ")[0]) for place in finding.places}
    assert told.keys() == {where for where, tokens in lost.items() if tokens}
    assert all(0 < tokens <= lost[where] for where, tokens in told.items())  # a passage's number goes uncounted
    assert finding.severity == "warning"
    few = [reading for reading, row in zip(readings, rows, strict=True) if not row.cut] * 9 + [readings[8]]
    assert cut_finding("train", few, make(100).encode(few)).severity == "note"


# The recipe


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with everything that flags name, and a model whose weights are gone."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("train.jsonl"), [row(i) for i in range(12)])
    write_jsonl(Path("test.jsonl"), [row(i) for i in range(20, 24)])
    write_jsonl(Path("leak.jsonl"), [row(i) for i in (21, 5, 11)])
    write_jsonl(Path("corpus.jsonl"), [lamp(i) for i in range(30)])
    tiny_models.save_decoder(Path("model"))
    save_seq2seq(Path("t5"))
    for name in ("model", "t5"):
        Path(name, "model.safetensors").unlink()
    return tmp_path


@pytest.fixture
def doctor(here, monkeypatch, capsys):
    def run(*argv, **given):
        words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        monkeypatch.setattr(sys, "argv", ["doctor.py", *argv, *words])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "recipes/doctor.py"), run_name="__main__")
        return end.value.code, capsys.readouterr()

    return run


DATA = {"train_file": "train.jsonl", "test_file": "test.jsonl", "full_dataset_file_path": "corpus.jsonl"}
LEAK = DATA | {"test_file": "leak.jsonl"}


def test_data_in_order_is_status_0_and_nothing_is_written(doctor, here):
    before = files(here)
    status, printed = doctor(**DATA, model_name_or_path="model", embedding_model="none/such")
    assert (status, files(here)) == (0, before)
    assert not any(line.startswith(("problem", "warning")) for line in printed.out.splitlines())
    assert "long_answer" in printed.out.split("looked for in vain:")[1]


def test_without_a_model_it_is_said_that_nothing_was_counted_in_tokens(doctor):
    status, printed = doctor(**DATA)
    assert status == 0
    assert "question_in_eval" not in printed.out  # without --eval_file
    assert "without --model_name_or_path: what is counted in tokens" in printed.out
    assert "long_answer" not in printed.out


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({}, 1),
        ({"fail_on": "never"}, 0),
        ({"accept": "question_in_train"}, 0),
        ({"accept": "gold_in_train, question_in_train", "fail_on": "warning"}, 0),
        ({"accept": "long_answer"}, 1),
        ({"test_file": "test.jsonl"}, 0),
        ({"test_file": "twice.jsonl"}, 0),
        ({"test_file": "twice.jsonl", "fail_on": "warning"}, 1),
    ],
)
def test_the_status_says_what_was_asked_for(doctor, given, status):
    write_jsonl(Path("twice.jsonl"), [row(20), row(20)])
    assert doctor(**LEAK | given)[0] == status


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"accept": "nothing_such"}, ["--accept", "nothing_such"]),
        ({"train_file": "none.jsonl"}, ["none.jsonl"]),
        ({"method": "sft", "gold_dropout": "0.1"}, ["--method sft", "--gold_dropout"]),
        ({"method": "sft", "embedding_model": "x"}, ["--method sft", "--embedding_model"]),
        ({"method": "fid", "instruction": "x"}, ["--method fid", "--instruction"]),
        ({"method": "swr", "max_passage_length": "9"}, ["--method swr", "--max_passage_length"]),
        ({"method": "swr", "eval_embedding_model": "x"}, ["--method swr", "--eval_embedding_model"]),
        ({"model_name_or_path": "t5"}, ["t5", "encoder-decoder"]),
        ({"model_name_or_path": "model", "max_prompt_length": "4096"}, ["--max_prompt_length"]),
        ({"deepspeed": "none.json"}, ["none.json"]),
        ({"embedding_model": "x", "full_dataset_file_path": ""}, ["--full_dataset_file_path"]),
        ({"num_processes": "0"}, ["--num_processes"]),
    ],
)
def test_what_cannot_be_used_is_status_2(doctor, given, words):
    status, printed = doctor(**DATA | given)
    assert (status, printed.out) == (2, "")
    assert all(word in printed.err for word in words)


def test_the_file_has_every_place(doctor):
    write_jsonl(Path("many.jsonl"), [row(i) for i in (3, 4, 25, 5, 6, 7)])
    status, printed = doctor(**DATA | {"test_file": "many.jsonl"}, output="found.json")
    [leak] = [
        f
        for f in json.loads(Path("found.json").read_text())["findings"]
        if f["name"] == "question_in_train" and f["count"]
    ]
    assert status == 1
    assert leak["places"] == [
        f"many.jsonl:{a} (as train.jsonl:{b})" for a, b in ((1, 4), (2, 5), (4, 6), (5, 7), (6, 8))
    ]
    assert (leak["split"], leak["severity"], leak["of"]) == ("test", "problem", 6)
    assert (leak["what"], leak["advice"]) == KINDS["question_in_train"]
    assert "problem  question_in_train" in printed.out.splitlines()[0]
    assert "(as train.jsonl:6)" in printed.out
    assert "(as train.jsonl:7)" not in printed.out  # three are enough to see


@pytest.mark.parametrize(("method", "model"), [("swr", "model"), ("sft", "model"), ("fid", "t5")])
def test_rows_are_those_that_training_makes(doctor, method, model):
    sizes = {"num_train_epochs": "3", "per_device_train_batch_size": "2", "gradient_accumulation_steps": "1"}
    status, printed = doctor(
        **LEAK, **sizes, method=method, model_name_or_path=model, num_processes=2, output="found.json"
    )
    told = json.loads(Path("found.json").read_text())
    assert status == 1
    assert (told["epoch"]["updates"], told["updates"]) == (3, 9)
    train, test = (load_examples(name) for name in ("train.jsonl", "leak.jsonl"))
    tokenizer = closing_tokenizer() if method == "fid" else tiny_models.tokenizer()
    builder = PassagePromptBuilder(tokenizer) if method == "fid" else PromptBuilder(tokenizer)
    answers = sorted(len(builder.answer(example.answers[0])) for example in train)
    assert told["tokens"]["train"]["answer"] == [answers[6], answers[-1], answers[-1]]
    assert told["epoch"]["targets"] == sum(answers)
    assert {split: of["rows"] for split, of in told["tokens"].items()} == {"train": len(train), "test": len(test)}
    passages = {"swr": 4, "sft": 1, "fid": 4}[method]  # gold, and as many as are retrieved
    sources = [lamp(i)["page_content"] for i in range(30)]
    longest = max(len(text) for text in sources)
    most = told["tokens"]["train"]["prompt"][2]
    assert passages * min(map(len, sources)) < most < passages * (longest + 100)
    assert told["bytes"].keys() == {"weights", "gradients", "optimizer", "communication", "activations"}
    assert f"{told['parameters']} parameters" in printed.out


def test_a_sample_is_drawn_of_more_examples(doctor):
    write_jsonl(Path("more.jsonl"), [row(i, question=f"{i}?") for i in range(100)] + [row(1, question="x" * 9000)])
    given = DATA | {"train_file": "more.jsonl", "full_dataset_file_path": "", "test_file": ""}
    _, printed = doctor(**given, method="sft", model_name_or_path="model", sample=10, output="found.json")
    told = json.loads(Path("found.json").read_text())
    assert told["tokens"]["train"]["rows"] == 10
    assert told["epoch"]["updates"] == 13  # of all 101
    assert told["micro_batch"].startswith("at most 4 rows")  # SFT's default
    assert "more.jsonl:101" in printed.out.split("long_prompt")[1].split("looked for")[0]


def defaults_of(recipe, monkeypatch):
    """What a training recipe says its flags are."""
    said = []

    def stop(*defaults):
        said.extend(defaults)
        raise InputError("enough")

    with monkeypatch.context() as patch:
        patch.setattr(flags, "parse_configs", stop)
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / f"recipes/{recipe}.py"), run_name="__main__")
    return flags.flat(said)


@pytest.mark.parametrize(
    ("method", "recipe", "model"),
    [("swr", "swr_starling", "model"), ("sft", "sft_mistral", "model"), ("fid", "fid_flan_t5", "t5")],
)
def test_it_takes_the_flags_of_each_recipe_with_its_defaults(doctor, monkeypatch, method, recipe, model):
    """But those of what there need not be: a model, an encoder, folders to write to."""
    theirs = defaults_of(recipe, monkeypatch)
    ours = flags.flat(runpy.run_path(str(ROOT / "recipes/doctor.py"))["defaults_of"](method))
    free = {"model_name_or_path", "eval_embedding_model", "output_dir", "full_dataset_index_path"}
    assert {name: ours[name] for name in theirs.keys() - free} == {name: theirs[name] for name in theirs.keys() - free}
    given = {"output_dir": "out", "full_dataset_index_path": "index", "model_name_or_path": model}
    Path("config.json").write_text(json.dumps(theirs | DATA | given))
    status, printed = doctor(method=method, config="config.json")
    assert (status, "activations" in printed.out) == (0, True), printed.err
