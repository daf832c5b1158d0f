"""timing: with a clock that counts the work, each part of it is attributed to its stage."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from retrieving import retrieve_with
from tiny_generation import INPUTS, generator, language_model
from tiny_models import save_encoder
from tiny_seq2seq import closing_tokenizer, seq2seq
from world import PLACES, hand_over, passage, results_of, write_jsonl

from rqa.data.corpus import open_passages
from rqa.generation.generator import Generator
from rqa.models.fid import FusionInDecoder
from rqa.prompts.collators import ParallelCollator
from rqa.prompts.fid_prompt import PassagePromptBuilder
from rqa.retrieval.opening import open_retriever
from rqa.timing import Span, Stopwatch, environment, record_spans, summarize_spans

SPANS = [Span("prefill", 0.4, 3, 60), Span("decode", 1.2, 3, 9), Span("prefill", 0.1, 1, 15), Span("decode", 0.3, 1, 3)]


@pytest.fixture
def ticks(monkeypatch):
    """A clock that counts the items of this list."""
    ticks = []
    monkeypatch.setattr("rqa.timing.time.perf_counter", lambda: float(len(ticks)))
    return ticks


def seconds(spans, stage):
    return [span.seconds for span in spans if span.stage == stage]


def totals(spans, stage):
    chosen = [span for span in spans if span.stage == stage]
    return sum(span.questions for span in chosen), sum(span.tokens for span in chosen)


# Numbers


def test_percentiles_are_over_questions():
    stages = summarize_spans(SPANS)
    assert list(stages) == ["prefill", "decode"]
    assert stages["prefill"] == {
        "seconds": pytest.approx(0.5),
        "questions": 4,
        "batch": 3,
        "seconds_per_question": pytest.approx(0.125),
        "p50": pytest.approx(np.median([0.4, 0.4, 0.4, 0.1])),
        "p95": pytest.approx(np.percentile([0.4, 0.4, 0.4, 0.1], 95)),
        "tokens_per_second": pytest.approx(75 / 0.5),
    }
    assert "tokens_per_second" not in summarize_spans([Span("search", 0.1, 2)])["search"]
    assert summarize_spans([]) == {}


def test_queued_work_of_the_device_is_attributed_to_its_stage(monkeypatch):
    clock, queued = [0.0], []

    def synchronize():
        clock[0] += sum(queued)
        queued.clear()

    monkeypatch.setattr("rqa.timing.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "synchronize", synchronize)
    queued.append(100.0)  # before the watch
    with record_spans() as spans:
        watch = Stopwatch()
        queued.append(3.0)
        watch.lap("prefill", 1)
        queued.append(5.0)
        watch.lap("decode", 1)
    assert spans == [Span("prefill", 3.0, 1), Span("decode", 5.0, 1)]
    queued.append(1.0)
    Stopwatch().lap("decode", 1)
    assert (len(spans), queued) == (2, [1.0])  # without a recording the device is not synchronized


def test_environment_describes_the_accelerator():
    assert environment(Accelerator(cpu=True, mixed_precision="no"), 7) == {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "processes": 1,
        "precision": "fp32",
        "precision_of_queries": "fp32",
        "batch_size": 7,
    }


# Answers


def test_the_first_token_ends_the_prefill_of_a_decoder(ticks):
    lm = language_model()
    expected = generator(lm, 4)(INPUTS)
    lm.register_forward_hook(lambda *_: ticks.append("forward"))
    with record_spans() as spans:
        answers = generator(lm, 4)(INPUTS)
    assert answers == expected
    assert seconds(spans, "prefill") == [1, 1, 1]
    assert sum(seconds(spans, "decode")) == len(ticks) - 3
    assert totals(spans, "prompt") == totals(spans, "prefill") == (9, sum(a.num_prompt_tokens for a in answers))
    assert totals(spans, "decode") == (9, sum(answer.num_tokens - 1 for answer in answers))


def test_the_encoder_belongs_to_the_prefill_of_fusion_in_decoder(ticks):
    accelerator, builder = Accelerator(cpu=True, mixed_precision="no"), PassagePromptBuilder(closing_tokenizer())
    plain = seq2seq()
    plain.get_encoder().register_forward_hook(lambda *_: ticks.append("encoder"))
    plain.get_decoder().register_forward_hook(lambda *_: ticks.append("decoder"))
    model = accelerator.prepare(FusionInDecoder(plain))
    with record_spans() as spans:
        answers = Generator(accelerator, model, ParallelCollator(builder), 5, 6)(INPUTS)
    assert sum(seconds(spans, "prefill")) == ticks.count("encoder") + 2
    assert sum(seconds(spans, "decode")) == ticks.count("decoder") - 2
    assert totals(spans, "prefill") == (9, sum(answer.num_prompt_tokens for answer in answers))


def test_a_cached_prompt_is_built_again_when_it_is_timed(ticks, monkeypatch):
    generate = generator(language_model(), 4)
    make = generate.collator._encode
    monkeypatch.setattr(generate.collator, "_encode", lambda item: (ticks.append("prompt"), make(item))[1])
    with record_spans() as first:
        generate(INPUTS)
    with record_spans() as second:
        generate(INPUTS)
    assert seconds(first, "prompt") == seconds(second, "prompt") == [1] * 9
    assert len(ticks) == 18
    assert generate(INPUTS) == generate(INPUTS)
    assert len(ticks) == 18  # cached if no spans are recorded


def spans_of_a_process():
    """Return the spans of answers to all inputs, and to one input."""
    runs = []
    for inputs in (INPUTS, INPUTS[:1]):
        with record_spans() as spans:
            generator(language_model(), 2)(inputs)
        runs.append([(span.stage, span.questions, span.tokens) for span in spans if span.stage != "prompt"])
    return runs


@pytest.mark.slow
def test_every_process_has_the_spans_of_all_and_repeated_batches_are_not_recorded(tmp_path):
    expected = [sorted(spans) for spans in spans_of_a_process()]
    for runs in results_of(__file__, tmp_path, processes=2):
        assert [sorted(spans) for spans in runs] == expected


# Retrieval


def test_a_retriever_without_spans_is_timed_as_a_whole(monkeypatch, tmp_path):
    class Slow:
        def retrieve(self, queries, k):
            return [[]] * len(queries) if k else []

        def fingerprint(self):
            return "slow"

    clock = iter([10.0, 12.5])
    monkeypatch.setattr("rqa.retrieval.retrieve.time.perf_counter", lambda: next(clock))
    hits = retrieve_with(Slow(), [item.example for item in INPUTS[:5]], INPUTS[1].passages, 3, tmp_path)
    assert hits.stages == summarize_spans([Span("retrieve", 2.5, 5)])


def test_embedding_and_search_are_timed_separately_by_batch(ticks, tmp_path, monkeypatch):
    passages = open_passages(write_jsonl(tmp_path / "corpus.jsonl", [passage(place, 1) for place in PLACES]))
    path, queries = save_encoder(tmp_path / "sentences"), [f"Where is {place}?" for place in PLACES[:7]]
    retriever = open_retriever(
        passages, path, tmp_path / "index", device=torch.device("cpu"), query_prefix="query: ", embedding_batch_size=3
    )
    monkeypatch.setattr("rqa.retrieval.dense.SEARCH_BATCH", 4)
    search = retriever.index.search
    monkeypatch.setattr(retriever.index, "search", lambda *args: (ticks.extend(["search"] * 2), search(*args))[1])
    retriever.encoder.model[0].register_forward_hook(lambda *_: ticks.append("embed"))
    with record_spans() as spans:
        retriever.retrieve(queries, 2)
    assert (seconds(spans, "embed"), seconds(spans, "search")) == ([1, 1, 1], [2, 2])
    lengths = [len(retriever.encoder.model.tokenizer(f"query: {query}").input_ids) for query in queries]
    assert totals(spans, "embed") == (7, sum(lengths))
    assert totals(spans, "search") == (7, 0)


if __name__ == "__main__":
    hand_over(spans_of_a_process(), Path(sys.argv[-1]))
