"""Collator and model of a checkpoint of either kind: a decoder, or an encoder-decoder for fusion-in-decoder."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example
from rqa.distributed.accelerator import is_sharded
from rqa.distributed.device import AttentionKernel, attention_kernel
from rqa.distributed.hub import base_model
from rqa.errors import InputError
from rqa.models.decoder import AnswerLM, check_context_length, max_positions
from rqa.models.fid import FusionInDecoder, check_encoder_decoder, fid_attention
from rqa.models.loading import load_config, num_embeddings, stored_dtype
from rqa.prompts.chat_template import TEMPLATE_DATE
from rqa.prompts.collators import Builder, Collator, ConcatenatedCollator, ParallelCollator
from rqa.prompts.decoder_prompt import (
    CITING_INSTRUCTION,
    INSTRUCTION,
    ChatFormat,
    PromptBuilder,
    load_stop_ids,
    load_tokenizer,
)
from rqa.prompts.fid_prompt import PassagePromptBuilder


def load_collator(
    name_or_path: str,
    *,
    is_fid: bool = False,
    chat: ChatFormat | None = None,
    instruction: str = INSTRUCTION,
    max_prompt_length: int = 2048,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    chat_template_date: str = TEMPLATE_DATE,
    speakers: tuple[str, str] = ("user", "assistant"),
    max_passage_length: int = 512,
    max_answer_length: int = 512,
    max_new_tokens: int = 512,
    citations: bool = False,
    needs_weights: bool = True,
) -> Collator:
    """Return the collator of a checkpoint; see `PromptBuilder` and `PassagePromptBuilder` for the other arguments.

    With `citations` see `Collator`; the default instruction then asks for citations.
    A folder without weights is an error unless `needs_weights` is false.
    Raises InputError if there is no such checkpoint, if it is damaged or of another kind, if its context length is too
    small, or if its tokenizer does not fit.
    """
    longest_answer = max(max_answer_length, max_new_tokens)
    if is_fid:
        config = check_encoder_decoder(name_or_path, max_passage_length, longest_answer)
        num_tokens = num_embeddings(AutoModelForSeq2SeqLM, name_or_path, "encoder-decoder", needs_weights=needs_weights)
        passage_builder = PassagePromptBuilder(
            load_tokenizer(name_or_path), max_passage_length, speakers, citations=citations
        )
        pad_id = checked_pad_id(passage_builder, num_tokens)
        limits = (max_answer_length, max_positions(config), pad_id)
        return ParallelCollator(passage_builder, *limits, citations=citations)
    positions = check_context_length(name_or_path, max_prompt_length + longest_answer)
    num_tokens = num_embeddings(AutoModelForCausalLM, name_or_path, "decoder", needs_weights=needs_weights)
    builder = PromptBuilder(
        load_tokenizer(name_or_path),
        chat,
        CITING_INSTRUCTION if citations and instruction == INSTRUCTION else instruction,
        max_prompt_length,
        chat_template_kwargs=chat_template_kwargs,
        chat_template_date=chat_template_date,
        stop_ids=load_stop_ids(base_model(name_or_path)),
    )
    limits = (max_answer_length, positions, checked_pad_id(builder, num_tokens))
    return ConcatenatedCollator(builder, *limits, citations=citations)


def checked_pad_id(builder: Builder, num_tokens: int) -> int:
    """Return the id to pad with, below `num_tokens`, the number of token embeddings.

    Raises InputError if a prompt, an answer or any text may contain a higher id. A special token that no template uses
    may have one: a padding token is often added to the tokenizer alone.
    """
    tokenizer = builder.tokenizer
    if len(tokenizer) > num_tokens:
        item = GeneratorInput.from_ranked(Example("check", "a", ()), ())
        prompts = builder.prompt(item).ids
        used = {*builder.answer("a"), *builder.stop_ids, *(prompts if isinstance(prompts[0], int) else prompts[0])}
        unused = {*builder.text_tokenizer.control.values()} - used
        too_high = {id: token for token, id in tokenizer.get_vocab().items() if id >= num_tokens and id not in unused}
        if too_high:
            raise InputError(
                f"{tokenizer.name_or_path}: expected token ids below {num_tokens}, the model's embeddings, "
                f"got {min(too_high)} ({too_high[min(too_high)]}) in its tokenizer. "
                "Resize with model.resize_token_embeddings(len(tokenizer)), and save the model"
            )
    pad_id = tokenizer.pad_token_id
    return builder.stop_ids[0] if pad_id is None or pad_id >= num_tokens else pad_id


def attention_for(
    accelerator: Accelerator, name_or_path: str, *, is_fid: bool = False, use_flash_attention: bool = False
) -> AttentionKernel | None:
    """Return the `attention` to load a checkpoint with. Raises InputError if it does not work with the checkpoint."""
    if is_fid:
        config = load_config(name_or_path, "encoder-decoder")
        return fid_attention(config, accelerator, use_flash_attention=use_flash_attention)
    return attention_kernel(use_flash_attention, accelerator.mixed_precision)


def export_dtype(name_or_path: str, save_dtype: str = "auto") -> torch.dtype:
    """Return the dtype to export a model in: `save_dtype`; "auto" is that of the checkpoint, or float32."""
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    dtype = stored_dtype(name_or_path) if save_dtype == "auto" else names[save_dtype]
    return dtype if dtype in names.values() else torch.float32


def load_generator(
    accelerator: Accelerator,
    name_or_path: str,
    *,
    is_fid: bool = False,
    attention: AttentionKernel | None = None,
    encoder_batch_size: int | None = None,
    device_map: str | Mapping[str, str | int] | None = None,
    load_in_4bit: bool = False,
) -> AnswerLM | FusionInDecoder:
    """Load a checkpoint or an adapter for evaluation: no gradients, and weights in the accelerator's precision.

    With the `device_map` "auto", for one process, the layers are spread over its GPUs.
    """
    model: AnswerLM | FusionInDecoder
    options: dict[str, Any] = {"attention": attention, "precision": accelerator.mixed_precision, "is_trained": False}
    options |= {"device_map": device_map, "load_in_4bit": load_in_4bit}
    if is_fid:
        sync = is_sharded(accelerator)
        model = FusionInDecoder.from_pretrained(
            name_or_path, encoder_batch_size=encoder_batch_size, sync_encoder_calls=sync, **options
        )
    else:
        model = AnswerLM.from_pretrained(name_or_path, **options)
    model = accelerator.prepare_model(model, device_placement=device_map is None, evaluation_mode=True)
    return model
