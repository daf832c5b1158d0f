"""Flags of examples, prompts and generators."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from rqa.cli.parser import at_least, changed_flags, flag, options, require, require_package
from rqa.cli.retrieval_args import IndexArgs
from rqa.data.jsonl import parse_object
from rqa.data.passage_selection import REFUSAL_ANSWER, Order
from rqa.errors import InputError
from rqa.prompts.chat_template import TEMPLATE_DATE
from rqa.prompts.decoder_prompt import INSTRUCTION, ChatFormat


@dataclass(frozen=True)
class RowArgs:
    """The rows of the files of examples."""

    max_bad_rows: int = flag(0, "rows with problems that are left out of each file of examples; more are an error")

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        at_least(self, 0, "max_bad_rows")


@dataclass(frozen=True)
class DataArgs(RowArgs):
    """The files of examples."""

    train_file: str = flag("", "training examples: .jsonl, .jsonl.gz or .json", is_path=True)
    eval_file: str = flag(
        "", "validation examples, evaluated every --eval_steps steps; empty: no validation", is_path=True
    )
    test_file: str = flag(
        "", "test examples, evaluated once, after training; empty: no test", "eval_data_path", is_path=True
    )

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        super().check()
        require(self, "train_file")

    @property
    def paths(self) -> Sequence[str]:
        """The three files, in the order train, eval, test."""
        return self.train_file, self.eval_file, self.test_file


def row_options(files: RowArgs, search: IndexArgs, prompt: "_TextArgs", *, is_sft: bool = False) -> dict[str, Any]:
    """Return keyword arguments of `load_splits`. With a retriever, only the training file of SFT needs `gold_docs`."""
    required = not search.has_retriever
    by_split = (True, required, required)
    own = options(files, "max_bad_rows")
    return {"gold_required": by_split if is_sft else required, **own, **prompt.speakers}


@dataclass(frozen=True)
class PassageArgs:
    """The passages that a training example reads."""

    passage_order: Order = flag("ranked", "order of gold and retrieved passages in training")
    gold_dropout: float = flag(0.0, "share of examples that read no gold passage; their answer is --refusal_answer")
    hard_negatives: int = flag(0, "hard negatives of its own that an example reads")
    refusal_answer: str = flag(REFUSAL_ANSWER, "the answer if the passages do not contain one")

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        at_least(self, 0, "hard_negatives")
        if not 0 <= self.gold_dropout <= 1:
            raise InputError(f"--gold_dropout: expected a share from 0 to 1, got {self.gold_dropout}")

    @property
    def refusal_options(self) -> dict[str, Any]:
        """Keyword arguments of `Collator.check`."""
        return options(self, "gold_dropout", "refusal_answer")

    @property
    def selection_options(self) -> dict[str, Any]:
        """Keyword arguments of `select_passages`."""
        return options(self, "passage_order", "gold_dropout", "hard_negatives", "refusal_answer")


@dataclass(frozen=True)
class _TextArgs:
    """The flags that the prompts of decoders and of fusion-in-decoder share."""

    user_prefix: str | None = flag(
        None, "text before the user's turns; default: the chat template, for fusion-in-decoder: user"
    )
    assistant_prefix: str | None = flag(None, "text before the assistant's turns; only together with --user_prefix")
    max_answer_length: int = flag(512, "tokens of an answer; a longer one in the training file is an error")
    max_new_tokens: int | None = flag(None, "tokens to generate at most; default: --max_answer_length")
    citations: bool = flag(False, 'answers cite passages by number: "[1]" in an answer is the first of its gold_docs')

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        at_least(self, 1, "max_answer_length", "max_new_tokens")
        if (self.user_prefix is None) != (self.assistant_prefix is None):
            raise InputError("--user_prefix and --assistant_prefix: expected both or neither, got one")

    @property
    def generation_limit(self) -> int:
        """Tokens to generate at most."""
        return self.max_answer_length if self.max_new_tokens is None else self.max_new_tokens

    @property
    def speakers(self) -> dict[str, str | None]:
        """Keyword arguments of `load_examples`: further names of the speakers in a chat history."""
        return options(self, "user_prefix", "assistant_prefix")


@dataclass(frozen=True)
class PromptArgs(_TextArgs):
    """The prompt of a decoder."""

    sep_user: str = flag(" ", "text after the user's turns; only with --user_prefix")
    sep_sys: str = flag("", "text after the assistant's turns; only with --user_prefix")
    instruction: str = flag(INSTRUCTION, "text before the passages; the default asks for citations if --citations")
    max_prompt_length: int = flag(2048, "tokens of a prompt; passages are truncated to fit, the last ranked first")
    chat_template_kwargs: str = flag(
        "",
        "JSON object of variables for the chat template; default: its switch for thinking, if it has one, is false",
        is_json=True,
    )
    chat_template_date: str = flag(TEMPLATE_DATE, "the date that the chat template writes, as YYYY-MM-DD")

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        super().check()
        at_least(self, 1, "max_prompt_length")
        default = ChatFormat("", "")
        if self.user_prefix is None and (self.sep_user, self.sep_sys) != (default.sep_user, default.sep_sys):
            raise InputError("--sep_user and --sep_sys: expected --user_prefix and --assistant_prefix too, got neither")
        self._check_chat_template()

    def _check_chat_template(self) -> None:
        for name, default in (("chat_template_kwargs", ""), ("chat_template_date", TEMPLATE_DATE)):
            if self.user_prefix is not None and getattr(self, name) != default:
                raise InputError(f"--{name}: expected a chat template, got --user_prefix, which replaces it")
        try:
            datetime.strptime(self.chat_template_date, "%Y-%m-%d")
        except ValueError as error:
            date = self.chat_template_date
            raise InputError(f"--chat_template_date: expected a date such as {TEMPLATE_DATE}, got {date!r}") from error
        self._chat_template_variables()

    def _chat_template_variables(self) -> dict[str, Any]:
        try:
            return parse_object(self.chat_template_kwargs.encode()) if self.chat_template_kwargs else {}
        except ValueError as problem:
            raise InputError(f"--chat_template_kwargs: expected a JSON object: {problem}") from problem

    @property
    def chat(self) -> ChatFormat | None:
        """The chat format of the prefixes, or None: the chat template of the tokenizer."""
        if self.user_prefix is None or self.assistant_prefix is None:
            return None
        return ChatFormat(self.user_prefix, self.assistant_prefix, self.sep_user, self.sep_sys)

    @property
    def collator_options(self) -> dict[str, Any]:
        """Keyword arguments of `load_collator`."""
        names = ("chat", "instruction", "max_prompt_length", "max_answer_length", "chat_template_date", "citations")
        variables = {"chat_template_kwargs": self._chat_template_variables()}
        return {"max_new_tokens": self.generation_limit, **variables, **options(self, *names)}


@dataclass(frozen=True)
class FidPromptArgs(_TextArgs):
    """The texts that fusion-in-decoder reads, and the batch size of its encoder."""

    max_passage_length: int = flag(512, "tokens of history, question and one passage; the passage is truncated to fit")
    encoder_batch_size: int | None = flag(
        None, "passages in one encoder call: fewer need less memory and more time; default: the fastest"
    )

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        super().check()
        at_least(self, 1, "max_passage_length", "encoder_batch_size")

    @property
    def collator_options(self) -> dict[str, Any]:
        """Keyword arguments of `load_collator`."""
        speakers = (self.user_prefix or "user", self.assistant_prefix or "assistant")
        own = options(self, "max_passage_length", "max_answer_length", "citations")
        return {"is_fid": True, "speakers": speakers, "max_new_tokens": self.generation_limit, **own}


@dataclass(frozen=True)
class GeneratorArgs(PromptArgs, FidPromptArgs):
    """A trained generator of either kind, and its prompts."""

    model_name_or_path: str = flag(
        "", "checkpoint folder or hub name of the generator", "qa_model_name_or_path", is_path=True
    )
    qa_is_fid: bool = flag(False, "the generator is an encoder-decoder for fusion-in-decoder")
    bf16: bool | None = flag(None, "bfloat16 autocast, true or false; default: true if the device is fast in it")
    use_flash_attention: bool = flag(False, "flash attention 2 (needs CUDA and the package flash-attn)")
    device_map: Literal["none", "auto"] = flag(
        "none", "auto: one process spreads the layers over its GPUs, and the rest over CPU memory and disk"
    )
    load_in_4bit: bool = flag(False, "hold the weights of linear layers in 4 bits (needs bitsandbytes)")

    @property
    def attention_options(self) -> dict[str, bool]:
        """Keyword arguments of `attention_for`."""
        return {"is_fid": self.qa_is_fid, "use_flash_attention": self.use_flash_attention}

    @property
    def load_options(self) -> dict[str, Any]:
        """Keyword arguments of `load_generator`."""
        device_map = None if self.device_map == "none" else self.device_map
        own = options(self, "encoder_batch_size", "load_in_4bit")
        return {"is_fid": self.qa_is_fid, "device_map": device_map, **own}

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        super().check()
        processes = os.environ.get("WORLD_SIZE", "1")
        if self.device_map != "none" and processes != "1":
            raise InputError(
                f"--device_map {self.device_map}: expected one process, which uses all GPUs, got {processes}. "
                "Launch with `python recipes/evaluate.py …`"
            )
        kind, other = (FidPromptArgs, PromptArgs) if self.qa_is_fid else (PromptArgs, FidPromptArgs)
        unused = other.__dataclass_fields__.keys() - kind.__dataclass_fields__
        if changed := sorted(unused.intersection(changed_flags(self))):
            is_fid, flags = str(self.qa_is_fid).lower(), ", --".join(changed)
            raise InputError(f"--qa_is_fid {is_fid}: --{flags} would have no effect. Remove it")
        if self.load_in_4bit:
            require_package("--load_in_4bit", "bitsandbytes", "quantized")

    @property
    def collator_options(self) -> dict[str, Any]:
        """Keyword arguments of `load_collator`."""
        return super(PromptArgs, self).collator_options if self.qa_is_fid else super().collator_options
