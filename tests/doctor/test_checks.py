"""checks: planted problems are reported at their lines."""

from dataclasses import replace

import pytest
import tiny_tokenizers
import torch
from lamps import doc, lamp, row
from tiny_seq2seq import closing_tokenizer
from world import write_jsonl

from rqa.cli.training_args import OptimizationArgs
from rqa.data.corpus import open_passages
from rqa.data.file_report import DataError
from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Passage, Turn, load_examples, load_splits
from rqa.doctor.checks import (
    control_token_finding,
    corpus_findings,
    leak_findings,
    length_findings,
    record_findings,
    source_of,
    sources_of,
    split_findings,
    truncation_finding,
    update_finding,
)
from rqa.evaluation.metrics import answer_scores
from rqa.prompts.collators import ConcatenatedCollator, ParallelCollator
from rqa.prompts.decoder_prompt import ChatFormat, PromptBuilder
from rqa.prompts.fid_prompt import PassagePromptBuilder
from rqa.training.schedule import MIN_WEIGHT_CHANGE


def lines_of(findings):
    """Return the lines of each finding with a count, or its places if these are no lines."""
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


@pytest.mark.parametrize("answer", ["The.", "a", "…", "An", "the the", "Theme", "0", "7 a", "水", "A b"])
def test_an_answer_is_empty_if_the_metrics_have_nothing_to_compare(answer):
    [example] = [Example("1", "Who?", (answer,), where="x.jsonl:1")]
    is_empty = ("empty_answer", "train") in lines_of(split_findings("train", [example]))
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
    row(
        18,
        gold_docs=[doc("The lamp of Ostrava was lit in 1818.")],
        gold_answer="Ostrava got a beacon, whose flame shone from 1818 onward.",
    ),  # 18: reworded_answer
    {"question": "And who?", "answers": [], "gold_docs": [lamp(19)]},  # 19: no_answer
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
    "reworded_answer": [18],
    "no_answer": [19],
    "no_gold": [10],
    "unanswerable": [11],
}


def test_planted_problems_of_records_are_reported_at_their_lines(tmp_path):
    examples = load_examples(write_jsonl(tmp_path / "x.jsonl", PLANTED))
    findings = split_findings("train", examples)
    assert lines_of(findings) == {(name, "train"): lines for name, lines in EXPECTED.items()}
    assert {finding.total for finding in findings} == {len(PLANTED)}
    assert {finding.name for finding in findings} == EXPECTED.keys()  # every check is tested


def test_an_example_without_an_answer_is_a_problem_in_training_alone(tmp_path):
    examples = load_examples(write_jsonl(tmp_path / "x.jsonl", PLANTED))
    severities = [
        finding.severity
        for split in ("train", "eval", "test")
        for finding in split_findings(split, examples)
        if finding.name == "no_answer"
    ]
    assert severities == ["problem", "note", "note"]


def test_one_supported_reference_is_enough(tmp_path):
    examples = load_examples(write_jsonl(tmp_path / "x.jsonl", PLANTED))
    lines = {name: [line for line in lines if line != 16] for name, lines in EXPECTED.items()}
    assert lines_of(split_findings("test", examples)) == {(name, "test"): numbers for name, numbers in lines.items()}


def test_a_place_has_details(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", PLANTED)
    places = {finding.name: finding.places for finding in split_findings("train", load_examples(path))}
    assert places["unsupported_number"][0] == f"{path}:4 (1899)"
    assert places["conflicting_answers"] == (f"{path}:4 (as {path}:2)",)
    assert places["unsupported_answer"][0] == f"{path}:9 (0 %)"


def test_answers_conflict_if_none_is_equal(tmp_path):
    rows = [row(1, gold_answer=["One lamp.", "Two lamps."]), row(1, gold_answer=["two lamps", "Three lamps."])]
    rows += [
        row(1, gold_answer="Three lamps."),
        {"question": rows[0]["question"], "gold_docs": [], "unanswerable": True},
    ]
    repeated = lines_of(split_findings("test", load_examples(write_jsonl(tmp_path / "x.jsonl", rows))))
    assert (repeated["duplicate_question", "test"], repeated["conflicting_answers", "test"]) == ([2], [3, 4])


def test_a_question_with_other_ctxs_is_another_question(tmp_path):
    ctxs = [[{"text": text}] for text in ("One.", "Two.", "One.")]
    rows = [{"question": "Which?", "answers": [answer], "ctxs": ctxs[i]} for i, answer in enumerate("121")]
    examples = load_examples(write_jsonl(tmp_path / "x.jsonl", rows))
    repeated = {
        name: lines for (name, _), lines in lines_of(split_findings("train", examples)).items() if name != "no_gold"
    }
    assert repeated == {"duplicate_question": [3]}


# Between files


def spoken(example):
    return [turn.text.casefold() for turn in (*example.chat_history, Turn("user", example.question))]


def test_questions_in_two_files_are_reported(tmp_path):
    def asked(i, **fields):
        return row(i, **{"question": f"Lamp {i}: when?"} | fields)

    history = [{"speaker": "user", "message": "Hi."}]
    train = [asked(i) for i in range(9)] + [asked(20, chat_history=history), asked(4)]
    evals = [asked(30), asked(4, question="LAMP 4, when"), asked(20)]
    tests = [asked(20, chat_history=history), asked(8), asked(30), asked(31)]
    splits = splits_of(tmp_path, train, evals, tests)
    leaks = {key: lines for key, lines in lines_of(leak_findings(splits)).items() if key[0] != "gold_in_train"}
    assert leaks == {
        ("question_in_train", "eval"): [2],
        ("question_in_train", "test"): [1, 2],
        ("question_in_eval", "test"): [3],
    }
    [of_eval] = [f for f in leak_findings(splits) if (f.name, f.split) == ("question_in_train", "eval")]
    assert of_eval.places == (f"{splits['eval'][1].where} (as {splits['train'][4].where})",)  # the first of two
    severities = {finding.name: finding.severity for finding in leak_findings(splits)}
    assert (severities["question_in_train"], severities["question_in_eval"]) == ("problem", "warning")


def test_gold_of_train_in_other_files_is_a_warning_if_it_is_most(tmp_path):
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
    assert [(f.count, f.total, f.severity) for f in at.values()] == [(1, 2, "note"), (2, 3, "warning")]


# Corpus


def corpus_of(folder, rows):
    return open_passages(write_jsonl(folder / "corpus.jsonl", rows))


def test_missing_gold_is_reported_by_cause(tmp_path):
    """Another split of a source or title that the corpus has, unless nearly all passages share it; or missing."""
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
    assert lines_of(findings) == {
        ("gold_split_differently", "train"): [3, 4],
        ("gold_not_in_corpus", "train"): [5, 6],
        ("gold_split_differently", "test"): [1],
        ("duplicate_passages", "corpus"): [],
    }
    by = {(finding.name, finding.split): finding for finding in findings}
    assert by["gold_split_differently", "train"].places[1].endswith("(Lamp 3)")
    assert by["gold_split_differently", "train"].severity == "problem"  # with the others more than half
    assert by["gold_split_differently", "test"].severity == "warning"
    assert (by["duplicate_passages", "corpus"].count, by["duplicate_passages", "corpus"].total) == (1, 10)


def test_short_passages_are_reported(tmp_path):
    texts = ["See also.", "One two three four", "One two three four five", "灯塔在这里吗", "灯塔在"]
    findings = corpus_findings({"train": ()}, corpus_of(tmp_path, [doc(text, "T") for text in texts]))
    assert lines_of(findings) == {("short_passages", "corpus"): [repr(f"T\n{texts[i]}") for i in (0, 1, 4)]}


# Control tokens


@pytest.mark.parametrize(
    ("tokenizer", "unknown"),
    [
        (tiny_tokenizers.starling, []),
        (tiny_tokenizers.mistral, ['"<|end_of_turn|>"']),
        (tiny_tokenizers.chatml, ['"<|end_of_turn|>"', '"</s>"']),
    ],
)
def test_control_tokens_of_another_tokenizer_are_a_warning(tokenizer, unknown):
    chat = ChatFormat("User", "Assistant", "<|end_of_turn|>", "</s>")
    finding = control_token_finding(PromptBuilder(tokenizer(), chat))
    assert (finding.severity, [*finding.places]) == ("warning", unknown)


# Steps


@pytest.mark.parametrize(
    ("rate", "num_steps", "schedule", "is_small"),
    [
        (5e-6, 10, "cosine", True),
        (5e-6, 10, "constant", True),
        (5e-6, 144, "cosine", False),  # the documented SwR on 575 examples
        (1e-5, 504, "cosine", False),  # the documented FiD
        (1e-3, 10, "linear", False),
        (0.0, 10_000, "constant", True),
    ],
)
def test_steps_that_hardly_change_a_weight_are_a_warning(rate, num_steps, schedule, is_small):
    options = OptimizationArgs(learning_rate=rate, lr_scheduler_type=schedule).loop_options(num_steps)
    finding = update_finding(num_steps, options["learning_rate"])
    assert (finding.name, finding.severity, finding.total) == ("small_updates", "warning", num_steps)
    assert (finding.count, len(finding.places)) == ((num_steps, 1) if is_small else (0, 0))


def test_steps_below_the_distance_of_weights_in_bfloat16_change_no_weight_of_a_usual_size():
    """Half the distance is rounded away: a run without a warning can move a weight of 0.02 by one number."""
    weight = torch.tensor(0.02, dtype=torch.bfloat16)
    distance = torch.nextafter(weight, torch.tensor(1.0, dtype=torch.bfloat16)) - weight
    assert 0.5 * distance < MIN_WEIGHT_CHANGE < 2 * distance


# Sources of passages

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
        ("fid", [GOLD], None, ["ctxs", "ctxs"]),  # there are none: the recipe refuses that
        ("sft", [GOLD], None, ["gold", "gold"]),
        ("sft", [CTXS], None, ["gold", "ctxs"]),
        ("sft", [CTXS], CORPUS, ["gold", CORPUS]),
    ],
)
def test_the_source_of_passages_is_that_of_the_recipe(method, evals, corpus, sources):
    splits = {"train": [CTXS], "eval": evals, "test": []}
    assert [source_of(method, split, splits, corpus) for split in ("train", "eval")] == sources


def test_ctxs_are_read_in_place_of_a_corpus_only_without_an_encoder():
    splits = {"train": [GOLD], "eval": [CTXS], "test": []}
    for has_retriever, expected in ((False, "ctxs"), (True, CORPUS)):
        sources = sources_of("swr", splits, CORPUS, has_retriever=has_retriever)
        assert [*sources.values()] == [expected] * 3
    assert [*sources_of("swr", {**splits, "eval": []}, CORPUS, has_retriever=False).values()] == [CORPUS] * 3


@pytest.mark.parametrize(("source", "bare"), [("gold", ["x:1"]), ("ctxs", ["x:1", "x:2"]), (CORPUS, [])])
def test_an_example_without_passages_to_read_is_a_problem(source, bare):
    splits = {"train": [BARE, GOLD, CTXS], "eval": [], "test": []}
    findings = record_findings(splits, dict.fromkeys(splits, source), None, 3)
    findings = [finding for finding in findings if finding.name == "no_passages" and finding.total]
    assert [(*finding.places,) for finding in findings] == ([] if source is CORPUS else [(*bare,)])
    assert all(finding.severity == "problem" for finding in findings)


@pytest.mark.parametrize(("k", "places"), [(1, ["x:2", "x:3"]), (2, ["x:2"])])
def test_gold_outside_the_ctxs_that_are_read_is_reported(k, places):
    splits = {"train": [CTXS], "eval": [BARE, GOLD, CTXS], "test": []}
    findings = record_findings(splits, dict.fromkeys(splits, "ctxs"), None, k)
    [finding] = [finding for finding in findings if finding.name == "gold_not_in_ctxs" and finding.total]
    assert (finding.split, [*finding.places], finding.total) == ("eval", places, 2)


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


def test_lengths_that_training_refuses_are_a_problem(make):
    collator = make()
    findings = length_findings("train", ASKED, collator, 5, "No.", 0.0)
    for name in ("long_prompt", "long_answer"):
        [finding] = [finding for finding in findings if finding.name == name]
        expected = [example.where for example in ASKED if name in refused(collator, example)]
        assert [place.split(" ")[0] for place in finding.places] == expected
        assert 0 < finding.count < len(ASKED)
        assert finding.severity == "problem"


@pytest.mark.parametrize("limit", [10, 11, 20, 60])
def test_a_reference_is_too_long_if_the_limit_truncates_its_text(make, limit):
    collator = make(10_000, 10_000)
    examples = [replace(example, answers=(*example.answers, "No.")[: 1 + i % 2]) for i, example in enumerate(ASKED)]
    expected = []
    for example in examples:
        generated = [collator.builder.answer_text(collator.builder.answer(text)[:limit]) for text in example.answers]
        whole = [text.strip() == made for text, made in zip(example.answers, generated, strict=True)]
        if not example.unanswerable and not any(whole):
            expected.append(example.where)
    _, finding, _ = length_findings("test", examples, collator, limit, "No.", 0.0)
    assert (finding.name, finding.severity) == ("long_reference", "warning")
    assert [place.split(" ")[0] for place in finding.places] == expected
    assert finding.count > 0


@pytest.mark.parametrize(
    ("split", "dropout", "expected"), [("train", 0, "u"), ("train", 0.1, "ug"), ("test", 0.1, "u")]
)
def test_a_refusal_is_too_long_only_for_examples_with_a_refusal(make, split, dropout, expected):
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


def test_truncated_passages_have_fewer_tokens_than_without_a_limit(make):
    inputs = [
        GeneratorInput.from_ranked(
            replace(example, question="Who?"), [Passage("The cat. " * (i % 9) * 3)] * (i % 3 + 1)
        )
        for i, example in enumerate(ASKED)
    ]
    rows, untruncated = make(100).encode(inputs), make(10_000).encode(inputs)
    finding = truncation_finding("train", inputs, rows)
    lost = {f"x:{i}": len(whole) - len(row) for i, (row, whole) in enumerate(zip(rows, untruncated, strict=True), 1)}
    reported = {place.split(" ")[0]: int(place.split("(")[1].split(" ")[0]) for place in finding.places}
    assert reported.keys() == {where for where, tokens in lost.items() if tokens}
    assert all(0 < tokens <= lost[where] for where, tokens in reported.items())  # without the passage's number
    assert finding.severity == "warning"
    few = [item for item, row in zip(inputs, rows, strict=True) if not row.truncated] * 9 + [inputs[8]]
    assert truncation_finding("train", few, make(100).encode(few)).severity == "note"
