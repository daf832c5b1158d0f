"""exchange_lists: each rank receives what every rank sent to it."""

import sys
from pathlib import Path

import pytest
from accelerate import Accelerator
from world import hand_over, results_of

from rqa.distributed.accelerator import exchange_lists
from rqa.prompts.collators import EncodedExample

PROCESSES = 3


def sent(source, reader):
    """Return lists of different lengths, some of them empty."""
    return [EncodedExample([[source, reader, 100_000 + i]], [7] * i) for i in range((source + 2 * reader) % 4)]


def plain(rows):
    return [(row.prompts, row.answer) for row in rows]


def test_a_single_process_receives_its_own_list():
    assert exchange_lists([[1, "a"]]) == [[1, "a"]]


@pytest.mark.slow
def test_each_rank_receives_what_every_rank_sent_to_it(tmp_path):
    received = results_of(__file__, tmp_path, processes=PROCESSES)
    assert received == [[plain(sent(source, reader)) for source in range(PROCESSES)] for reader in range(PROCESSES)]
    assert {len(rows) for rows in received[0]} >= {0, 1, 2}


if __name__ == "__main__":
    rank = Accelerator(cpu=True).process_index
    received = exchange_lists([sent(rank, reader) for reader in range(PROCESSES)])
    assert all(isinstance(row, EncodedExample) for rows in received for row in rows)
    hand_over([plain(rows) for rows in received], Path(sys.argv[1]))
