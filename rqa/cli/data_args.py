"""What a recipe can be told of what is read: files, retriever, passages, prompts; see also `training_args`."""

from dataclasses import dataclass
from typing import Any

from rqa.cli.parser import at_least, flag, require
from rqa.data.passage_selection import REFUSAL_ANSWER, Order
from rqa.errors import InputError
from rqa.prompts.decoder_prompt import INSTRUCTION, ChatFormat


@dataclass(frozen=True)
class Data:
    """The examples and the corpus."""

    train_file: str = flag("", "training examples: .jsonl, .jsonl.gz or .json")
    eval_file: str = flag("", "examples evaluated every --eval_steps updates; none: no such evaluation")
    test_file: str = flag("", "examples evaluated once, after training; none: no such evaluation")
    full_dataset_file_path: str = flag("", "the corpus of passages: .jsonl, .jsonl.gz or LocalRQA's document.pkl")
    full_dataset_index_path: str = flag("", "folder of the corpus' index; built there when it does not exist")

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        require(self, "train_file")
        if self.full_dataset_file_path:
            require(self, "full_dataset_index_path")


@dataclass(frozen=True)
class Retriever:
    """The frozen retriever."""

    embedding_model: str = flag(
        "", "checkpoint folder or hub name of the sentence encoder; none: all questions bring their passages (ctxs)"
    )


@dataclass(frozen=True)
class EvalRetriever:
    """The retriever that evaluation alone uses."""

    eval_embedding_model: str = flag(
        "", "sentence encoder for evaluation; none: answers are made from the questions' own passages (ctxs), or gold"
    )


@dataclass(frozen=True)
class Retrieval:
    """How much is retrieved, and for which query."""

    embedding_max_num_to_retrieve: int = flag(3, "passages to retrieve for a question, and to read at inference")
    query_history: int = flag(1, "messages of the user before the question that go into the query")

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        at_least(self, 1, "embedding_max_num_to_retrieve")
        at_least(self, 0, "query_history")


@dataclass(frozen=True)
class Index:
    """How passages are embedded and indexed: the keyword arguments of `open_retriever`."""

    query_prefix: str | None = flag(
        None, 'text before each query ("query: " for E5); default: what the checkpoint says'
    )
    passage_prefix: str | None = flag(None, 'text before each passage ("passage: " for E5); default: as above')
    index_factory: str = flag("Flat", "FAISS index factory; Flat is exact")
    embedding_batch_size: int = flag(64, "texts embedded at a time")

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        at_least(self, 1, "embedding_batch_size")


@dataclass(frozen=True)
class Passages:
    """Which passages a training example reads: the keyword arguments of `select_passages`."""

    passage_order: Order = flag("ranked", "how gold and retrieved passages are ordered in training")
    gold_dropout: float = flag(0.0, "share of examples that read no gold passage and learn to answer --refusal_answer")
    hard_negatives: int = flag(0, "of an example's own hard negatives, how many it reads")
    refusal_answer: str = flag(REFUSAL_ANSWER, "the answer where the passages do not tell")

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        at_least(self, 0, "hard_negatives")
        if not 0 <= self.gold_dropout <= 1:
            raise InputError(f"--gold_dropout: expected a share from 0 to 1, found {self.gold_dropout}")


@dataclass(frozen=True)
class Texts:
    """What the prompts of decoders and of fusion-in-decoder have in common."""

    user_prefix: str | None = flag(
        None, "what opens the user's turns; default: the chat template, or for fusion-in-decoder user"
    )
    assistant_prefix: str | None = flag(None, "what opens the assistant's turns; goes with --user_prefix")
    max_answer_length: int = flag(512, "tokens of an answer; a longer one in the training file is refused")
    max_new_tokens: int | None = flag(None, "tokens to generate at most; default: --max_answer_length")

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        at_least(self, 1, "max_answer_length")
        if self.max_new_tokens is not None:
            at_least(self, 1, "max_new_tokens")
        if (self.user_prefix is None) != (self.assistant_prefix is None):
            raise InputError("--user_prefix and --assistant_prefix go together, found one of them")

    @property
    def generation_limit(self) -> int:
        """Tokens to generate at most."""
        return self.max_answer_length if self.max_new_tokens is None else self.max_new_tokens

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest answer that can be trained on, or generated."""
        return max(self.max_answer_length, self.generation_limit)

    @property
    def speakers(self) -> dict[str, str | None]:
        """The names that the turns of a chat history may go by, beside the usual ones."""
        return {"user_prefix": self.user_prefix, "assistant_prefix": self.assistant_prefix}


@dataclass(frozen=True)
class Prompt(Texts):
    """How a decoder's prompts are written."""

    sep_user: str = flag(" ", "what ends the user's turns, with --user_prefix")
    sep_sys: str = flag("", "what ends the assistant's turns, with --user_prefix")
    instruction: str = flag(INSTRUCTION, "what stands before the passages")
    max_prompt_length: int = flag(2048, "tokens of a prompt; passages are cut to fit, last ranked first")

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        super().check()
        at_least(self, 1, "max_prompt_length")
        default = ChatFormat("", "")
        if self.user_prefix is None and (self.sep_user, self.sep_sys) != (default.sep_user, default.sep_sys):
            raise InputError("--sep_user and --sep_sys go with --user_prefix and --assistant_prefix, found them alone")

    @property
    def max_row_length(self) -> int:
        """Tokens of the longest row that can be trained on, or generated."""
        return self.max_prompt_length + self.longest_answer

    @property
    def chat(self) -> ChatFormat | None:
        """The format that the prefixes make, or None for the tokenizer's chat template."""
        if self.user_prefix is None or self.assistant_prefix is None:
            return None
        return ChatFormat(self.user_prefix, self.assistant_prefix, self.sep_user, self.sep_sys)


@dataclass(frozen=True)
class PassagePrompt(Texts):
    """How the texts of fusion-in-decoder are written, and how many the encoder reads at a time."""

    max_passage_length: int = flag(512, "tokens of history, question and one passage; the passage is cut to fit")
    encoder_batch_size: int | None = flag(
        None, "passages in one call of the encoder: less memory, more time; default: what is quickest"
    )

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        super().check()
        at_least(self, 1, "max_passage_length")
        if self.encoder_batch_size is not None:
            at_least(self, 1, "encoder_batch_size")

    @property
    def names(self) -> tuple[str, str]:
        """What the user and the assistant are called in a chat history."""
        return self.user_prefix or "user", self.assistant_prefix or "assistant"


@dataclass(frozen=True)
class Reader(Prompt, PassagePrompt):
    """A generator that is trained, of either kind, and what it reads."""

    qa_model_name_or_path: str = flag("", "checkpoint folder or hub name of the generator")
    qa_is_fid: bool = flag(False, "it is an encoder-decoder that reads passages in parallel: fusion-in-decoder")
    bf16: bool | None = flag(None, "true or false: bfloat16 autocast; default: where this device is fast in it")
    use_flash_attention: bool = flag(False, "use flash attention 2 (needs CUDA and the package flash-attn)")

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        super().check()
        default = type(self)()
        kind, others = (PassagePrompt, Prompt) if self.qa_is_fid else (Prompt, PassagePrompt)
        unused = others.__dataclass_fields__.keys() - kind.__dataclass_fields__
        if meant := sorted(name for name in unused if getattr(self, name) != getattr(default, name)):
            flags = ", ".join(f"--{name}" for name in meant)
            raise InputError(f"--qa_is_fid {str(self.qa_is_fid).lower()}: {flags} would do nothing")

    @property
    def reading(self) -> dict[str, Any]:
        """The keyword arguments of `collator_for`."""
        return {
            "is_fid": self.qa_is_fid,
            "chat": self.chat,
            "instruction": self.instruction,
            "max_prompt_length": self.max_prompt_length,
            "speakers": self.names,
            "max_passage_length": self.max_passage_length,
            "max_answer_length": self.max_answer_length,
            "max_new_tokens": self.generation_limit,
        }
