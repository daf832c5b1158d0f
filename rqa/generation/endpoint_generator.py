"""Generation of answers by a server with OpenAI's API: the same passages and prompts as for a local model."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from accelerate import Accelerator

from rqa.data.file_report import DataError
from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example
from rqa.distributed.accelerator import call_on_main
from rqa.endpoint.client import CHAT, COMPLETIONS, Endpoint, Reply, to_body
from rqa.endpoint.responses import choice_texts, excerpt, first_choice, json_object, used_tokens
from rqa.errors import InputError
from rqa.generation.answers import ANSWERS_FILE, Answer
from rqa.prompts.answer_decoder import split_reasoning
from rqa.prompts.decoder_prompt import (
    INSTRUCTION,
    Prompt,
    PromptBuilder,
    chat_messages,
    load_stop_ids,
    load_tokenizer,
)
from rqa.terminal import plural

log = logging.getLogger(__name__)

Api = Literal["auto", "completions", "chat"]


@dataclass(kw_only=True, eq=False)
class GeneratorEndpoint(Endpoint):
    """The server of a generator."""

    role = "generator"
    activity = "answering"
    url_flag = "--qa_endpoint"
    model_flag = "--qa_model_name_or_path"
    parameters_flag = "--qa_parameters"
    reserved: ClassVar[frozenset[str]] = frozenset({"model", "messages", "prompt", "stream", "n"})


class EndpointGenerator:
    """Generates answers by calls of an endpoint, on the main process alone. Greedy, unless parameters differ.

    With a `builder` passages are truncated as for a local model; without one nothing is truncated, and only the chat
    API can be used. The responses are stored in the cache of the endpoint: a call that has one is not repeated.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        endpoint: Endpoint,
        builder: PromptBuilder | None,
        *,
        max_new_tokens: int,
        instruction: str = INSTRUCTION,
        api: Api = "auto",
    ) -> None:
        if builder is None and api == "completions":
            raise ValueError("api: expected a builder for completions, which takes token ids")
        self.accelerator, self.endpoint, self.builder = accelerator, endpoint, builder
        self.max_new_tokens, self.instruction = max_new_tokens, instruction
        self.api: Api = "chat" if builder is None else api
        self._models: set[str] = set()  # names that the server returned
        self._num_estimated = 0  # responses without counts of tokens
        self._num_filtered = 0  # answers that a content filter refused

    @classmethod
    def load(
        cls,
        accelerator: Accelerator,
        folder: Path,
        *,
        client: Mapping[str, Any],
        api: Api = "auto",
        tokenizer: str = "",
        instruction: str = INSTRUCTION,
        max_new_tokens: int = 512,
        **prompt_options: Any,
    ) -> Self:
        """Return the generator behind the endpoint of `client`, which stores the responses in `folder`.

        `client` are arguments of `GeneratorEndpoint`, `prompt_options` of `PromptBuilder`. The tokenizer is by default
        that of the model's name. Raises InputError if a tokenizer is needed and cannot be loaded.
        """
        endpoint = GeneratorEndpoint(**client, cache_path=folder / ANSWERS_FILE)
        name, builder = tokenizer or endpoint.model, None
        is_needed = tokenizer or prompt_options.get("chat") is not None or api == "completions"
        try:
            loaded, stop_ids = load_tokenizer(name), load_stop_ids(name)
            builder = PromptBuilder(loaded, instruction=instruction, stop_ids=stop_ids, **prompt_options)
        except (InputError, OSError) as problem:  # OSError: not the name of a repository
            if is_needed:
                raise InputError(f"--qa_tokenizer: expected a tokenizer for the prompt: {problem}") from problem
            log.info("--qa_tokenizer: none, no passage is truncated: %s", excerpt(str(problem)))
        limit = max_new_tokens
        return cls(accelerator, endpoint, builder, max_new_tokens=limit, instruction=instruction, api=api)

    def __call__(self, inputs: Sequence[GeneratorInput]) -> list[Answer]:
        """Return the answer to each input, in order, on every rank; every rank must call this.

        Raises InputError if an answer is missing after all retries. The answers that exist stay in the store.
        """
        return call_on_main(self.accelerator, lambda: self._answers(inputs))

    def resumable(self, _folder: Path) -> "EndpointGenerator":
        """Return this generator, whose endpoint stores each response."""
        return self

    def check(self, examples: Sequence[Example]) -> None:
        """Raise DataError unless every question fits its prompt, if there is a tokenizer."""
        error = DataError()
        for example in examples if self.builder else ():
            try:
                self.builder.check_prompt(example)  # type: ignore[union-attr]
            except InputError as problem:
                error.add(example.where, str(problem))
        if error.count:
            raise error

    def conditions(self) -> dict[str, Any]:
        """Return the conditions of the answers, on the main process: server, form of the requests, source of counts."""
        url, estimated = self.endpoint.url, self._num_estimated
        return {
            "host": url.netloc.decode(),
            "api": self.api,
            "model": ", ".join(sorted(self._models)),
            "concurrency": self.endpoint.concurrency,
            "parameters": dict(self.endpoint.parameters),
            "latencies": "of the server, its queue and the network",
            "truncation": "none: no tokenizer" if self.builder is None else "by the tokenizer",
            "filtered_answers": self._num_filtered,
            "token_counts": f"{estimated} of them estimates from characters" if estimated else "of the server",
        }

    def _answers(self, inputs: Sequence[GeneratorInput]) -> list[Answer]:
        prompts = [None if self.builder is None else self.builder.prompt(item) for item in inputs]
        if self.api == "auto" and inputs:
            self.api = self._accepted_api(inputs[0], prompts[0])
        self.endpoint.path = COMPLETIONS if self.api == "completions" else CHAT
        bodies = [self._body(item, prompt) for item, prompt in zip(inputs, prompts, strict=True)]
        replies = self._fetch(bodies)
        if problems := [reply.problem for reply in replies if not reply.response]:
            count = len(replies) - len(problems)
            raise InputError(
                f"{self.endpoint.url}: expected {len(replies):,} answers, got {count:,}. The first "
                f"problem: {problems[0]}. Repeat the command: it resumes, and asks only for the missing answers."
            )
        answers = [self._answer(*each) for each in zip(inputs, prompts, bodies, replies, strict=True)]
        if self._num_filtered:
            log.warning(
                "%s: a content filter refused %s, scored with the text that they have",
                self.endpoint.url,
                plural(self._num_filtered, "answer"),
            )
        return answers

    def _accepted_api(self, item: GeneratorInput, prompt: Prompt | None) -> Api:
        """Return the API that the server accepts: completions if it takes the ids of one prompt, else chat."""
        self.endpoint.path = COMPLETIONS
        problem = ""
        try:
            [reply] = self._fetch([body := self._body(item, prompt)])
        except InputError as error:
            problem = str(error)
        else:
            problem = reply.problem
            if reply.response and prompt is not None:
                count = used_tokens(json_object(reply.response), body, is_chat=False)[0]
                usage = json_object(reply.response).get("usage")
                if usage and count != len(prompt.ids):
                    problem = f"it read {count} tokens of {len(prompt.ids)}: its tokenizer is another"
        api: Api = "chat" if problem else "completions"
        log.info("--qa_api auto: %s%s", api, f"; completions: {excerpt(problem)}" if problem else " (token ids)")
        if problem and self.builder is not None and self.builder.chat is not None:
            raise InputError(f"--qa_endpoint: expected a server that takes token ids, for --user_prefix: {problem}")
        return api

    def _fetch(self, bodies: Sequence[str]) -> list[Reply]:
        try:
            return asyncio.run(self.endpoint.fetch(bodies))
        except OSError as error:
            raise InputError(f"{self.endpoint.cache_path}: expected a writable file, got {error}") from error

    def _body(self, item: GeneratorInput, prompt: Prompt | None) -> str:
        """Return the body of a request. A parameter of null removes a field; models that refuse max_tokens have one."""
        fields: dict[str, Any] = {"model": self.endpoint.model, "temperature": 0, "max_tokens": self.max_new_tokens}
        if self.endpoint.is_chat:
            fields["messages"] = chat_messages(item, self.instruction, prompt)
        elif prompt is not None:
            fields["prompt"] = prompt.ids
        if "max_completion_tokens" in self.endpoint.parameters:
            del fields["max_tokens"]
        fields |= self.endpoint.parameters
        return to_body({name: value for name, value in fields.items() if value is not None})

    def _answer(self, item: GeneratorInput, prompt: Prompt | None, body: str, reply: Reply) -> Answer:
        completion = json_object(reply.response)
        num_prompt, num_tokens = used_tokens(completion, body, is_chat=self.endpoint.is_chat)
        if isinstance(name := completion.get("model"), str):
            self._models.add(excerpt(name))
        self._num_estimated += not isinstance(completion.get("usage"), dict)
        choice = first_choice(completion, is_chat=self.endpoint.is_chat)
        is_cut = choice is not None and choice.get("finish_reason") == "length"
        self._num_filtered += choice is None or choice.get("finish_reason") == "content_filter"
        text, split_off = ("", "") if choice is None else choice_texts(choice)
        text, reasoning = self._read(text.encode(errors="replace").decode(), is_cut=is_cut)
        return Answer(
            text,
            num_tokens,
            num_prompt,
            not is_cut,
            0 if prompt is None else prompt.truncated,
            len(item.passages) if prompt is None else prompt.num_passages,
            "\n".join(part for part in (split_off.encode(errors="replace").decode().strip(), reasoning) if part),
            is_stored=not reply.calls,
        )

    def _read(self, text: str, *, is_cut: bool) -> tuple[str, str]:
        """Return the answer in a text of the server, and the reasoning before it."""
        opened = None
        if self.builder is not None and not self.endpoint.is_chat:
            separator = self.builder.tokenizer.decode([*self.builder.separator], clean_up_tokenization_spaces=False)
            text = text if is_cut else text.rstrip().removesuffix(str(separator).strip())
            opened = self.builder.open_mark
        return split_reasoning(text, is_cut=is_cut, opened=opened)
