"""metrics: each score equals that of an independent implementation; the table of metrics is consistent."""

import json
import random
import string
import subprocess
import sys
from collections import Counter

import pytest
import pytrec_eval
from hypothesis import example, given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from rqa.evaluation.metrics import (
    HIGHER_IS_BETTER,
    LABELS,
    METRICS,
    ROUGE_SIGNATURE,
    Metric,
    answer_length,
    answer_scores,
    corpus_bleu,
    format_scores,
    mean_scores,
    retrieval_scores,
)

KS = (1, 2, 3, 5, 10)
ids = st.sampled_from([f"p{i}" for i in range(12)])


# Retrieval


def trec_scores(gold, retrieved, k):
    """Return the scores by trec_eval of the first k distinct ids; it ranks by score, and its MRR has no k."""
    distinct = [identity for i, identity in enumerate(retrieved) if identity not in retrieved[:i]]
    measures = {f"success.{k}", f"recall.{k}", f"ndcg_cut.{k}", "recip_rank"}
    evaluator = pytrec_eval.RelevanceEvaluator({"q": dict.fromkeys(gold, 1)}, measures)
    scores = evaluator.evaluate({"q": {identity: float(-rank) for rank, identity in enumerate(distinct[:k])}})["q"]
    return {
        f"hit@{k}": 100 * scores[f"success_{k}"],
        f"recall@{k}": 100 * scores[f"recall_{k}"],
        f"all@{k}": 100.0 * (scores[f"recall_{k}"] == 1),
        f"mrr@{k}": 100 * scores["recip_rank"],
        f"ndcg@{k}": 100 * scores[f"ndcg_cut_{k}"],
    }


@given(gold=st.sets(ids, min_size=1), retrieved=st.lists(ids, min_size=1, max_size=20))
def test_retrieval_scores_are_those_of_trec_eval(gold, retrieved):
    expected = {name: score for k in KS for name, score in trec_scores(gold, retrieved, k).items()}
    assert retrieval_scores(gold, retrieved, KS) == pytest.approx(expected)


def test_a_duplicate_counts_once_and_later_ids_move_up():
    assert retrieval_scores(["b"], ["a", "a", "b"], [2])["mrr@2"] == 50
    assert retrieval_scores(["a", "b"], ["a", "a", "b"], [2])["all@2"] == 100
    assert retrieval_scores(["a", "a", "b"], ["a"], [2])["recall@2"] == 50


def test_no_retrieved_passage_scores_0():
    assert retrieval_scores(["a"], [], [1, 3]) == {
        f"{n}@{k}": 0 for n in "hit recall all mrr ndcg".split() for k in (1, 3)
    }


def test_retrieval_scores_require_gold_and_cut_offs():
    with pytest.raises(ValueError, match="gold_ids: expected at least one"):
        retrieval_scores([], ["a"], [1])
    with pytest.raises(ValueError, match=r"ks: .*\[1, 0\]"):
        retrieval_scores(["a"], ["a"], [1, 0])


# Answers: EM and F1

ascii_texts = st.one_of(
    st.text(string.printable, max_size=30),
    st.lists(st.sampled_from("a A an The the. (cat) cat's cats don't 3.5 $5 _ - \t\n".split(" "))).map(" ".join),
)


def squad_words(text):
    """Return the words by SQuAD's rule, implemented differently: each word without punctuation, no articles."""
    words = "".join(character for character in text if character not in string.punctuation).lower().split()
    return [word for word in words if word not in {"a", "an", "the"}]


def squad_f1(predicted, expected):
    if not predicted or not expected:
        return float(predicted == expected)
    left, common = Counter(expected), 0
    for word in predicted:
        common += left[word] > 0
        left[word] -= 1
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall) if common else 0.0


@given(prediction=ascii_texts, references=st.lists(ascii_texts, min_size=1, max_size=3))
@example(prediction="at 5 a.m.", references=["$5 (am)"])
def test_em_and_f1_are_squad_s_on_ascii(prediction, references):
    words, expected = squad_words(prediction), [squad_words(reference) for reference in references]
    scores = answer_scores(prediction, references)
    assert scores["em"] == 100 * max(words == other for other in expected)
    assert scores["f1"] == pytest.approx(100 * max(squad_f1(words, other) for other in expected))


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("《北京大学》。", "北京大学"),
        ("“Zürich”…", "zürich"),
        ("القاهرة؟", "القاهرة"),
        ("दिल्ली।", "दिल्ली"),
        ("Zu\N{COMBINING DIAERESIS}rich", "Zürich"),
        ("ＮＨＫ １９５０年", "NHK 1950年"),
        ("北京 大学", "北京大学"),
    ],
)
def test_em_beyond_ascii(prediction, reference):
    scores = answer_scores(prediction, [reference])
    assert (scores["em"], scores["f1"]) == (100, 100)


def test_f1_of_unspaced_scripts_goes_by_characters():
    assert answer_scores("北京", ["北京大学"])["f1"] == pytest.approx(100 * 4 / 6)  # 2 of 2 and of 4
    assert answer_scores("iPhone手机", ["手机"])["f1"] == pytest.approx(100 * 4 / 5)  # iPhone is one word
    assert answer_scores("กา", ["กาแฟ"])["f1"] == pytest.approx(100 * 4 / 6)


# Answers: ROUGE

ROUGE = RougeScorer(["rouge1", "rouge2", "rougeL"])  # with its own tokenizer


@given(prediction=ascii_texts, references=st.lists(ascii_texts, min_size=1, max_size=3))
def test_rouge_is_rouge_score_s_own_on_ascii(prediction, references):
    scores = answer_scores(prediction, references)
    for name in ROUGE.rouge_types:
        expected = max(ROUGE.score(reference, prediction)[name].fmeasure for reference in references)
        assert scores[name] == pytest.approx(100 * expected)


@given(st.text(st.characters(max_codepoint=127)))
def test_length_is_in_words_of_rouge_score_on_ascii(text):
    assert answer_length(text) == len(ROUGE._tokenizer.tokenize(text))


def test_length_beyond_ascii():
    assert answer_length("हिन्दी भाषा") == 2
    assert answer_length("iPhone 手机，2024 年") == 5
    assert answer_length("すごーーい") == answer_length("パソコン屋") == 5
    assert answer_length("น้ำ ๑๒๓") == answer_length("นา ๑๒๓") == 3  # a letter with its marks is one, a number is one


def test_rouge_has_a_signature():
    assert ROUGE_SIGNATURE.startswith("refs:best|measure:f|case:lc|stem:no|tok:unicode|version:")


# Every script, every metric

HALVES = {  # two texts in each script, of at least four words or characters, that share no word
    "Latin": ("die Hauptstadt von Österreich", "liegt heute am schönen Fluss"),
    "Cyrillic": ("столица страны большой город", "стоит сегодня около реки"),
    "Greek": ("πρωτεύουσα της Ελλάδας είναι", "κοντά στην θάλασσα σήμερα"),
    "Arabic": ("عاصمة مصر مدينة القاهرة", "تقع اليوم قرب النهر"),
    "Devanagari": ("भारत की राजधानी दिल्ली", "नदी के पास बसी"),
    "Hangul": ("한국의 수도는 큰 도시", "오늘 강가에 있는 마을"),
    "Han": ("北京大学", "坐落河边"),
    "Japanese": ("東京タワー", "はやくみえる"),
    "Thai": ("กรุงเทพ", "สวยดีมาแล้ว"),
    "Lao": ("ວຽງຈັນ", "ດີຫຼາຍ"),
    "Khmer": ("ភ្នំពេញ", "ទីក្រុង"),
    "Myanmar": ("ရန်ကုန်မြို့", "သည်ဟာလှပ"),
}


@pytest.mark.parametrize("script", HALVES)
def test_the_same_text_scores_100_in_every_script(script):
    text = " ".join(HALVES[script])
    assert answer_scores(text, [text]) == dict.fromkeys(["em", "f1", "rouge1", "rouge2", "rougeL"], 100)
    assert corpus_bleu([text], [[text]]).score == pytest.approx(100)


@pytest.mark.parametrize("script", HALVES)
def test_half_of_a_text_scores_between_and_another_text_0(script):
    first, second = HALVES[script]
    for name, score in answer_scores(first, [f"{first} {second}"]).items():
        assert score == 0 if name == "em" else 0 < score < 100
    assert 0 < corpus_bleu([first], [[f"{first} {second}"]]).score < 100
    assert set(answer_scores(first, [second]).values()) == {0}


# Answers: empty ones, references


@pytest.mark.parametrize("prediction", ["", " \n", "...", "。"])
def test_an_empty_prediction_scores_0(prediction):
    assert set(answer_scores(prediction, ["Paris", "巴黎"]).values()) == {0}
    assert corpus_bleu([prediction], [["the city of Paris"]]).score == 0
    assert answer_length(prediction) == 0


def test_an_empty_prediction_matches_a_reference_without_words():
    scores = answer_scores("", ["Paris", "The"])
    assert (scores["em"], scores["f1"], scores["rouge1"]) == (100, 100, 0)


def test_each_score_uses_its_best_reference():
    answer, near, far = "one two three four", "one two three four five", "four three two one"
    alone = [answer_scores(answer, [reference]) for reference in (near, far)]
    assert alone[0]["rougeL"] > alone[1]["rougeL"]
    assert alone[0]["f1"] < alone[1]["f1"]
    for references in ([near, far], [far, near]):
        assert answer_scores(answer, references) == {name: max(row[name] for row in alone) for name in alone[0]}


@pytest.mark.parametrize("references", [[], "Paris"])
def test_answers_require_a_list_of_references(references):
    with pytest.raises(ValueError, match="references: expected a list"):
        answer_scores("Paris", references)
    with pytest.raises(ValueError, match="references: expected a list"):
        corpus_bleu(["Paris", "Rome"], [["Paris"], references])


# BLEU

PREDICTIONS = ["The cat sat on the mat, today.", "Paris", "It is a nice day in the sun."]
FIRST = [
    "The cat sat on the mat.",
    "Paris, the capital of France, on the Seine",
    "It was a nice day outside in the sun.",
]
SECOND = ["Today the cat sat upon the mat.", "It is Paris.", "A nice day in the sun, it is."]


def sacrebleu_command(folder, predictions, *streams, tokenize):
    """Return score and signature of the command line; a stream contains one reference of each row."""
    for name, lines in {"predictions": predictions, **{str(i): s for i, s in enumerate(streams)}}.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = [str(i) for i in range(len(streams))]
    options = ["--input", "predictions", "--metrics", "bleu", "--tokenize", tokenize, "--width", "12"]
    command = [sys.executable, "-m", "sacrebleu", *files, *options]
    run = subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=60)
    result = json.loads(run.stdout)
    return result["score"], result["signature"]


@pytest.mark.parametrize(
    ("predictions", "streams", "tokenize"),
    [
        (PREDICTIONS, [FIRST], "13a"),
        (PREDICTIONS, [FIRST, SECOND], "13a"),
        (["我喜欢用PyTorch训练模型。"], [["我用PyTorch训练大模型。"], ["他喜欢训练模型の"]], "zh"),
        (["東京タワーは高いです。"], [["東京タワーはとても高いです。"]], "char"),
        (["กรุงเทพเป็นเมืองใหญ่"], [["กรุงเทพเป็นเมืองหลวง"]], "char"),
    ],
    ids=["one reference", "two references", "Chinese", "Japanese", "Thai"],
)
def test_bleu_is_that_of_sacrebleu_s_command(tmp_path, predictions, streams, tokenize):
    bleu = corpus_bleu(predictions, [list(row) for row in zip(*streams, strict=True)])
    score, signature = sacrebleu_command(tmp_path, predictions, *streams, tokenize=tokenize)
    assert 0 < score < 100
    assert (bleu.score, bleu.signature) == (pytest.approx(score), signature)
    assert f"|tok:{tokenize}|" in bleu.signature


def test_a_word_of_another_script_does_not_choose_the_tokenizer():
    assert "|tok:13a|" in corpus_bleu(["A cat is a 猫."], [["In Japanese, a cat is 猫 or ねこ."]]).signature


def test_the_tokenizer_can_be_chosen(tmp_path):
    bleu = corpus_bleu(PREDICTIONS, [[text] for text in FIRST], tokenize="char")
    score, signature = sacrebleu_command(tmp_path, PREDICTIONS, FIRST, tokenize="char")
    assert (bleu.score, bleu.signature) == (pytest.approx(score), signature)


def test_rows_may_have_different_numbers_of_references():
    """A repeated reference has no effect, so that it can fill up a row."""
    uneven = corpus_bleu(PREDICTIONS, [[FIRST[0], SECOND[0]], [FIRST[1]], [FIRST[2], SECOND[2]]])
    filled = corpus_bleu(PREDICTIONS, [[FIRST[0], SECOND[0]], [FIRST[1], FIRST[1]], [FIRST[2], SECOND[2]]])
    assert uneven.score == filled.score
    assert (uneven.signature[:10], filled.signature[:7]) == ("nrefs:var|", "nrefs:2")


@pytest.mark.parametrize(("predictions", "references"), [([], []), (["a", "b"], [["a"]]), (["a"], [["a"], ["b"]])])
def test_bleu_requires_as_many_references_as_predictions(predictions, references):
    with pytest.raises(ValueError, match=rf"got {len(predictions)} predictions and {len(references)} rows"):
        corpus_bleu(predictions, references)


# The table


def test_the_table_defines_answer_scores_labels_selection_and_log_line():
    assert list(answer_scores("a", ["a"])) == ["em", "f1", "rouge1", "rouge2", "rougeL"]  # the order in the files
    assert {name for name, is_higher in HIGHER_IS_BETTER.items() if not is_higher} == {"loss"}
    assert HIGHER_IS_BETTER.keys() == {"loss", "bleu", *answer_scores("a", ["a"])}
    assert list(LABELS)[:5] == ["recall@1", "recall@3", "recall@10", "bleu", "rougeL"]
    scores = {"f1": 12.345, "em": 0.5, "rouge2": 1, "loss": 2.0, "hit@3": 50, "recall@1": 25.0}
    assert format_scores(scores) == "loss 2  recall@1 25  em 0.5  f1 12.3"
    own = Metric("c", score=lambda answer, references: float(len(answer)))
    assert answer_scores("abc", ["x"], (*METRICS, own)) == {"c": 3.0} | answer_scores("abc", ["x"])


# Means


def test_order_of_rows_has_no_effect_on_means():
    numbers = random.Random(0)
    rows = [{"f1": 100 * numbers.random(), "em": 10 ** numbers.uniform(-8, 8)} for _ in range(1000)]
    means = mean_scores(rows)
    assert means == pytest.approx({name: sum(row[name] for row in rows) / 1000 for name in ("f1", "em")})
    for _ in range(5):
        numbers.shuffle(rows)
        assert mean_scores(rows) == means


def test_order_of_rows_has_no_effect_on_bleu():
    rows = list(zip(PREDICTIONS, [[FIRST[0], SECOND[0]], [FIRST[1]], [SECOND[2], FIRST[2]]], strict=True))
    scores = {corpus_bleu(*zip(*order, strict=True)) for order in (rows, rows[::-1], rows[1:] + rows[:1])}
    assert len(scores) == 1


def test_means_of_no_rows_and_of_unlike_rows():
    assert mean_scores([]) == {}
    with pytest.raises(ValueError, match=r"rows 0 and 2: .*'f1'"):
        mean_scores([{"em": 1.0}, {"em": 2.0}, {"em": 3.0, "f1": 4.0}])
    with pytest.raises(ValueError, match=r"rows 0 and 1: .*'f1'"):
        mean_scores([{"em": 1.0, "f1": 2.0}, {"em": 3.0}])


def test_slow_imports_are_deferred():
    code = "import sys, rqa.evaluation.metrics; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert not {"nltk", "sacrebleu", "torch"} & set(loaded.split())
