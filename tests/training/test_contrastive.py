"""contrastive: the loss of a reference, the same gradients with a cache, the same vectors as the frozen encoder."""

import json

import pytest
import torch
from accelerate import Accelerator
from retriever_steps import assert_two_processes_equal_two_micro_batches
from tiny_models import save_encoder
from world import launch, read_jsonl

from rqa.cli.parser import parse_args
from rqa.cli.retriever_training_args import ContrastiveArgs
from rqa.cli.training_args import OptimizationArgs
from rqa.data.records import Example, Passage
from rqa.errors import InputError
from rqa.prompts.collators import IGNORE_INDEX
from rqa.retrieval.encoder import Encoder
from rqa.training.contrastive import ContrastiveCollator, ContrastiveEncoder, export_encoder

CPU = torch.device("cpu")
PASSAGES = [Passage(f"the lamp of {name} shines {'very ' * i}far", name) for i, name in enumerate("abcdefg")]
EXAMPLES = [
    Example("1", "where is a?", ("x",), (PASSAGES[0],), hard_negatives=(PASSAGES[3], PASSAGES[0], PASSAGES[1])),
    Example("2", "where is b, and since when is it there?", ("x",), (PASSAGES[1], PASSAGES[2])),
    Example("3", "c", ("x",), (PASSAGES[2],), hard_negatives=(PASSAGES[4], PASSAGES[5], PASSAGES[6])),
    Example("4", "again a", ("x",), (PASSAGES[0],), hard_negatives=(PASSAGES[3],)),
]
PROMPTS = {"query": "q: ", "document": "d: "}


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    """The training computes in float32; some CPUs embed passages in bfloat16."""
    monkeypatch.setattr("rqa.retrieval.encoder.bf16_is_fast", lambda device: False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("contrastive") / "sentences", prompts=PROMPTS)


def losses(checkpoint, *, examples=EXAMPLES, hard_negatives=2, **options):
    encoder = Encoder(checkpoint, device=CPU)
    collator = ContrastiveCollator(encoder, hard_negatives=hard_negatives)
    model = ContrastiveEncoder(encoder, **options).eval()
    return model, model(**collator.collate(collator.encode(0, examples)))


def reference(checkpoint, examples, hard_negatives, temperature):
    """Return the loss of each question, by the vectors of the frozen encoder."""
    encoder = Encoder(checkpoint, device=CPU)
    batch, golds = {}, [example.gold_passages[0] for example in examples]
    for example in examples:
        own = [each for each in example.hard_negatives if each not in example.gold_passages]
        batch.update(dict.fromkeys((example.gold_passages[0], *own[:hard_negatives])))
    expected = []
    for example, gold in zip(examples, golds, strict=True):
        passages = [each for each in batch if each == gold or each not in example.gold_passages]
        query = torch.tensor(encoder.encode_queries([example.question]))
        logits = query @ torch.tensor(encoder.encode_passages(passages)).T / temperature
        expected.append(-logits.log_softmax(-1)[0, passages.index(gold)])
    return torch.stack(expected)


@pytest.mark.parametrize("hard_negatives", [0, 1, 2])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_the_loss_is_that_of_the_reference(checkpoint, hard_negatives, temperature):
    _, nll = losses(checkpoint, hard_negatives=hard_negatives, temperature=temperature)
    expected = reference(checkpoint, EXAMPLES, hard_negatives, temperature)
    torch.testing.assert_close(nll, expected, rtol=1e-4, atol=1e-5)


def test_a_passage_that_is_gold_for_the_question_is_no_negative(checkpoint):
    """Passage 2 is the second gold passage of example 2, and the label of example 3. Two questions share passage 0."""
    encoder = Encoder(checkpoint, device=CPU)
    collator = ContrastiveCollator(encoder, hard_negatives=0)
    rows = collator.encode(0, EXAMPLES)
    batch = collator.collate(rows)
    columns = [*batch["labels"][:, 0].tolist()]
    assert columns[0] == columns[3]
    assert batch["candidates"].shape == (4, 3)
    assert batch["candidates"].logical_not().nonzero().tolist() == [[1, columns[2]]]
    assert collator.encode(1, EXAMPLES)[1].ids[0] == PASSAGES[2].id  # the next epoch has the next gold passage


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_cache_changes_no_gradient(checkpoint, size):
    gradients = []
    for mini_batch_size in (None, size):
        model, nll = losses(checkpoint, mini_batch_size=mini_batch_size)
        nll.sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, cached = gradients
    assert plain.keys() == cached.keys()
    assert max(float(gradient.abs().max()) for gradient in plain.values()) > 0.1
    for name, gradient in plain.items():
        torch.testing.assert_close(cached[name], gradient, rtol=1e-5, atol=1e-5)


def test_the_cache_holds_the_activations_of_one_mini_batch(checkpoint):
    held = []
    for mini_batch_size in (None, 1):
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            losses(checkpoint, mini_batch_size=mini_batch_size)
        held.append(total)
    assert held[1] < held[0] / 10


def test_a_question_without_a_negative_has_no_label(checkpoint):
    """Examples 1 and 4 have the same gold passage: in a batch of both there is no negative."""
    collator = ContrastiveCollator(Encoder(checkpoint, device=CPU), hard_negatives=0)
    rows = collator.encode(0, EXAMPLES)
    labels = [collator.collate(part)["labels"][:, 0].tolist() for part in ([rows[0]], [rows[0], rows[3]], rows[:2])]
    assert labels[:2] == [[IGNORE_INDEX], [IGNORE_INDEX] * 2]
    assert sorted(labels[2]) == [0, 1]
    _, nll = losses(checkpoint, examples=EXAMPLES[:1], hard_negatives=0)
    assert nll.tolist() == [0.0]


def test_a_batch_without_rows_has_no_loss(checkpoint):
    _, nll = losses(checkpoint, examples=[])
    assert nll.tolist() == [0.0]
    nll.sum().backward()


@pytest.mark.parametrize("settings", [{}, {"similarity_fn_name": "dot"}, {"truncate_dim": 16}])
def test_the_export_is_the_encoder_with_its_settings(checkpoint, tmp_path, settings):
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(checkpoint, device="cpu").save(str(tmp_path / "own"))
    config = tmp_path / "own/config_sentence_transformers.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    encoder = Encoder(str(tmp_path / "own"), device=CPU, query_prefix="other: ")
    model = ContrastiveEncoder(encoder)
    with torch.no_grad():
        next(model.parameters()).mul_(2.0)
    export_encoder(Accelerator(cpu=True), model, encoder, tmp_path / "new")
    loaded = Encoder(str(tmp_path / "new"), device=CPU)
    assert (loaded.query_prefix, loaded.passage_prefix) == ("other: ", "d: ")
    assert (loaded.similarity, loaded.truncate_dim) == (encoder.similarity, encoder.truncate_dim)
    vectors = loaded.encode_passages(PASSAGES)
    assert (vectors == encoder.encode_passages(PASSAGES)).all()
    batch = ContrastiveCollator(encoder, hard_negatives=0).tokenizer([f"d: {each.content}" for each in PASSAGES])
    padded = encoder.model.tokenizer.pad({"input_ids": batch["input_ids"]}, return_tensors="pt")
    embedded = model.eval().embed(padded["input_ids"], padded["attention_mask"]).detach()
    torch.testing.assert_close(embedded, torch.tensor(vectors), rtol=1e-4, atol=1e-5)


def test_examples_without_gold_are_left_out_and_missing_negatives_refused(checkpoint):
    collator = ContrastiveCollator(Encoder(checkpoint, device=CPU), hard_negatives=1)
    assert collator.usable([*EXAMPLES, Example("5", "q", ("a",))]) == EXAMPLES
    with pytest.raises(InputError, match="gold_docs"):
        collator.usable([Example("5", "q", ("a",))])
    with pytest.raises(InputError, match="--hard_negatives 1"):
        collator.usable([EXAMPLES[1]])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--temperature", "0"], ("--temperature", "0")),
        (["--mini_batch_size", "0"], ("--mini_batch_size", "0")),
        (["--test_file", "t.jsonl"], ("--full_dataset_file_path",)),
        (["--full_dataset_index_path", "i"], ("--full_dataset_index_path", "--test_file")),
        (["--per_device_train_batch_size", "1"], ("--per_device_train_batch_size", "--hard_negatives", "1")),
        (["--teacher", "t", "--teacher_temperature", "0"], ("--teacher_temperature", "0")),
        (["--teacher_temperature", "2"], ("--teacher_temperature", "without --teacher")),
        (["--teacher_scores", "leave_one_out"], ("--teacher_scores", "without --teacher")),
        (["--teacher", "t", "--hard_negatives", "1"], ("--hard_negatives 1", "--teacher")),
    ],
)
def test_invalid_values_name_the_flag(flags, words):
    argv = ["--embedding_model", "e", "--train_file", "t", *flags]

    def parse():
        search, optim = parse_args(ContrastiveArgs(), OptimizationArgs(), argv=argv)
        search.check_beside(optim)

    with pytest.raises(InputError) as refused:
        parse()
    assert all(word in str(refused.value) for word in words)


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    flags = {
        "--embedding_model": world.encoder, "--train_file": world.train, "--test_file": world.test,
        "--full_dataset_file_path": world.corpus, "--full_dataset_index_path": str(folder / "index"),
        "--per_device_train_batch_size": "5", "--mini_batch_size": "4", "--learning_rate": "1e-3",
        "--num_train_epochs": "2", "--save_steps": "2", "--save_total_limit": "9", "--bf16": "false",
    }  # fmt: skip
    launch("retriever_contrastive.py", {**flags, "--output_dir": str(folder / "run")})
    return flags, folder / "run"


@pytest.mark.slow
def test_the_recipe_trains_and_a_resumed_run_is_the_same(trained, tmp_path):
    flags, run = trained
    steps = [row for row in read_jsonl(run / "metrics.jsonl") if "loss" in row]
    assert len(steps) == 6
    assert steps[-1]["loss"] < steps[0]["loss"]
    own = {
        **flags,
        "--output_dir": str(tmp_path / "run"),
        "--resume_from_checkpoint": str(run / "checkpoints/step-00000004"),
    }
    launch("retriever_contrastive.py", own)
    for name in ("metrics.jsonl", "model/model.safetensors", "after/predictions.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes(), name


@pytest.mark.slow
def test_two_processes_compute_the_steps_of_two_micro_batches(trained, world, tmp_path):
    """Negatives are local to a micro-batch and to a process, so that both have the same."""
    flags, _ = trained
    own = {name: flags[name] for name in ("--train_file", "--mini_batch_size", "--learning_rate", "--bf16")}
    last = assert_two_processes_equal_two_micro_batches(world.encoder, own, tmp_path)[
        -1
    ]  # the 13th question is alone in it
    assert (last["target_tokens"], last["loss"], last["gradient_norm"], last["skipped"]) == (0, 0.0, 0.0, False)


@pytest.mark.slow
def test_after_is_the_evaluation_of_the_exported_encoder(trained, world, tmp_path):
    _, run = trained
    flags = {"--embedding_model": str(run / "model"), "--test_file": world.test, "--document_path": world.corpus}
    evaluated = tmp_path / "evaluation"
    launch("evaluate.py", {**flags, "--index_path": str(tmp_path / "index"), "--output_dir": str(evaluated)})
    after, expected = ([*map(_ranking, read_jsonl(each / "predictions.jsonl"))] for each in (run / "after", evaluated))
    assert after == expected


def _ranking(row):
    return row["id"], [(passage["id"], passage["score"]) for passage in row["passages"]]
