"""attribution: what an answer rests on, against attention as it is returned and losses taken one by one."""

import json

import pytest
import torch
from accelerate import Accelerator
from test_fid import close
from test_fid_prompts import TOKENIZERS
from tiny_models import VOCABULARY, decoder
from tiny_seq2seq import SEQ2SEQ, random_passages, save_seq2seq, seq2seq
from tiny_tokenizers import builder
from transformers.modeling_outputs import BaseModelOutput
from world import World, launch, torchrun

from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Passage
from rqa.evaluation.attribution import CrossAttention, cross_attention, leave_one_out, share_on_gold
from rqa.evaluation.evaluate import AnswerLoss
from rqa.models.decoder import AnswerLM
from rqa.models.fid import FusionInDecoder
from rqa.prompts.collators import ConcatenatedCollator, ParallelCollator
from rqa.prompts.fid_prompt import PassagePromptBuilder

LENGTHS = [[9, 4, 17, 6], [12, 5], [3, 20, 3]]
PASSAGES = (Passage("It was lit in 19.", "Lamp"), Passage("No title."), Passage("Cats and dogs."))
READINGS = [
    GeneratorInput.from_ranked(Example(f"{i}", f"Who {'?' * i}", ("The cat.",)), PASSAGES[:passages], "A cat.")
    for i, passages in enumerate((2, 0, 3, 1))
]


@pytest.fixture(params=SEQ2SEQ)
def family(request):
    return request.param


def passages(**options):
    batch = random_passages(LENGTHS, [1, 1, 1], **options)
    del batch["labels"]
    return batch


def from_weights(model, batch):
    """The same from the weights after the softmax: the logarithm of one is its score less what all of them share."""
    fid = FusionInDecoder(model)
    memory, mask = fid.encode(**batch)
    model.set_attn_implementation("eager")
    weights = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=memory),
        attention_mask=mask,
        decoder_input_ids=torch.full((len(memory), 1), fid.start_id),
        output_attentions=True,
    ).cross_attentions
    logs = torch.stack(weights)[:, :, :, 0].double().log().mean((0, 2))  # (B, M)
    shares = torch.zeros(batch["attention_mask"].shape[:2])
    for row, lengths in enumerate(LENGTHS):
        means = [part.mean() for part in logs[row, : sum(lengths)].split(lengths)]
        shares[row, : len(lengths)] = torch.stack(means).softmax(0)
    return shares


def test_cross_attention_is_that_of_the_formula(family):
    model, batch = seq2seq(family).eval(), passages()
    found = cross_attention(FusionInDecoder(model), **batch)
    close(found, from_weights(model, batch))
    close(found.sum(1), torch.ones(3))
    assert found.std() > 0.01


def test_order_padding_and_mates_change_no_share(family):
    fid, batch = FusionInDecoder(seq2seq(family).eval()), passages()
    shares = cross_attention(fid, **batch)
    order = [2, 0, 3, 1]
    close(cross_attention(fid, **{name: tensor[:, order] for name, tensor in batch.items()}), shares[:, order])
    close(cross_attention(fid, **passages(length=40)), shares)
    alone = [cross_attention(fid, **{name: tensor[i : i + 1] for name, tensor in batch.items()}) for i in range(3)]
    close(torch.cat(alone), shares)


def test_the_model_is_as_it_was(family):
    model, batch = seq2seq(family).eval(), random_passages(LENGTHS, [3, 1, 2])
    fid, own = FusionInDecoder(model), model.get_decoder().config._attn_implementation
    losses = fid(**batch)
    cross_attention(fid, batch["input_ids"], batch["attention_mask"])
    assert model.get_decoder().config._attn_implementation == own
    assert fid(**batch).equal(losses)


def test_one_token_has_all():
    batch = {"input_ids": torch.full((2, 1, 1), 7), "attention_mask": torch.ones(2, 1, 1, dtype=torch.long)}
    assert cross_attention(FusionInDecoder(seq2seq().eval()), **batch).tolist() == [[1], [1]]


def test_each_reading_has_a_share_for_each_of_its_passages():
    collator = ParallelCollator(PassagePromptBuilder(TOKENIZERS["closing_tokenizer"]()))
    fid, accelerator = FusionInDecoder(seq2seq().eval()), Accelerator(cpu=True)
    found = CrossAttention(accelerator, fid, collator, batch_size=3)(READINGS)
    for reading, shares in zip(READINGS, found, strict=True):
        alone = cross_attention(fid, **collator.prompts([reading]))[0].tolist()
        assert shares == pytest.approx(alone[: len(reading.passages)], rel=1e-4)


def readers():
    fid = FusionInDecoder(seq2seq().eval()), ParallelCollator(PassagePromptBuilder(TOKENIZERS["closing_tokenizer"]()))
    collator = ConcatenatedCollator(builder("chatml's template"))
    lm = decoder().eval()
    lm.resize_token_embeddings(max(VOCABULARY, len(collator.builder.tokenizer)))
    return {"fid": fid, "decoder": (AnswerLM(lm), collator)}


@pytest.mark.parametrize("kind", ["fid", "decoder"])
def test_leaving_one_out_is_the_difference_of_two_losses(kind):
    model, collator = readers()[kind]
    loss = AnswerLoss(Accelerator(cpu=True), model, collator, batch_size=3)
    found = leave_one_out(loss, READINGS)
    assert [len(values) for values in found] == [2, 0, 3, 1]
    for reading, values in zip(READINGS, found, strict=True):
        whole = model(**collator([reading])).item()
        for place, value in enumerate(values):
            rest = [passage for i, passage in enumerate(reading.passages) if i != place]
            without = model(**collator([GeneratorInput.from_ranked(reading.example, rest, reading.answer)])).item()
            assert value == pytest.approx(without - whole, rel=1e-3, abs=1e-4)
    assert len({round(value, 3) for values in found for value in values}) == 6


def test_the_share_on_gold_counts_what_speaks_for_the_answer():
    assert share_on_gold([3.0, 1.0, -7.0], [True, False, False]) == 0.75
    assert share_on_gold([3.0, 1.0, -7.0], [False, True, True]) == 0.25
    assert share_on_gold([0.2, 0.5, 0.3], [True, False, True]) == pytest.approx(0.5)
    assert share_on_gold([-1.0, 0.0], [True, True]) == 0.0


@pytest.mark.slow
def test_evaluation_writes_what_each_answer_rests_on(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    world = World.make(tmp_path)
    flags = {
        "--qa_model_name_or_path": save_seq2seq(tmp_path / "seq2seq"),
        "--qa_is_fid": "true",
        "--embedding_model_name_or_path": world.encoder,
        "--document_path": world.corpus,
        "--index_path": str(tmp_path / "index"),
        "--eval_data_path": world.test,
        "--batch_size": "2",
        "--max_new_tokens": "4",
        "--bf16": "false",
        "--attribution": "both",
    }
    found = []
    for processes in (1, 2):
        out = tmp_path / f"by {processes}"
        launch("evaluate.py", flags | {"--output_dir": str(out)}, by=torchrun(2) if processes == 2 else ())
        rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
        found.append((rows, json.loads((out / "score.json").read_text())))
    (rows, score), (rows_of_two, score_of_two) = found
    assert score["metrics"] == pytest.approx(score_of_two["metrics"], rel=1e-4)
    shares = []
    for row, other in zip(rows, rows_of_two, strict=True):
        parts = row["attribution"]
        assert [(part["id"], part["gold"]) for part in parts] == [
            (passage["id"], passage["gold"]) for passage in row["passages"][:3]
        ]
        assert sum(part["cross_attention"] for part in parts) == pytest.approx(1)
        for part, same in zip(parts, other["attribution"], strict=True):
            assert part.pop("id") == same.pop("id")
            assert part == pytest.approx(same, rel=1e-3, abs=1e-4)
        if any(part["gold"] for part in parts):
            shares.append(sum(part["cross_attention"] for part in parts if part["gold"]))
    assert score["examples_that_read_gold"] == len(shares) > 0
    assert score["metrics"]["cross_attention_on_gold"] == pytest.approx(100 * sum(shares) / len(shares))


def test_without_a_generator_there_is_nothing_to_attribute(tmp_path):
    flags = {"--embedding_model_name_or_path": "any", "--document_path": "any", "--index_path": "any"}
    flags |= {"--eval_data_path": "any", "--output_dir": str(tmp_path / "never"), "--attribution": "leave_one_out"}
    assert "without --qa_model_name_or_path there are no answers" in launch("evaluate.py", flags, expect=2)


def test_a_decoder_has_no_cross_attention(tmp_path):
    flags = {"--qa_model_name_or_path": "any", "--eval_data_path": "any", "--output_dir": str(tmp_path / "never")}
    printed = launch("evaluate.py", {**flags, "--attribution": "both"}, expect=2)
    assert "--attribution both: a decoder has no cross-attention" in printed
