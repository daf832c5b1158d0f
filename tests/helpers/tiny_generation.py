"""A tiny decoder, questions with passages, and a Generator over both."""

import torch
from accelerate import Accelerator
from tiny_models import EOS, decoder, tokenizer
from world import PLACES

from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Passage, Turn
from rqa.generation.generator import Generator
from rqa.models.decoder import AnswerLM
from rqa.prompts.collators import ConcatenatedCollator
from rqa.prompts.decoder_prompt import ChatFormat, PromptBuilder

HISTORY = (Turn("user", "Hello."), Turn("assistant", "Ask."))
INPUTS = [
    GeneratorInput.from_ranked(
        Example(place, f"Where is {place}?", ("There.",), chat_history=HISTORY * (number % 2)),
        [Passage(f"{place} is far. " * (number * 5 % 7))] * (number % 3),
    )
    for number, place in enumerate(PLACES[:9])
]
MAX_NEW_TOKENS = 14
OFTEN = 100  # a byte that occurs inside some answers of the model
TEMPLATE = PromptBuilder(tokenizer())
PREFIXES = PromptBuilder(tokenizer(), ChatFormat("User", "Assistant", " ", "<|user|>"))
ENDS = {"eos": (TEMPLATE, EOS), "separator": (PREFIXES, tokenizer().convert_tokens_to_ids("<|user|>"))}


def language_model(end=EOS, *, dropout=0.0):
    """Return a decoder that generates `end` in place of OFTEN."""
    lm = decoder(dropout=dropout)
    with torch.no_grad():
        lm.lm_head.weight[[OFTEN, end]] = lm.lm_head.weight[[end, OFTEN]]
    return lm


def generator(lm, batch_size, builder=TEMPLATE, accelerator=None, prompt_lookup_tokens=0):
    accelerator = accelerator or Accelerator(cpu=True, mixed_precision="no")
    model = accelerator.prepare(AnswerLM(lm))
    collator = ConcatenatedCollator(builder)
    return Generator(accelerator, model, collator, batch_size, MAX_NEW_TOKENS, prompt_lookup_tokens)
