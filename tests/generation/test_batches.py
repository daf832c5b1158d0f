"""map_batches: the results of a plain loop, in order, on every rank, after equally many calls on every rank."""

import sys
from itertools import product
from pathlib import Path

import pytest
from accelerate import Accelerator
from world import hand_over, results_of

from rqa.generation.batches import map_batches
from rqa.timing import Stopwatch, record_spans

CASES = [*product([0, 1, 2, 5, 24], [1, 4, 30])]  # numbers of rows, batch sizes


def rows_of(number):
    """Return rows of few lengths, so that some are of equal length, out of order."""
    return [[i] * (1 + i * 7 % 5) for i in range(number)]


def batches_of(rows, batch_size):
    longest_first = sorted(rows, key=len, reverse=True)  # stable
    return [longest_first[i : i + batch_size] for i in range(0, len(rows), batch_size)]


def run(accelerator, rows, batch_size, **options):
    """Return the results, the batches of this rank, and the number of rows in the recorded spans."""
    batches = []

    def function(batch):
        watch = Stopwatch()
        batches.append(batch)
        watch.lap("decode", len(batch))
        return [f"result {row}" for row in batch]

    with record_spans() as spans:
        results = map_batches(accelerator, rows, function, batch_size=batch_size, **options)
    return results, batches, sum(span.questions for span in spans)


@pytest.mark.parametrize(("number", "batch_size"), CASES)
def test_one_process_equals_a_plain_loop(number, batch_size):
    rows = rows_of(number)
    results, batches, num_timed = run(Accelerator(cpu=True), rows, batch_size)
    assert results == [f"result {row}" for row in rows]
    assert batches == batches_of(rows, batch_size)
    assert num_timed == number


def test_batches_are_sorted_by_the_given_length():
    rows = [3, 1, 2, 5, 4]
    results, batches, _ = run(Accelerator(cpu=True), rows, 2, length=lambda row: row)
    assert batches == [[5, 4], [3, 2], [1]]
    assert results == [f"result {row}" for row in rows]


def test_a_result_is_required_for_each_row():
    with pytest.raises(ValueError, match="argument"):
        map_batches(Accelerator(cpu=True), rows_of(3), lambda batch: batch[1:], batch_size=2)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_more_ranks_have_the_results_of_one_after_equally_many_calls(tmp_path, num_ranks):
    ranks = results_of(__file__, tmp_path, processes=num_ranks)
    for i, (number, batch_size) in enumerate(CASES):
        rows = rows_of(number)
        expected = batches_of(rows, batch_size)
        expected += expected[-1:] * (-len(expected) % num_ranks)  # repeated, and not timed
        for rank in range(num_ranks):
            results, batches, num_timed = ranks[rank][i]
            assert results == [f"result {row}" for row in rows]
            assert batches == expected[rank::num_ranks]
            assert num_timed == number


if __name__ == "__main__":
    accelerator = Accelerator(cpu=True)
    hand_over([run(accelerator, rows_of(number), batch_size) for number, batch_size in CASES], Path(sys.argv[-1]))
