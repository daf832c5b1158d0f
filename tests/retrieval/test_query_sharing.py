"""share_queries: vectors, hits and spans of two processes are those of one, and each embeds a share."""

import pickle
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from world import PLACES, hand_over, passage, results_of, write_jsonl

from rqa.data.corpus import open_passages
from rqa.data.records import Example
from rqa.errors import InputError
from rqa.retrieval import query_sharing
from rqa.retrieval.encoder import Encoder
from rqa.retrieval.opening import open_retriever
from rqa.retrieval.retrieve import retrieve_splits

QUESTIONS = [f"When was the lamp of {place} lit{' again' * (i % 7)}?" for i, place in enumerate(PLACES * 3)]
BLOCK = 8


def test_blocks_hold_all_queries_once_the_longest_first(monkeypatch):
    monkeypatch.setattr(query_sharing, "BLOCK", BLOCK)
    blocks = query_sharing.query_blocks(QUESTIONS)
    places = [i for block in blocks for i in block]
    assert [len(block) for block in blocks] == [8, 8, 8, 8, 4]
    assert sorted(places) == [*range(len(QUESTIONS))]
    assert [len(QUESTIONS[i]) for i in places] == sorted(map(len, QUESTIONS), reverse=True)
    rows = np.array(places, np.float32)[:, None]
    np.testing.assert_array_equal(
        query_sharing.join_blocks(blocks, np.split(rows, [8, 16, 24, 32])), np.sort(rows, axis=0)
    )


def test_an_encoder_that_another_process_receives_loads_its_own_model(path):
    encoder = Encoder(path, device=torch.device("cpu"), query_prefix="q: ")
    expected = encoder.encode_queries(QUESTIONS)
    copy = pickle.loads(pickle.dumps(encoder))
    assert "model" not in vars(copy)
    np.testing.assert_array_equal(copy.encode_queries(QUESTIONS), expected)
    encoder.folder = Path("in the cache of another machine")
    assert pickle.loads(pickle.dumps(encoder)).folder == Path(path)


@pytest.mark.slow
def test_two_processes_retrieve_the_bytes_of_one(path, tmp_path):
    write_jsonl(tmp_path / "corpus.jsonl", [passage(place, number) for number, place in enumerate(PLACES * 2)])
    [alone] = results_of(__file__, folder_of(tmp_path, "one"), path, processes=1)
    main, other = results_of(__file__, folder_of(tmp_path, "two"), path, processes=2)
    assert main["vectors"] == alone["vectors"]
    assert main["hits"] == other["hits"] == alone["hits"]
    assert main["questions"] == alone["questions"] == {"embed": len(QUESTIONS), "search": len(QUESTIONS)}
    # Two splits, each after a first query: blocks are dealt in turn, and 4 of 36 are in the last.
    assert alone["embedded"] == [[8, 8, 8, 8, 4], [1], [8, 8, 8, 8, 4], [1], [1]]
    assert main["embedded"] == [[8, 8, 4], [1], [8, 8, 4], [1], [1]]
    assert other["embedded"] == [[8, 8], [], [8, 8], [], []]


def folder_of(tmp_path, name):
    (tmp_path / name).mkdir()
    return tmp_path / name


@pytest.mark.slow
def test_the_main_process_raises_the_error_of_each_process_and_goes_on(path, tmp_path):
    main, _ = results_of(__file__, tmp_path, path, "errors", processes=2)
    assert main == ["InputError: full", 36, "RuntimeError: MemoryError: full", 36] * 2


def retrieve_as_one_of_the_processes(path, out):
    passages, embedded, plain = open_passages(str(out.parent / "corpus.jsonl")), [], Encoder.encode_query_blocks

    def encode_query_blocks(self, blocks, num_queries):
        blocks = [*blocks]
        embedded.append([*map(len, blocks)])
        return plain(self, blocks, num_queries)

    Encoder.encode_query_blocks = encode_query_blocks
    accelerator, examples = Accelerator(cpu=True), [Example(str(i), text, ("",)) for i, text in enumerate(QUESTIONS)]
    with query_sharing.share_queries(accelerator, len(QUESTIONS)):
        if accelerator.is_main_process:
            vectors = Encoder(path, device=accelerator.device).encode_queries(QUESTIONS).tobytes()
    opened = partial(open_retriever, passages, path, out / "index", device=accelerator.device)
    first, second = retrieve_splits(accelerator, opened, passages, [examples, examples[:1]], 3)
    hits = [[(hit.passage.id, hit.score) for hit in hits] for hits in [*first.retrieved, *second.retrieved]]
    questions = {stage: int(times["questions"]) for stage, times in first.stages.items()}
    result = {"hits": hits, "questions": questions, "embedded": embedded}
    hand_over(result | ({"vectors": vectors} if accelerator.is_main_process else {}), out)


def fail_on_each_process(path, out):
    """Fail once on a rank: the main process raises the error, and embeds the next queries."""
    accelerator, plain, outcomes = Accelerator(cpu=True), Encoder.encode_query_blocks, []

    def fail_once(kind, *_):
        Encoder.encode_query_blocks = plain
        raise kind("full")

    for rank in range(2):
        for kind in (InputError, MemoryError):
            if accelerator.process_index == rank:
                Encoder.encode_query_blocks = partial(fail_once, kind)
            with query_sharing.share_queries(accelerator, len(QUESTIONS)):
                if accelerator.is_main_process:
                    encoder = Encoder(path, device=accelerator.device)
                    try:
                        encoder.encode_queries(QUESTIONS)
                    except (InputError, RuntimeError) as error:
                        outcomes.append(f"{type(error).__name__}: {error}")
                    outcomes.append(len(encoder.encode_queries(QUESTIONS)))
    hand_over(outcomes, out)


if __name__ == "__main__":
    query_sharing.MIN_SHARED, query_sharing.BLOCK = len(QUESTIONS), BLOCK
    run = fail_on_each_process if "errors" in sys.argv else retrieve_as_one_of_the_processes
    run(sys.argv[1], Path(sys.argv[-1]))
