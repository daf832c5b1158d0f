"""The measurements of benchmarks/: intervals, ratios, and the page that shows them."""

import random
from statistics import median

import pytest
from world import ROOT


@pytest.fixture(autouse=True)
def _benchmarks_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.mark.parametrize("repeats", [3, 5, 6, 9, 12])
def test_an_interval_encloses_the_true_median_as_often_as_its_level(repeats):
    from measure import estimate

    draw, trials = random.Random(0), 4000
    hits = 0
    for _ in range(trials):
        each = estimate([draw.expovariate(1) for _ in range(repeats)])
        hits += each.low <= 0.6931 <= each.high  # ln 2
    assert hits / trials == pytest.approx(each.level, abs=0.02)
    assert each.level >= 0.95 or repeats < 6


def test_a_ratio_is_that_of_one_round():
    from measure import Question

    ours, peers = [1.0, 10.0, 4.0], [3.0, 20.0, 4.0]
    rounds = [{"rqa": {"seconds": a}, "peer": {"seconds": b}} for a, b in zip(ours, peers, strict=True)]
    question = Question("name", "title", "rqa", {}, {"threads": 1}, rounds)
    assert question.ratio("peer", "seconds").median == median(b / a for a, b in zip(ours, peers, strict=True)) == 2.0
    assert question.ratio("peer", "seconds").high == 3.0


def test_every_round_starts_with_another_way(monkeypatch):
    import measure

    order = []

    class Done:
        returncode, stdout = 0, '{"seconds": 1}'

    monkeypatch.setattr(measure.subprocess, "run", lambda command, **_: order.append(command[0]) or Done)
    rounds = [measure.run_round({"a": ["a"], "b": ["b"], "c": ["c"]}, number) for number in range(3)]
    assert order == [*"abcbcacab"]
    assert [[*each] for each in rounds] == [["a", "b", "c"]] * 3


def test_the_numbers_of_the_pages_are_those_of_the_results():
    from summary import PAGES, filled

    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        assert filled(page) == page, "run python benchmarks/summary.py"


def test_an_aim_is_reached_by_the_median_of_its_ratio(monkeypatch):
    from summary import Aim, Question

    rounds = [{"rqa": {"seconds": 1.0}, "peer": {"seconds": value}} for value in (2.0, 2.5, 9.0)]
    monkeypatch.setattr(Question, "read", lambda name: Question(name, "", "rqa", {}, {"threads": 1}, rounds))
    cells = [Aim("", "name", way, least).cell("fp32") for way, least in [("peer", 2.5), ("peer", 2.51), ("rqa", 1)]]
    assert cells == ["2.50 [2.00, 9.00], reached", "2.50 [2.00, 9.00], missed", "1.00 [1.00, 1.00], reached"]


def test_rounds_of_another_machine_are_not_kept(monkeypatch, tmp_path):
    import measure

    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    [args, fresh] = [measure.parser("", rounds=1).parse_args(flags) for flags in (["--keep"], [])]
    first = measure.new_question(args, "name", "title", "rqa", {"dtype": "fp32"})
    measure.replace(first, rounds=[{"rqa": {"seconds": 1.0}}]).write()
    assert measure.new_question(args, "name", "title", "rqa", {"dtype": "fp32"}).rounds == [{"rqa": {"seconds": 1.0}}]
    assert measure.new_question(fresh, "name", "title", "rqa", {"dtype": "fp32"}).rounds == []
    monkeypatch.setattr(measure.torch, "get_num_threads", lambda: 64)
    with pytest.raises(SystemExit, match="--keep: expected the machine of"):
        measure.new_question(args, "name", "title", "rqa", {"dtype": "fp32"})


def test_rows_of_a_round_are_blocks_of_similar_length():
    from rows import blocks_of_round

    draw = random.Random(0)
    lengths = sorted((draw.randrange(50, 2000) for _ in range(1024)), reverse=True)
    rounds, means = set(), []
    for number in range(16):
        chosen = blocks_of_round(lengths, 4, number)
        assert len(chosen) == 8
        assert chosen == sorted(chosen, reverse=True)
        rounds.add(tuple(chosen))
        means.append(sum(chosen) / len(chosen))
    assert len(rounds) == 16
    assert sum(means) / len(means) == pytest.approx(sum(lengths) / len(lengths), rel=0.1)
