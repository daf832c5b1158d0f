"""Flags of an evaluation."""

from dataclasses import dataclass
from typing import Literal

from rqa.cli.data_args import GeneratorArgs, RowArgs
from rqa.cli.endpoint_args import EndpointArgs
from rqa.cli.judge_args import JudgeArgs
from rqa.cli.parser import at_least, changed_flags, flag, require
from rqa.cli.retrieval_args import RetrievalArgs
from rqa.data.passage_selection import REFUSAL_ANSWER
from rqa.errors import InputError


@dataclass(frozen=True)
class EvaluationArgs(RowArgs):
    """The examples, the output, and the parts of the evaluation."""

    test_file: str = flag("", "examples: .jsonl, .jsonl.gz or .json", "eval_data_path", is_path=True)
    max_examples: int | None = flag(None, "the first examples of the file, for a quick look; default: all")
    output_dir: str = flag("", "new folder for the scores and the predictions", is_path=True)
    break_lock: bool = flag(False, "replace the lock of a process on a machine that is off or cannot be reached")
    refusal_answer: str = flag(REFUSAL_ANSWER, "reference of examples that are unanswerable")
    per_device_eval_batch_size: int = flag(8, "questions answered at a time on one device", "batch_size")
    prompt_lookup_tokens: int = flag(
        8, "tokens of a decoder's answer that one step copies from the prompt at most; 0: none"
    )
    context_report: bool = flag(False, "compare answers from gold, retrieved, distracting and no passages")
    gen_gpt4eval: bool = flag(False, "judge the answers with GPT-4 or another model; see the --judge flags")
    attribution: Literal["none", "cross_attention", "leave_one_out", "leave_one_out_reference", "both"] = flag(
        "none",
        "evidence of each passage: by the attention of fusion-in-decoder, or by the loss without the passage, of the "
        "answer or of the first reference; both: the first two",
    )

    @property
    def attributions(self) -> tuple[str, ...]:
        """The names of the attributions to compute."""
        names = {"none": (), "both": ("cross_attention", "leave_one_out")}
        return names.get(self.attribution, (self.attribution,))

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        super().check()
        require(self, "test_file", "output_dir")
        at_least(self, 1, "per_device_eval_batch_size", "max_examples")
        at_least(self, 0, "prompt_lookup_tokens")

    def check_beside(
        self,
        generator: GeneratorArgs,
        search: RetrievalArgs,
        judging: JudgeArgs,
        endpoint: EndpointArgs = EndpointArgs(),  # noqa: B008  # frozen
    ) -> None:
        """Raise InputError if a flag has no effect, or cannot work, because of another."""
        has_generator = bool(generator.model_name_or_path)
        if not (has_generator or search.has_retriever):
            raise InputError("--model_name_or_path, --embedding_model: expected at least one of them, got neither")
        for name in ("attribution", "context_report", "gen_gpt4eval"):
            if (value := getattr(self, name)) not in ("none", False) and not has_generator:
                raise InputError(f"--{name} {str(value).lower()}: expected --model_name_or_path too: it needs answers")
        if generator.citations and not has_generator:
            raise InputError("--citations true: expected --model_name_or_path too: it needs answers")
        endpoint.check_beside(generator)
        if endpoint.qa_endpoint:
            if self.attribution != "none":
                raise InputError(f"--attribution {self.attribution}: a server returns no loss. Remove it")
            size = self.per_device_eval_batch_size
            if "per_device_eval_batch_size" in changed_flags(self):
                message = "no effect with --qa_endpoint. Use --qa_concurrency"
                raise InputError(f"--per_device_eval_batch_size {size}: {message}")
        if "cross_attention" in self.attributions and not generator.qa_is_fid:
            raise InputError(f"--attribution {self.attribution}: a decoder has no cross-attention. Use leave_one_out")
        if not self.gen_gpt4eval and (changed := changed_flags(judging)):
            raise InputError(f"--{', --'.join(changed)}: no effect without --gen_gpt4eval true")
