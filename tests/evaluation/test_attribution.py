"""attribution: equals values from returned attention weights and from single losses."""

import json

import pytest
import torch
from accelerate import Accelerator
from closeness import close
from seq2seq_tokenizers import TOKENIZERS
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
INPUTS = [
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
    """Return the shares from the weights after the softmax: log(weight) is the score minus a constant."""
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
    shares = cross_attention(FusionInDecoder(model), **batch)
    close(shares, from_weights(model, batch))
    close(shares.sum(1), torch.ones(3))
    assert shares.std() > 0.01


def test_order_padding_and_batch_have_no_effect(family):
    fid, batch = FusionInDecoder(seq2seq(family).eval()), passages()
    shares = cross_attention(fid, **batch)
    order = [2, 0, 3, 1]
    close(cross_attention(fid, **{name: tensor[:, order] for name, tensor in batch.items()}), shares[:, order])
    close(cross_attention(fid, **passages(length=40)), shares)
    alone = [cross_attention(fid, **{name: tensor[i : i + 1] for name, tensor in batch.items()}) for i in range(3)]
    close(torch.cat(alone), shares)


def test_the_model_is_not_changed(family):
    model, batch = seq2seq(family).eval(), random_passages(LENGTHS, [3, 1, 2])
    fid, own = FusionInDecoder(model), model.get_decoder().config._attn_implementation
    losses = fid(**batch)
    cross_attention(fid, batch["input_ids"], batch["attention_mask"])
    assert model.get_decoder().config._attn_implementation == own
    assert fid(**batch).equal(losses)


def test_a_single_token_has_the_whole_share():
    batch = {"input_ids": torch.full((2, 1, 1), 7), "attention_mask": torch.ones(2, 1, 1, dtype=torch.long)}
    assert cross_attention(FusionInDecoder(seq2seq().eval()), **batch).tolist() == [[1], [1]]


def test_each_input_has_one_share_per_passage():
    collator = ParallelCollator(PassagePromptBuilder(TOKENIZERS["closing_tokenizer"]()))
    fid, accelerator = FusionInDecoder(seq2seq().eval()), Accelerator(cpu=True)
    results = CrossAttention(accelerator, fid, collator, batch_size=3)(INPUTS)
    for item, shares in zip(INPUTS, results, strict=True):
        alone = cross_attention(fid, **collator.collate_prompts(collator.encode([item])))[0].tolist()
        assert shares == pytest.approx(alone[: len(item.passages)], rel=1e-4)


def models():
    fid = FusionInDecoder(seq2seq().eval()), ParallelCollator(PassagePromptBuilder(TOKENIZERS["closing_tokenizer"]()))
    collator = ConcatenatedCollator(builder("chatml's template"))
    lm = decoder().eval()
    lm.resize_token_embeddings(max(VOCABULARY, len(collator.builder.tokenizer)))
    return {"fid": fid, "decoder": (AnswerLM(lm), collator)}


@pytest.mark.parametrize("kind", ["fid", "decoder"])
def test_leaving_one_out_is_the_difference_of_two_losses(kind):
    model, collator = models()[kind]
    loss = AnswerLoss(Accelerator(cpu=True), model, collator, batch_size=3)
    increases = leave_one_out(loss, INPUTS)
    assert [len(values) for values in increases] == [2, 0, 3, 1]
    for item, values in zip(INPUTS, increases, strict=True):
        whole = model(**collator([item])).item()
        for place, value in enumerate(values):
            rest = [passage for i, passage in enumerate(item.passages) if i != place]
            without = model(**collator([GeneratorInput.from_ranked(item.example, rest, item.answer)])).item()
            assert value == pytest.approx(without - whole, rel=1e-3, abs=1e-4)
    assert len({round(value, 3) for values in increases for value in values}) == 6


def test_share_on_gold_counts_positive_values():
    assert share_on_gold([3.0, 1.0, -7.0], [True, False, False]) == 0.75
    assert share_on_gold([3.0, 1.0, -7.0], [False, True, True]) == 0.25
    assert share_on_gold([0.2, 0.5, 0.3], [True, False, True]) == pytest.approx(0.5)
    assert share_on_gold([-1.0, 0.0], [True, True]) == 0.0


@pytest.mark.slow
def test_evaluation_writes_attributions(tmp_path, monkeypatch):
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
    results = []
    for processes in (1, 2):
        out = tmp_path / f"by {processes}"
        launch("evaluate.py", flags | {"--output_dir": str(out)}, by=torchrun(2) if processes == 2 else ())
        rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
        results.append((rows, json.loads((out / "score.json").read_text())))
    (rows, score), (rows_of_two, score_of_two) = results
    assert score["metrics"] == pytest.approx(score_of_two["metrics"], rel=1e-4)
    shares = []
    for row, other in zip(rows, rows_of_two, strict=True):
        parts = row["attribution"]
        assert [(part["id"], part["is_gold"]) for part in parts] == [
            (passage["id"], passage["is_gold"]) for passage in row["passages"][:3]
        ]
        assert sum(part["cross_attention"] for part in parts) == pytest.approx(1)
        for part, same in zip(parts, other["attribution"], strict=True):
            assert part.pop("id") == same.pop("id")
            assert part == pytest.approx(same, rel=1e-3, abs=1e-4)
        if any(part["is_gold"] for part in parts):
            shares.append(sum(part["cross_attention"] for part in parts if part["is_gold"]))
    assert score["examples_that_read_gold"] == len(shares) > 0
    assert score["metrics"]["cross_attention_on_gold"] == pytest.approx(100 * sum(shares) / len(shares))


def test_attribution_requires_a_generator(tmp_path):
    flags = {"--embedding_model_name_or_path": "any", "--document_path": "any", "--index_path": "any"}
    flags |= {"--eval_data_path": "any", "--output_dir": str(tmp_path / "never"), "--attribution": "leave_one_out"}
    assert "--attribution leave_one_out: expected --model_name_or_path" in launch("evaluate.py", flags, expect=2)


def test_cross_attention_requires_fusion_in_decoder(tmp_path):
    flags = {"--qa_model_name_or_path": "any", "--eval_data_path": "any", "--output_dir": str(tmp_path / "never")}
    printed = launch("evaluate.py", {**flags, "--attribution": "both"}, expect=2)
    assert "--attribution both: " in printed
