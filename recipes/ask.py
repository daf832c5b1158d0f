"""Ask a trained model over an index: each answer as it is generated, then the passages that it read.

    python recipes/ask.py --qa_model_name_or_path path/to/save/dir/model \\
        --embedding_model_name_or_path checkpoint/to/retriever/model \\
        --document_path path/to/document.pkl --index_path path/to/index/dir/of/document

or with --evaluation, the folder of an evaluation by recipes/evaluate.py, whose flags are then those not given here. In
the terminal a question is read with the conversation before it: /new forgets that, /sources shows the passages, Ctrl-C
stops an answer, which is then no part of the conversation, /quit or Ctrl-D ends. So it is from a pipe, where answers
alone are written: put /new between questions that are independent. With --question that one is answered, as one JSON
object.
"""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rqa.cli import data_args as inputs
from rqa.cli.parser import cli, flag, parse_configs, require
from rqa.errors import InputError
from rqa.terminal import printable

if TYPE_CHECKING:
    from rqa.data.records import Turn
    from rqa.generation.chat import Asked
    from rqa.generation.generator import Answer

    Ask = Callable[[str, tuple[Turn, ...]], Asked]
    Say = Callable[[Asked, Callable[[str], object]], Answer]

log = logging.getLogger("rqa")

COMMANDS = "/new forgets the conversation, /sources shows the passages, /quit ends"


@dataclass(frozen=True)
class Session:
    """What is asked, over what."""

    embedding_model_name_or_path: str = flag(
        "", "checkpoint folder or hub name of the sentence encoder; answers are made from the passages that it finds"
    )
    document_path: str = flag("", "the corpus of passages: .jsonl, .jsonl.gz or LocalRQA's document.pkl")
    index_path: str = flag("", "folder of the corpus' index; built there when it does not exist")
    evaluation: str = flag(
        "", "folder of an evaluation: what was evaluated there is asked, by the flags not given here"
    )
    question: str | None = flag(None, "answer this question and end: one JSON object on the standard output")

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        require(self, "embedding_model_name_or_path", "document_path", "index_path")
        if self.question is not None and not self.question.strip():
            raise InputError("--question: expected text, found none")


def main() -> None:
    """Open the index, load the model, answer."""
    session, *others = parse_configs(Session(), inputs.Reader(), inputs.Retrieval(), inputs.Index(), base="evaluation")
    if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        command = f"python {sys.argv[0]} …"
        raise InputError(
            f"{processes} processes were launched, a conversation is held by one: launch it with `{command}`"
        )
    with redirect_stdout(sys.stderr):  # where DeepSpeed is installed, it logs on the standard output
        ask, say = opened(session, *others)
    if session.question is None:
        talk(ask, say)
    else:
        # What is no UTF-8 on a command line comes as halves of surrogate pairs, which no tokenizer takes.
        answer_one(session.question.encode(errors="surrogateescape").decode(errors="replace"), ask, say)


def opened(
    session: Session, reader: inputs.Reader, retrieval: inputs.Retrieval, index: inputs.Index
) -> "tuple[Ask, Say]":
    """Return what reads a question, and what answers it."""
    # What takes seconds to import: --help and a misspelt flag need not wait for it.
    from rqa.data.corpus import open_passages
    from rqa.data.records import Example
    from rqa.distributed.accelerator import make_accelerator
    from rqa.generation.chat import read, stream
    from rqa.models.auto import attention_for, collator_for, load_generator
    from rqa.retrieval.dense import open_retriever

    require(reader, "qa_model_name_or_path")
    passages = open_passages(session.document_path)
    accelerator = make_accelerator(bf16=reader.bf16, deepspeed=None)
    name, is_fid = reader.qa_model_name_or_path, reader.qa_is_fid
    collator = collator_for(name, **reader.reading)
    if session.question is not None:
        collator.check([Example("", session.question, (), where="--question")])
    attention = attention_for(accelerator, name, is_fid=is_fid, use_flash_attention=reader.use_flash_attention)
    encoder, path = session.embedding_model_name_or_path, Path(session.index_path)
    retriever = open_retriever(passages, encoder, path, device=accelerator.device, **vars(index))
    model = load_generator(
        accelerator, name, is_fid=is_fid, attention=attention, encoder_batch_size=reader.encoder_batch_size
    )
    k, history_turns = retrieval.embedding_max_num_to_retrieve, retrieval.query_history
    ask = partial(read, retriever=retriever, collator=collator, k=k, history_turns=history_turns)
    say = partial(stream, accelerator, model, collator)
    # Loads the encoder, and whatever transformers loads for a first answer: neither is the user's to wait for.
    say(ask("warm-up", ()), lambda _text: None, max_new_tokens=1)
    return ask, partial(say, max_new_tokens=reader.generation_limit)


def answer_one(question: str, ask: "Ask", say: "Say") -> None:
    """Print the answer to a question as JSON."""
    from rqa.generation.chat import reply

    start = time.perf_counter()
    asked = ask(question, ())
    retrieved = time.perf_counter()
    answer = say(asked, lambda _text: None)
    seconds = {"retrieve": retrieved - start, "generate": time.perf_counter() - retrieved}
    log_notes(asked, answer)
    text = json.dumps({**reply(asked, answer), "seconds": seconds}, ensure_ascii=False)
    # JSON may hold these as they are, and a terminal would obey them.
    print(re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text))


def talk(ask: "Ask", say: "Say") -> None:
    """Answer line after line."""
    from rqa.generation.chat import headings

    is_terminal = sys.stdin.isatty()
    history: tuple[Turn, ...] = ()
    asked: Asked | None = None
    for line in lines(is_terminal):
        if line == "/quit":
            break
        if line == "/new":
            history = ()
        elif line == "/sources":
            found = asked.found if asked else ()
            texts = (printable(hit.passage.text) for hit in found)
            print("\n\n".join(map("\n".join, zip(headings(found), texts, strict=True))))
        elif line.startswith("/") and line[1:].isalpha():
            log.info("(%s is no command: %s)", line, COMMANDS)
        else:
            try:
                asked = ask(line, history)
                answer = say(asked, lambda text: print(printable(text), end="", flush=True))
            except (KeyboardInterrupt, InputError) as end:
                if not is_terminal:
                    raise
                print(f"\n({str(end) or 'stopped: no part of the conversation'})")  # Ctrl-C says nothing
            else:
                history = asked.history(answer.text)
                print(flush=True)
                if is_terminal:
                    print("", *headings(asked.found), sep="\n")
                log_notes(asked, answer)


def lines(is_terminal: bool) -> Iterator[str]:
    """Yield what the user writes, line by line, to its end; nothing for an empty line."""
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    if is_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401  # input() then lets a line be edited
        log.info("Ask a question. %s; Ctrl-C stops an answer.", COMMANDS)
    while True:
        try:
            line = input("\n> " if is_terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            if is_terminal:
                print()
            return
        if line:
            yield line


def log_notes(asked: "Asked", answer: "Answer") -> None:
    """Tell what was left out, of the prompt and of the answer."""
    if asked.forgotten:
        log.info("(no room for the oldest %d messages of the conversation: they are forgotten)", asked.forgotten)
    if answer.num_cut:
        log.info("(no room for %d tokens of the passages)", answer.num_cut)
    if not answer.finished:
        log.info("(cut after %d tokens: --max_new_tokens)", answer.num_tokens)


if __name__ == "__main__":
    cli(main)
