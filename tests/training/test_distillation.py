"""distillation: the loss of a few lines of numpy, the reader's passages alone, refused files, and the whole loop."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from retriever_steps import assert_two_processes_equal_two_micro_batches
from tiny_models import save_encoder
from tiny_seq2seq import save_seq2seq
from world import launch, read_jsonl, write_jsonl

from rqa.data.corpus import open_passages
from rqa.data.records import Example, Passage
from rqa.errors import InputError
from rqa.evaluation.results import PassageRecord, PredictionRecord, write_predictions
from rqa.retrieval.encoder import Encoder
from rqa.training.contrastive import ContrastiveEncoder
from rqa.training.distillation import DistillationCollator, read_teacher

CPU = torch.device("cpu")
P = [Passage(f"the lamp of {name} shines {'very ' * i}far", name) for i, name in enumerate("abcdefg")]
EXAMPLES = [Example(f"t:{i}", f"where is the lamp {'now ' * i}?", ("x",)) for i in range(3)]
READ = [[0, 1, 2, 3], [4, 1], [5, 0, 6]]  # questions 0 and 1, and 0 and 2, share a passage
NATS = [[3.5, 0.5, -1.0, 0.0], [0.25, 2.0], [-0.5, 0.0, 6.0]]
SHARES = [[0.4, 0.1, 0.3, 0.2], [0.25, 0.75], [0.0, 0.5, 0.5]]


def prediction(i, **changes):
    """Return the prediction of question i, which retrieved one more passage than it read."""
    rows = [PassageRecord(P[j].id, P[j].title, P[j].text, (), 0.5, False) for j in [*READ[i], (READ[i][-1] + 1) % 7]]
    parts = [
        {"id": P[j].id, "is_gold": False, "leave_one_out": nats, "cross_attention": share}
        for j, nats, share in zip(READ[i], NATS[i], SHARES[i], strict=True)
    ]
    record = PredictionRecord(
        id=f"t:{i}",
        question=EXAMPLES[i].question,
        passages=tuple(rows),
        num_passages_read=len(READ[i]),
        attribution=tuple(parts),
    )
    return replace(record, **changes)


def only(record, *names):
    """Return the prediction with these attributions."""
    kept = ("id", "is_gold", *names)
    return replace(record, attribution=tuple({name: part[name] for name in kept} for part in record.attribution))


def written(folder, *records):
    write_predictions(folder / "predictions.jsonl", records or [prediction(i) for i in range(3)])
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    prompts = {"query": "q: ", "document": "d: "}
    return save_encoder(tmp_path_factory.mktemp("distillation") / "sentences", prompts=prompts)


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    """The training computes in float32; some CPUs embed passages in bfloat16."""
    monkeypatch.setattr("rqa.retrieval.encoder.bf16_is_fast", lambda device: False)


def losses(checkpoint, teacher, examples=EXAMPLES, **options):
    encoder = Encoder(checkpoint, device=CPU)
    collator = DistillationCollator(encoder, teacher)
    model = ContrastiveEncoder(encoder, **options).eval()
    return model, model(**collator.collate(collator.encode(0, examples)))


def softmax(values):
    powers = np.exp(np.asarray(values, float) - np.max(values))
    return powers / powers.sum()


@pytest.mark.parametrize("scores", ["leave_one_out", "cross_attention"])
@pytest.mark.parametrize(("teacher_temperature", "temperature"), [(1.0, 0.05), (0.5, 1.0), (4.0, 0.2)])
def test_the_loss_is_that_of_numpy(checkpoint, tmp_path, scores, teacher_temperature, temperature):
    """One batch has questions of 4, 2 and 3 passages, 2 of them shared."""
    teacher = read_teacher(written(tmp_path), EXAMPLES, scores=scores, temperature=teacher_temperature)
    _, nll = losses(checkpoint, teacher, temperature=temperature)
    encoder = Encoder(checkpoint, device=CPU)
    for i, example in enumerate(EXAMPLES):
        powers = np.asarray(SHARES[i]) ** (1 / teacher_temperature)
        target = softmax(np.asarray(NATS[i]) / teacher_temperature) if scores == "leave_one_out" else powers
        target = target / target.sum()
        assert teacher.lessons[example.id].shares == pytest.approx(target)
        [query] = encoder.encode_queries([example.question])
        own = softmax(encoder.encode_passages([P[j] for j in READ[i]]) @ query / temperature)
        divergence = sum(t * math.log(t / s) for t, s in zip(target, own, strict=True) if t)
        assert nll[i].item() == pytest.approx(divergence, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_cache_changes_no_gradient_and_a_batch_is_its_questions(checkpoint, tmp_path, size):
    teacher = read_teacher(written(tmp_path), EXAMPLES, scores="leave_one_out")
    gradients = []
    for examples, mini_batch_size in (([[one] for one in EXAMPLES], None), ([EXAMPLES], None), ([EXAMPLES], size)):
        model = None
        total = {}
        for part in examples:
            model, nll = losses(checkpoint, teacher, part, mini_batch_size=mini_batch_size)
            nll.sum().backward()
            for name, p in model.named_parameters():
                if p.grad is not None:
                    total[name] = total.get(name, 0) + p.grad
        gradients.append(total)
    alone, plain, cached = gradients
    assert alone.keys() == plain.keys() == cached.keys()
    assert max(float(gradient.abs().max()) for gradient in plain.values()) > 0.1
    for name, gradient in plain.items():
        torch.testing.assert_close(alone[name], gradient, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(cached[name], gradient, rtol=1e-5, atol=1e-5)


def test_a_batch_without_rows_has_no_loss(checkpoint, tmp_path):
    teacher = read_teacher(written(tmp_path), EXAMPLES, scores="leave_one_out")
    _, nll = losses(checkpoint, teacher, [])
    assert nll.tolist() == [0.0]
    nll.sum().backward()


def test_only_what_the_reader_read_and_can_compare_is_taught(tmp_path, caplog):
    """The prompt had room for 2 of the 4 passages of question 0; question 1 read one; question 2 has no reference."""
    unscored = [{**part, "leave_one_out": math.nan} for part in prediction(2).attribution]
    records = [prediction(0, num_passages_read=2), prediction(1, num_passages_read=1)]
    examples = [*EXAMPLES, Example("t:9", "one more", ("x",))]
    records.append(prediction(2, attribution=tuple(unscored)))
    teacher = read_teacher(written(tmp_path, *records), examples, scores="leave_one_out")
    assert [*teacher.lessons] == ["t:0"]
    assert teacher.lessons["t:0"].passages == (P[0], P[1])
    assert teacher.lessons["t:0"].shares == pytest.approx(softmax(NATS[0][:2]))
    for reason in ("fewer than 2 passages", "without finite scores", "without a prediction"):
        assert f"1 question {reason}" in caplog.text.replace("with fewer", "fewer")


def test_the_one_attribution_is_the_default_and_the_fingerprint_is_that_of_the_lessons(tmp_path):
    records = [only(prediction(i), "cross_attention") for i in range(3)]
    teacher = read_teacher(written(tmp_path, *records) / "predictions.jsonl", EXAMPLES)
    assert teacher.lessons["t:0"].shares == pytest.approx(SHARES[0])
    again = read_teacher(written(tmp_path), EXAMPLES, scores="cross_attention")
    assert again.fingerprint == teacher.fingerprint
    assert read_teacher(tmp_path, EXAMPLES, scores="leave_one_out").fingerprint != teacher.fingerprint


@pytest.mark.parametrize(
    ("records", "scores", "words"),
    [
        ([prediction(0, attribution=None)], None, ("--attribution", "none")),
        ([prediction(0)], None, ("--teacher_scores", "leave_one_out", "cross_attention")),
        ([only(prediction(0), "leave_one_out")], "cross_attention", ("--teacher_scores", "cross_attention")),
        ([prediction(0, id="other:1")], "leave_one_out", ("--train_file", "1 of 1", "other:1")),
        ([prediction(0), prediction(1, question="who?")], "leave_one_out", ("--train_file", "1", "t:1")),
        ([prediction(0, num_passages_read=1)], "leave_one_out", ("leave_one_out", "2 passages")),
        (
            [prediction(0, passages=tuple(replace(row, text="changed") for row in prediction(0).passages))],
            "leave_one_out",
            ("t:0", P[0].id),
        ),
    ],
)
def test_invalid_predictions_name_the_problem(tmp_path, records, scores, words):
    with pytest.raises(InputError) as refused:
        read_teacher(written(tmp_path, *records), EXAMPLES, scores=scores)
    assert all(word in str(refused.value) for word in (*words, str(tmp_path)))


def test_a_missing_file_and_another_corpus_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"predictions\.jsonl"):
        read_teacher(tmp_path / "none", EXAMPLES)
    rows = [{"page_content": passage.text} for passage in P[:6]]
    corpus = open_passages(write_jsonl(tmp_path / "corpus.jsonl", rows))
    with pytest.raises(InputError, match="--full_dataset_file_path, got 1 of 7"):
        read_teacher(written(tmp_path), EXAMPLES, scores="leave_one_out", passages=corpus)


# The loop: evaluate the reader on the training file, train the retriever, compare


def evaluated(world, folder, generator):
    """Return the evaluation of the training file, and the train file without its gold passages."""
    flags = {
        **generator, "--embedding_model": world.encoder, "--full_dataset_file_path": world.corpus,
        "--full_dataset_index_path": str(folder / "index"), "--test_file": world.train, "--bf16": "false",
        "--max_new_tokens": "4", "--output_dir": str(folder / "reader"),
    }  # fmt: skip
    launch("evaluate.py", flags)
    return str(folder / "reader")


def training_flags(world, folder, teacher):
    return {
        "--embedding_model": world.encoder, "--train_file": world.train, "--teacher": teacher,
        "--test_file": world.test, "--full_dataset_file_path": world.corpus,
        "--full_dataset_index_path": str(folder / "index"), "--per_device_train_batch_size": "5",
        "--mini_batch_size": "4", "--learning_rate": "1e-3", "--num_train_epochs": "4", "--save_steps": "2",
        "--save_total_limit": "9", "--bf16": "false",
    }  # fmt: skip


def generators(world, folder):
    decoder = {"--model_name_or_path": world.model, "--attribution": "leave_one_out"}
    fid = {"--model_name_or_path": save_seq2seq(folder / "seq2seq"), "--qa_is_fid": "true"}
    return {
        "decoder": decoder,
        "reference": {**decoder, "--attribution": "leave_one_out_reference"},
        "fid": {**fid, "--attribution": "cross_attention"},
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["decoder", "fid", "reference"])
def test_the_loop_trains_resumes_and_compares(world, tmp_path, kind):
    teacher = evaluated(world, tmp_path, generators(world, tmp_path)[kind])
    flags, run, again = training_flags(world, tmp_path, teacher), tmp_path / "run", tmp_path / "again"
    launch("retriever_contrastive.py", {**flags, "--output_dir": str(run)})
    steps = [row for row in read_jsonl(run / "metrics.jsonl") if "loss" in row]
    assert len(steps) == 12
    assert sum(row["loss"] for row in steps[-3:]) < sum(row["loss"] for row in steps[:3])
    assert all(row["loss"] >= 0 for row in steps)
    printed = launch("compare.py", {str(run / "before"): str(run / "after")})
    assert "recall@1" in printed.lower()
    resumed = {**flags, "--output_dir": str(again), "--resume_from_checkpoint": str(run / "checkpoints/step-00000004")}
    launch("retriever_contrastive.py", resumed)
    for name in ("metrics.jsonl", "model/model.safetensors", "after/predictions.jsonl"):
        assert (again / name).read_bytes() == (run / name).read_bytes(), name
    _change_a_score(Path(teacher))
    refused = launch("retriever_contrastive.py", {**resumed, "--output_dir": str(tmp_path / "third")}, expect=2)
    assert "--teacher" in refused


def _change_a_score(folder):
    rows = read_jsonl(folder / "predictions.jsonl")
    part = rows[-1]["attribution"][0]
    [name] = part.keys() - {"id", "is_gold"}
    part[name] += 0.5
    write_jsonl(folder / "predictions.jsonl", rows)


@pytest.mark.slow
def test_two_processes_compute_the_steps_of_two_micro_batches(world, tmp_path):
    teacher = evaluated(world, tmp_path, generators(world, tmp_path)["decoder"])
    names = ("--train_file", "--teacher", "--mini_batch_size", "--learning_rate", "--bf16")
    own = {name: training_flags(world, tmp_path, teacher)[name] for name in names}
    assert_two_processes_equal_two_micro_batches(world.encoder, own, tmp_path)
