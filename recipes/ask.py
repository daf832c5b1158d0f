"""Ask a trained model about a corpus: an answer appears while it is generated, then the passages in its prompt.

    python recipes/ask.py --model_name_or_path path/to/save/dir/model \\
        --embedding_model checkpoint/to/retriever/model \\
        --full_dataset_file_path path/to/document.pkl --full_dataset_index_path path/to/index/dir/of/document

With --evaluation, the folder of an evaluation or of the test of a training run, its flags are the defaults. In a
terminal each question continues the conversation: /new forgets it, /sources shows the passages, Ctrl-C stops an answer,
which is then not part of the conversation, /quit or Ctrl-D ends. Lines from a pipe are a conversation too, and only the
answers are written: put /new between independent questions. --question answers one question, as a JSON object.
"""

import os
import sys
import time
from dataclasses import dataclass

from rqa import cli, data, distributed, generation, models, retrieval
from rqa.errors import InputError
from rqa.terminal import write_json_result


@dataclass(frozen=True)
class AskArgs:
    """The question, and the evaluation whose flags are the defaults."""

    evaluation: str = cli.flag(
        "", "folder of an evaluation, or of the test of a training run; its flags are defaults", is_path=True
    )
    question: str | None = cli.flag(None, "one question; its answer is a JSON object on the standard output")

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        if self.question is not None and not self.question.strip():
            raise InputError("--question: expected text, got none")


def main() -> None:
    """Open the index, load the model, answer."""
    ask, generator, search = cli.parse_args(AskArgs(), cli.GeneratorArgs(), cli.RetrievalArgs(), base="evaluation")
    search.require_retriever()
    cli.require(generator, "model_name_or_path")
    if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise InputError(f"expected one process, got {processes}. Launch with `python {sys.argv[0]} …`")
    chat = open_chat(generator, search, ask.question)
    if ask.question is None:
        chat.run()
    else:
        write_answer(chat, ask.question)


def open_chat(generator: cli.GeneratorArgs, search: cli.RetrievalArgs, question: str | None) -> "generation.Chat":
    """Load everything; raise InputError before the model is loaded if the question does not fit its prompt."""
    name = generator.model_name_or_path
    passages = data.open_passages(**search.corpus_options)
    accelerator = distributed.make_accelerator(bf16=generator.bf16, deepspeed=None)
    collator = models.load_collator(name, **generator.collator_options)
    if question is not None:
        collator.check([data.Example("", question, (), where="--question")])
    attention = models.attention_for(accelerator, name, **generator.attention_options)
    retriever = retrieval.open_retriever(passages, device=accelerator.device, **search.retriever_options)
    model = models.load_generator(accelerator, name, attention=attention, **generator.load_options)
    generate = generation.Generator(accelerator, model, collator, 1, generator.generation_limit)
    k, history_turns = search.embedding_max_num_to_retrieve, search.query_history
    chat = generation.Chat(retriever, generate, k=k, history_turns=history_turns)
    chat.warm_up()
    retriever.verify()
    return chat


def write_answer(chat: "generation.Chat", text: str) -> None:
    """Write the answer to one question as JSON."""
    start = time.perf_counter()
    question = chat.encode(text)
    retrieved = time.perf_counter()
    answer = chat.generator.stream(question.row)
    seconds = {"retrieve": retrieved - start, "generate": time.perf_counter() - retrieved}
    question.log_omissions(answer)
    write_json_result({**question.reply(answer), "seconds": seconds})


if __name__ == "__main__":
    cli.run_main(main)
