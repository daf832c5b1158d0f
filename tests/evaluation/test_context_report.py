"""context_report: scripted generators with numbers computed by hand, then real models."""

import json
from dataclasses import replace
from itertools import chain, permutations, product
from zlib import crc32

import numpy as np
import pytest
from accelerate import Accelerator
from five_questions import score_examples
from seq2seq_tokenizers import TOKENIZERS
from tiny_models import VOCABULARY, decoder
from tiny_seq2seq import seq2seq
from tiny_tokenizers import builder

from rqa.data.passage_selection import REFUSAL_ANSWER
from rqa.data.records import Example, Passage
from rqa.errors import InputError
from rqa.evaluation import metrics
from rqa.evaluation.context_report import build_contexts, compare_contexts, context_table
from rqa.evaluation.results import ContextsRecord, read_record, to_json, write_record
from rqa.evaluation.significance import interval, paired_test
from rqa.generation.generator import Answer, Generator
from rqa.models.decoder import AnswerLM
from rqa.models.fid import FusionInDecoder
from rqa.prompts.collators import ConcatenatedCollator, ParallelCollator
from rqa.prompts.decoder_prompt import PromptBuilder
from rqa.prompts.fid_prompt import PassagePromptBuilder
from rqa.retrieval.retrieve import Retrieval, Retrieved

G = [Passage(f"In the year {1900 + i} the lamp of Rome was lit.", f"Gold {i}") for i in range(5)]
D = [Passage(f"Nobody knows what stands in book {i}.", f"Other {i}") for i in range(5)]
EXAMPLES = [
    Example("first", "When was the first lit?", ("In the year 1900, they say.",), (G[0],)),
    Example("second", "When was the second lit?", ("In 1901.", "In the year 1901 it was."), (G[1],)),
    Example("missed", "When was the third lit?", ("It was in 1902.",), (G[2],)),
    Example("two", "When were these two lit?", ("In 1903 and then in 1904.",), (G[3], G[4], G[3])),
    Example("unanswerable", "Why?", ("Because.",), (G[0],), unanswerable=True),
    Example("no answer", "Who?", (), unanswerable=True),
    Example("no gold", "Where?", ("There.",)),
    Example("one distractor", "How?", ("So.",), (G[0],)),
]
RETRIEVED = [
    [G[0], D[0], D[1], D[2], D[3]],
    [D[0], G[1], D[1], D[2]],
    [D[3], D[1], D[2], D[0]],
    [D[0], D[1], G[4], D[4]],
    [D[2], G[0], D[1], D[0]],
    [D[4]],
    [D[0], D[1], D[2], D[3]],
    [G[0], D[0]],
]
K = 3
# By hand: the passages of each input, and the rank of each passage, which decides the order of truncation.
READ = {
    "gold": [[G[0]], [G[1]], [G[2]], [G[3], G[4]]],
    "retrieved": [[G[0], D[0], D[1]], [D[0], G[1], D[1]], [D[3], D[1], D[2]], [D[0], D[1], G[4]]],
    "gold_and_retrieved": [[G[0], D[0], D[1]], [D[0], G[1], D[1]], [D[3], D[1], G[2]], [D[0], G[4], G[3]]],
    "gold_at_1": [[G[0], D[0], D[1]], [G[1], D[0], D[1]], [G[2], D[3], D[1]], [G[3], G[4], D[0], D[1]]],
    "gold_at_2": [[D[0], G[0], D[1]], [D[0], G[1], D[1]], [D[3], G[2], D[1]], [D[0], G[3], G[4], D[1]]],
    "gold_at_3": [[D[0], D[1], G[0]], [D[0], D[1], G[1]], [D[3], D[1], G[2]], [D[0], D[1], G[3], G[4]]],
    "distractors": [[D[0], D[1], D[2]], [D[0], D[1], D[2]], [D[3], D[1], D[2]], [D[0], D[1], D[4]]],
    "none": [[], [], [], []],
}
RANKS = {
    "gold_and_retrieved": [(0, 1, 2), (0, 1, 2), (1, 2, 0), (1, 2, 0)],
    "gold_at_2": [(1, 0, 2), (1, 0, 2), (1, 0, 2), (2, 0, 1, 3)],
    "gold_at_3": [(1, 2, 0), (1, 2, 0), (1, 2, 0), (2, 3, 0, 1)],
}
REFUSED = "the passages do not contain Answer to this question!"  # the same, by the rule of exact match


def hits(rows):
    return [[Retrieved(passage, 1 - rank / 10) for rank, passage in enumerate(row)] for row in rows]


CONTEXTS = build_contexts(EXAMPLES, hits(RETRIEVED), k=K)


class Scripted:
    """Answers with the share `reads(item)` of the words of the reference; records its inputs."""

    def __init__(self, reads, otherwise="Mist."):
        self.reads, self.otherwise, self.inputs = reads, otherwise, []

    def __call__(self, inputs):
        self.inputs += inputs
        return [Answer(self._text(r), 1, 10, True, len(r.passages), len(r.passages)) for r in inputs]

    def _text(self, item):
        words = item.answer.split()
        return " ".join(words[: int(self.reads(item) * len(words))]) or self.otherwise


def is_gold(item):
    gold = {passage.id for passage in item.example.gold_passages}
    return [passage.id in gold for passage in item.passages]


def reads_the_first(item):
    return is_gold(item)[:1] == [True]


def reads_any(item):
    return any(is_gold(item))


def erratic(item):
    """Return a share of the reference that depends on the passages and their order."""
    read = (item.example.id, *(passage.title for passage in item.passages))
    return crc32(repr(read).encode()) % 4 / 3


def report_of(reads, otherwise="Mist.", contexts=CONTEXTS):
    """Return the report as the JSON of contexts.json."""
    return to_json(compare_contexts(contexts, Scripted(reads, otherwise)))


def by_condition(report, score):
    return {name: condition["scores"][score] for name, condition in report["conditions"].items()}


def differences(report, score):
    return {name: results[score]["difference"] for name, results in report["differences"].items()}


# Inputs


@pytest.mark.parametrize("name", READ)
def test_inputs_of_each_condition(name):
    inputs = CONTEXTS.inputs[name]
    assert [list(item.passages) for item in inputs] == READ[name]
    in_order = [tuple(range(len(passages))) for passages in READ[name]]
    assert [item.ranks for item in inputs] == RANKS.get(name, in_order)
    assert [item.example for item in inputs] == EXAMPLES[:4]
    assert CONTEXTS.inputs.keys() == READ.keys()


def test_retrieved_is_the_input_of_an_evaluation():
    retrieval = Retrieval(hits(RETRIEVED), 1.0, "corpus")
    read = retrieval.inputs(EXAMPLES, K)
    assert CONTEXTS.inputs["retrieved"] == read[:4]
    assert CONTEXTS.unanswerable == read[4:6]


def test_complete_retrieval_is_not_changed_by_inserting_gold():
    kept, retrieved = (CONTEXTS.inputs[name] for name in ("gold_and_retrieved", "retrieved"))
    assert [a == b for a, b in zip(kept, retrieved, strict=True)] == [True, True, False, False]


def test_left_out_questions_are_counted():
    assert CONTEXTS.left_out == {"no gold passage": 1, "fewer than 2 distractors": 1, "no reference": 0}
    assert build_contexts(EXAMPLES, hits(RETRIEVED), k=1).left_out == {
        "no gold passage": 1,
        "fewer than 1 distractors": 0,
        "no reference": 0,
    }
    assert build_contexts(EXAMPLES, hits(RETRIEVED), k=4).left_out == {
        "no gold passage": 1,
        "fewer than 3 distractors": 1,
        "no reference": 0,
    }
    gold_alone = [RETRIEVED[0], [G[1]]]
    assert build_contexts(EXAMPLES[:2], hits(gold_alone), k=1).left_out["fewer than 1 distractors"] == 1


def test_questions_without_references_are_left_out_and_not_to_refuse():
    hidden = [replace(EXAMPLES[0], id="hidden", answers=()), *EXAMPLES]
    contexts = build_contexts(hidden, hits([RETRIEVED[0], *RETRIEVED]), k=K)
    assert contexts.left_out == CONTEXTS.left_out | {"no reference": 1}
    assert (contexts.inputs, contexts.unanswerable) == (CONTEXTS.inputs, CONTEXTS.unanswerable)
    with pytest.raises(InputError, match=r"got none among 1: no reference: 1$"):
        build_contexts(hidden[:1], hits(RETRIEVED[:1]), k=K)


def test_all_gold_passages_are_in_the_input_if_they_are_more_than_k():
    three = replace(EXAMPLES[3], gold_passages=(G[3], G[4], G[0]))
    [item] = build_contexts([three], hits([[D[0], D[1], D[2]]]), k=2).inputs["gold_and_retrieved"]
    assert item.passages == three.gold_passages


def test_no_usable_question_is_an_error_with_the_reasons():
    expected = "got none among 4: no gold passage: 1, fewer than 2 distractors: 1, unanswerable: 2"
    with pytest.raises(InputError, match=f"^--context_report true: .*{expected}$"):
        build_contexts(EXAMPLES[4:], hits(RETRIEVED[4:]), k=K)


def test_inserted_gold_is_truncated_last():
    whole = builder("chatml's template")
    length = max(len(whole.prompt(item).ids) for item in CONTEXTS.inputs["gold"])
    short = PromptBuilder(whole.tokenizer, max_prompt_length=length)
    for name in ("gold", "gold_at_1", "gold_at_2", "gold_at_3"):
        for item in CONTEXTS.inputs[name]:
            prompt = short.prompt(item)
            text = whole.tokenizer.decode(prompt.ids)
            assert all(passage.text in text for passage in item.example.gold_passages)
            assert bool(prompt.truncated) == (name != "gold")


# Scripted generators


def test_generator_that_reads_only_the_first_passage():
    report = report_of(reads_the_first)
    em = {"gold": 100, "retrieved": 25, "gold_and_retrieved": 25, "gold_at_1": 100}
    assert by_condition(report, "em") == {name: em.get(name, 0) for name in READ}
    gains = {"context_gain": 25, "gold_gain": 100, "distractor_cost": 75, "retrieval_loss": 0}
    assert differences(report, "em") == gains
    positions = {name: report["positions"][name] for name in ("best", "worst", "spread", "f1")}
    assert positions == {"best": 1, "worst": 2, "spread": 100, "f1": [100, 0, 0]}
    assert report["positions"]["p_value"] == pytest.approx(1 / 27, abs=0.01)  # all four best at one of three places
    assert report["differences"]["distractor_cost"]["em"]["p_value"] == 2 / 2**3


def test_generator_that_refuses_without_gold():
    report = report_of(reads_any, REFUSED)
    em = dict.fromkeys(READ, 100.0) | {"retrieved": 75, "distractors": 0, "none": 0}
    assert by_condition(report, "em") == em
    assert by_condition(report, "refusal") == {name: 100 - score for name, score in em.items()}
    assert differences(report, "em") == {
        "context_gain": 75, "gold_gain": 100, "distractor_cost": 0, "retrieval_loss": 25
    }  # fmt: skip
    assert report["positions"]["spread"] == 0
    assert report["positions"]["p_value"] == 1
    # Of ten to refuse (four questions twice, two unanswerable) it answers the unanswerable one that finds its "gold".
    refusals = {"refused": 9, "correct": 9, "to_refuse": 10, "precision": 100.0, "recall": 90.0}
    assert {name: report["refusals"][name] for name in refusals} == refusals


def test_generator_that_always_refuses():
    report = report_of(lambda item: False, REFUSED)
    assert set(by_condition(report, "refusal").values()) == {100}
    assert set(differences(report, "f1").values()) == {0}
    refusals = {"refused": 18, "correct": 10, "to_refuse": 10, "recall": 100.0, "precision": 1000 / 18}
    assert {name: report["refusals"][name] for name in refusals} == pytest.approx(refusals)


def test_generator_that_answers_from_memory():
    report = report_of(lambda item: True)
    assert set(by_condition(report, "em").values()) == {100}
    assert set(by_condition(report, "refusal").values()) == {0}
    assert set(differences(report, "em").values()) == {0}
    assert report["refusals"] == {
        "refused": 0, "correct": 0, "to_refuse": 10, "precision": None, "precision_interval": None,
        "recall": 0.0, "recall_interval": [0.0, 0.0],
    }  # fmt: skip


def test_wrong_refusals_reduce_precision_and_few_have_no_interval():
    seldom = report_of(lambda r: not (r.example.id == "first" and r.passages[:1] == (G[0],)), REFUSED)["refusals"]
    assert (seldom["refused"], seldom["correct"]) == (3, 1)  # gold, gold and retrieved; one unanswerable has no answer
    assert seldom["precision"] == pytest.approx(100 / 3)
    assert seldom["precision_interval"] is None
    assert seldom["recall_interval"] is not None


# Numbers


def answers_of(report, name):
    return [row[name] for row in report["answers"] if not row.get("unanswerable")]


@pytest.mark.parametrize("name", READ)
def test_scores_equal_the_metrics_of_the_same_texts(name):
    report = report_of(erratic)
    texts, references = answers_of(report, name), [example.answers for example in EXAMPLES[:4]]
    rows = [metrics.answer_scores(text, of) for text, of in zip(texts, references, strict=True)]
    scores, intervals = (report["conditions"][name][part] for part in ("scores", "intervals"))
    for score, mean in metrics.mean_scores(rows).items():
        if score in ("em", "f1", "rougeL"):
            assert scores[score] == pytest.approx(mean)
            assert intervals[score] == pytest.approx(interval([row[score] for row in rows]))
    assert scores["bleu"] == pytest.approx(metrics.corpus_bleu(texts, references).score)
    assert scores.keys() == intervals.keys() == {"em", "f1", "rougeL", "bleu", "refusal", "answer_words"}


def test_differences_are_paired_and_add_up():
    report = report_of(erratic)
    f1 = {
        name: [
            metrics.answer_scores(text, example.answers)["f1"]
            for text, example in zip(answers_of(report, name), EXAMPLES[:4], strict=True)
        ]
        for name in READ
    }
    pairs = {
        "context_gain": ("none", "retrieved"),
        "gold_gain": ("none", "gold"),
        "distractor_cost": ("gold_and_retrieved", "gold"),
        "retrieval_loss": ("retrieved", "gold_and_retrieved"),
    }
    for name, (first, second) in pairs.items():
        expected = paired_test(f1[first], f1[second])
        assert report["differences"][name]["f1"] == pytest.approx(vars(expected))
    for score in ("em", "f1", "rougeL", "bleu"):
        of = differences(report, score)
        whole = of["gold_gain"] - of["distractor_cost"] - of["retrieval_loss"]
        assert of["context_gain"] == pytest.approx(whole)


def test_p_value_of_the_spread_equals_that_of_all_permutations():
    report = report_of(erratic)
    f1 = np.array(
        [
            [metrics.answer_scores(text, example.answers)["f1"] for text in texts]
            for example, *texts in zip(EXAMPLES, *(answers_of(report, f"gold_at_{i}") for i in (1, 2, 3)), strict=False)
        ]
    )
    spreads = [np.ptp(np.sum(rows, axis=0)) for rows in product(*(list(permutations(row)) for row in f1))]
    exact = np.mean(np.array(spreads) >= np.ptp(f1.sum(0)) - 1e-9)
    assert 0.05 < exact < 1
    assert report["positions"]["p_value"] == pytest.approx(exact, abs=0.02)
    assert report["positions"]["f1"] == pytest.approx(f1.mean(0))
    assert report["positions"]["spread"] == pytest.approx(np.ptp(f1.mean(0)))


def test_intervals_of_refusals_are_by_question():
    many = [replace(example, id=f"{example.id} {i}") for i in range(4) for example in EXAMPLES]
    report = report_of(reads_the_first, REFUSED, build_contexts(many, hits(RETRIEVED * 4), k=K))["refusals"]
    # Each of 16 refuses distractors and none, 12 the gold among the retrieved passages; then 8 unanswerable ones.
    refused = [(2, 2), *[(2, 3)] * 3] * 4 + [(1, 1)] * 8
    due = [(2, 2)] * 16 + [(1, 1)] * 8
    for name, rows in (("precision", refused), ("recall", due)):
        table = np.array(rows) * (100.0, 1.0)
        assert report[name] == pytest.approx(np.divide(*table.sum(0)))
        assert report[f"{name}_interval"] == pytest.approx(interval(table))


def test_every_input_is_answered_once():
    generate = Scripted(erratic)
    report = to_json(compare_contexts(CONTEXTS, generate))
    needed = {*chain(*CONTEXTS.inputs.values()), *CONTEXTS.unanswerable}
    assert len(generate.inputs) == len({*generate.inputs}) == report["inputs"]
    assert {*generate.inputs} == needed
    assert len(needed) < sum(map(len, CONTEXTS.inputs.values())) + len(CONTEXTS.unanswerable)
    cut = {name: of["truncated_passage_tokens"] for name, of in report["conditions"].items()}
    assert cut == {name: sum(map(len, of)) for name, of in READ.items()}  # of the scripted: one for each passage


def test_order_of_examples_has_no_effect():
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    shuffled = build_contexts([EXAMPLES[i] for i in order], hits([RETRIEVED[i] for i in order]), k=K)
    one, other = report_of(erratic), report_of(erratic, contexts=shuffled)
    assert other["left_out"] == one["left_out"]
    for score in ("em", "f1", "rougeL", "bleu", "refusal"):
        assert by_condition(other, score) == pytest.approx(by_condition(one, score))
        assert differences(other, score) == pytest.approx(differences(one, score))
        for name, of in one["differences"].items():
            assert other["differences"][name][score]["p_value"] == of[score]["p_value"]
    assert sorted(other["answers"], key=lambda row: row["id"]) == sorted(one["answers"], key=lambda row: row["id"])
    assert {n: v for n, v in other["refusals"].items() if "interval" not in n} == pytest.approx(
        {n: v for n, v in one["refusals"].items() if "interval" not in n}
    )


def test_refusal_answer_can_be_set():
    generate = Scripted(reads_any, "No idea.")
    for refusal, share in {"No idea": 100, REFUSAL_ANSWER: 0}.items():
        report = to_json(compare_contexts(CONTEXTS, generate, refusal_answer=refusal))
        assert report["conditions"]["none"]["scores"]["refusal"] == share


# Real models


def generators():
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    concatenated = ConcatenatedCollator(builder("chatml's template"))
    lm = decoder().eval()
    lm.resize_token_embeddings(max(VOCABULARY, len(concatenated.builder.tokenizer)))
    parallel = ParallelCollator(PassagePromptBuilder(TOKENIZERS["closing_tokenizer"]()))
    models = {"decoder": (AnswerLM(lm), concatenated), "fid": (FusionInDecoder(seq2seq("t5gemma").eval()), parallel)}
    return {kind: Generator(accelerator, *of, 4, max_new_tokens=8) for kind, of in models.items()}


@pytest.mark.parametrize("kind", ["decoder", "fid"])
def test_answers_of_real_models_equal_those_of_an_evaluation(kind):
    generate = generators()[kind]
    report = to_json(compare_contexts(CONTEXTS, generate))
    scores = score_examples(
        EXAMPLES[:4], retrieval=Retrieval(hits(RETRIEVED[:4]), 1.0, "corpus"), generate=generate, k=K
    )
    assert answers_of(report, "retrieved") == [row.answer for row in scores.predictions]
    for score in ("em", "f1", "rougeL", "bleu", "answer_words"):
        assert report["conditions"]["retrieved"]["scores"][score] == pytest.approx(scores.metrics[score])
    for name, inputs in CONTEXTS.inputs.items():
        assert answers_of(report, name) == [generate([item])[0].text for item in inputs]
    assert len({tuple(answers_of(report, name)) for name in READ}) >= 5
    is_flat = answers_of(report, "gold_at_1") == answers_of(report, "gold_at_2") == answers_of(report, "gold_at_3")
    assert is_flat == (kind == "fid")  # to which a position is nothing


# The file and the table


def test_the_file_is_read_as_it_was_written(tmp_path):
    record = compare_contexts(CONTEXTS, Scripted(lambda item: True))  # its precision is undefined
    write_record(tmp_path / "contexts.json", record)
    assert read_record(tmp_path / "contexts.json", ContextsRecord) == record
    assert next(iter(json.loads((tmp_path / "contexts.json").read_text()).items())) == ("format", 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda report: report["conditions"]["none"]["scores"].pop("f1"), "conditions.none.scores.f1.*got nothing"),
        (
            lambda report: report["conditions"]["gold"]["intervals"].update(em=[1]),
            "conditions.gold.intervals.em.*got 1",
        ),
        (lambda report: report["differences"]["gold_gain"].pop("f1"), "differences.gold_gain.f1.*got nothing"),
        (lambda report: report["positions"].update(best=1.5), "positions.best.*expected number, got number"),
        (lambda report: report["refusals"].update(precision="high"), "refusals.precision.*expected number, got text"),
    ],
)
def test_a_file_is_refused_by_its_field(tmp_path, change, message):
    report = report_of(reads_any)
    change(report)
    (tmp_path / "contexts.json").write_text(json.dumps({"format": 2, **report}))
    with pytest.raises(InputError, match=rf'contexts\.json: field "{message}'):
        read_record(tmp_path / "contexts.json", ContextsRecord)


def test_table_shows_the_report():
    record = compare_contexts(CONTEXTS, Scripted(reads_any, REFUSED))
    report = to_json(record)
    lines = [line.split("  ") for line in context_table(record).splitlines()]
    words = [[word.strip() for word in line if word.strip()] for line in lines]
    assert words[0] == ["4 questions, 2 unanswerable; left out: no gold passage: 1, fewer than 2 distractors: 1"]
    assert words[1] == ["k = 3", "EM, %", "F1, %", "ROUGE-L, %", "BLEU", "refused, %"]
    assert words[2:10] == [
        [name.replace("_", " "), *(f"{report['conditions'][name]['scores'][score]:.2f}" for score in scores)]
        for scores in [("em", "f1", "rougeL", "bleu", "refusal")]
        for name in READ
    ]
    of = report["differences"]["retrieval_loss"]["f1"]
    assert words[15] == [
        "retrieval loss",
        f"{of['difference']:+.2f} [{of['low']:+.2f}, {of['high']:+.2f}]",
        f"p {of['p_value']:.4f}",
        "(gold and retrieved - retrieved)",
    ]
    assert words[16] == ["spread of positions", "+0.00", "p 1.0000", "(gold at 1 - gold at 1)"]
    assert words[18:] == [
        ["refusal precision", "100.00", "(9 correct of 9)"],
        ["refusal recall", "90.00", "(9 correct of 10)"],
    ]
    one = context_table(compare_contexts(build_contexts(EXAMPLES, hits(RETRIEVED), k=1), Scripted(reads_any)))
    assert "spread of positions" not in one
    assert one.splitlines()[-3:-1] == ["", "refusal precision              -  (0 correct of 0)"]
    answered = compare_contexts(CONTEXTS, Scripted(lambda item: True))
    assert "refusal precision              -  (0 correct of 0)" in context_table(answered)
