"""evaluate.py: an evaluation that was killed resumes; on two ranks, metrics are computed on the main process alone."""

import json
import re
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator
from five_questions import EXAMPLES, retrieval
from tiny_models import decoder, tokenizer
from world import ACCELERATE_LAUNCH, CRASH, files, hand_over, launch, read_jsonl, results_of

import rqa.evaluation.evaluate
from rqa.evaluation.evaluate import Evaluator
from rqa.evaluation.results import ScoreRecord, read_record
from rqa.generation.answers import ANSWERS_FILE
from rqa.generation.generator import Generator
from rqa.models.decoder import AnswerLM
from rqa.prompts.collators import ConcatenatedCollator
from rqa.prompts.decoder_prompt import PromptBuilder


def flags_of(world, out, **more):
    flags = {
        "--model_name_or_path": world.model,
        "--test_file": world.test,
        "--per_device_eval_batch_size": "2",
        "--max_new_tokens": "6",
        "--bf16": "false",
        "--output_dir": str(out),
    }
    return flags | {f"--{name}": value for name, value in more.items()}


def test_predictions_are_byte_identical_after_a_kill(world, tmp_path):
    """Killed before the third of four batches is written; then a part of its line is added."""
    out, unbroken = tmp_path / "out", tmp_path / "unbroken"
    printed = launch("evaluate.py", flags_of(world, unbroken), by=(sys.executable, CRASH, str(unbroken), "0"))
    touched = re.search(r"touched: (.*)", printed)[1].split()
    third = [number for number, name in enumerate(touched, 1) if name == ANSWERS_FILE][2]
    launch("evaluate.py", flags_of(world, out), by=(sys.executable, CRASH, str(out), str(third)), expect=None)
    assert {name for name in files(out) if not name.startswith(".lock")} == {ANSWERS_FILE}
    assert len(read_jsonl(out / ANSWERS_FILE)) == 2
    with (out / ANSWERS_FILE).open("a") as file:
        file.write('{"settings": {"weights": 1')
    printed = launch("evaluate.py", flags_of(world, out), by=ACCELERATE_LAUNCH)
    assert "4 of 7 answers are from an earlier attempt" in printed
    assert "4 answers of an earlier attempt, without times" in printed
    assert files(out) == files(unbroken) == {"score.json", "predictions.jsonl", "config.json", "report.html"}
    assert (out / "predictions.jsonl").read_bytes() == (unbroken / "predictions.jsonl").read_bytes()
    ours, expected = (json.loads((folder / "score.json").read_text()) for folder in (out, unbroken))
    assert (ours["metrics"], ours["intervals"]) == (expected["metrics"], expected["intervals"])
    assert [score["runtime"]["timed_answers"] for score in (ours, expected)] == [3, 7]
    assert [score["runtime"]["stages"]["decode"]["questions"] for score in (ours, expected)] == [3, 7]


def evaluated(folder):
    """Return the scores, without times, the numbers of scored and generated answers, and the files."""
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    model, collator = accelerator.prepare(AnswerLM(decoder())), ConcatenatedCollator(PromptBuilder(tokenizer()))
    scored, generated = [], []
    plain_scores, plain_answers = rqa.evaluation.evaluate.answer_scores, Generator._answers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rqa.evaluation.evaluate.answer_scores", lambda *args: scored.append(args) or plain_scores(*args))
        patch.setattr(
            Generator, "_answers", lambda self, rows, *more: generated.append(rows) or plain_answers(self, rows, *more)
        )
        scores = Evaluator(accelerator, model, collator, k=2, batch_size=1, max_new_tokens=4)(
            EXAMPLES, retrieval(), folder
        )
    lines = [line["key"] for line in read_jsonl(folder / ANSWERS_FILE)] if accelerator.is_main_process else []
    timed = scores.score.runtime["timed_answers"]
    return scores.metrics, scores.score.intervals, repr(scores.predictions), timed, len(scored), len(generated), lines


@pytest.mark.slow
def test_two_ranks_resume_and_score_once(tmp_path):
    """The answers of two batches of one process are used; the main process alone computes metrics."""
    *expected, lines = evaluated(tmp_path)
    assert expected[3:] == [5, 5, 1 + 5]
    path = tmp_path / ANSWERS_FILE
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    main, other = results_of(__file__, tmp_path)
    assert main[:3] == other[:3] == tuple(expected[:3])
    assert [rank[3:6] for rank in (main, other)] == [(3, 5, 1 + 2), (3, 0, 1 + 2)]
    assert main[-1] == lines


def test_max_examples_are_the_first_of_the_file_and_the_record_has_the_rest(world, tmp_path):
    launch("evaluate.py", flags_of(world, tmp_path / "few", max_examples="3"))
    rows = read_jsonl(tmp_path / "few/predictions.jsonl")
    assert [row["question"] for row in rows] == [row["question"] for row in read_jsonl(Path(world.test))[:3]]
    score = read_record(tmp_path / "few/score.json", ScoreRecord)
    assert (score.examples, score.examples_left_out) == (3, 4)
    assert "4 examples left out by --max_examples" in score.notes


if __name__ == "__main__":
    hand_over(evaluated(Path(sys.argv[-1])), Path(sys.argv[-1]))
