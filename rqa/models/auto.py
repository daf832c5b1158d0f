"""Collator and model of a checkpoint of either kind: a decoder, or an encoder-decoder for fusion-in-decoder."""

from accelerate import Accelerator

from rqa.distributed.accelerator import is_sharded
from rqa.distributed.device import AttentionKernel, attention_kernel
from rqa.models.decoder import AnswerLM, check_context_length, max_positions
from rqa.models.fid import FusionInDecoder, check_encoder_decoder, fid_attention
from rqa.models.loading import load_config
from rqa.prompts.collators import Collator, ConcatenatedCollator, ParallelCollator
from rqa.prompts.decoder_prompt import INSTRUCTION, ChatFormat, PromptBuilder, load_tokenizer
from rqa.prompts.fid_prompt import PassagePromptBuilder


def load_collator(
    name_or_path: str,
    *,
    is_fid: bool = False,
    chat: ChatFormat | None = None,
    instruction: str = INSTRUCTION,
    max_prompt_length: int = 2048,
    speakers: tuple[str, str] = ("user", "assistant"),
    max_passage_length: int = 512,
    max_answer_length: int = 512,
    max_new_tokens: int = 512,
) -> Collator:
    """Return the collator of a checkpoint; see `PromptBuilder` and `PassagePromptBuilder` for the other arguments.

    Raises InputError if there is no such checkpoint or its context length is too small.
    """
    longest_answer = max(max_answer_length, max_new_tokens)
    if is_fid:
        config = check_encoder_decoder(name_or_path, max_passage_length, longest_answer)
        passage_builder = PassagePromptBuilder(load_tokenizer(name_or_path), max_passage_length, speakers)
        return ParallelCollator(passage_builder, max_answer_length, max_positions(config))
    tokenizer = load_tokenizer(name_or_path)
    positions = check_context_length(name_or_path, max_prompt_length + longest_answer)
    builder = PromptBuilder(tokenizer, chat, instruction, max_prompt_length)
    return ConcatenatedCollator(builder, max_answer_length, positions)


def attention_for(
    accelerator: Accelerator, name_or_path: str, *, is_fid: bool = False, use_flash_attention: bool = False
) -> AttentionKernel | None:
    """Return the `attention` to load a checkpoint with. Raises InputError if it does not work with the checkpoint."""
    if is_fid:
        config = load_config(name_or_path, "encoder-decoder")
        return fid_attention(config, accelerator, use_flash_attention=use_flash_attention)
    return attention_kernel(use_flash_attention, accelerator.mixed_precision)


def load_generator(
    accelerator: Accelerator,
    name_or_path: str,
    *,
    is_fid: bool = False,
    attention: AttentionKernel | None = None,
    encoder_batch_size: int | None = None,
) -> AnswerLM | FusionInDecoder:
    """Load a checkpoint and prepare it for evaluation only, without memory for gradients."""
    model: AnswerLM | FusionInDecoder
    if is_fid:
        sync = is_sharded(accelerator)
        model = FusionInDecoder.from_pretrained(
            name_or_path, encoder_batch_size=encoder_batch_size, sync_encoder_calls=sync, attention=attention
        )
    else:
        model = AnswerLM.from_pretrained(name_or_path, attention=attention)
    model = accelerator.prepare_model(model, evaluation_mode=True)
    return model
