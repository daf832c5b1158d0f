"""A server with OpenAI's API on this machine that generates with a tiny decoder; with the faults of the judge's."""

import json
import re
from typing import Any

import torch
from judge_server import JudgeServer, error
from transformers import PreTrainedModel, PreTrainedTokenizerFast


class GeneratorServer(JudgeServer):
    """Answers by token ids and by messages, greedy. Without `takes_ids` only messages are accepted."""

    def __init__(
        self,
        lm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        takes_ids: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.lm, self.tokenizer, self.takes_ids = lm.eval(), tokenizer, takes_ids

    def question_of(self, body: dict[str, Any]) -> str:
        text = body["messages"][-1]["content"] if "messages" in body else self.tokenizer.decode(body["prompt"])
        return re.findall(r"Where is \w+\?|When was \w+ \w+\?|[^.>\n]*\?", text)[-1]

    def answer(self, body: dict[str, Any]) -> tuple[int, bytes]:
        if "prompt" in body and not self.takes_ids:
            return 404, error("no such route")
        ids = body.get("prompt")
        if ids is None:
            ids = self.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=False)
        options = {"max_new_tokens": body["max_tokens"], "do_sample": False, "pad_token_id": 0}
        eos = self.tokenizer.eos_token_id
        with torch.no_grad():
            new = self.lm.generate(torch.tensor([ids]), eos_token_id=eos, **options)[0, len(ids) :].tolist()
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        content = {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
        choice = {"index": 0, "finish_reason": "stop" if new[-1] == eos else "length"} | content
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(new)}
        return 200, json.dumps({"model": "tiny-at-server", "choices": [choice], "usage": usage}).encode()
