"""Tiny encoder-decoders with random weights, one of each family, and their tokenizers."""

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from tiny_models import EOS, PAD, VOCABULARY, tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

CROSS_OUTPUTS = ("EncDecAttention.o.", "encoder_attn.out_proj.", "crossattention.output.dense.", "cross_attn.o_proj.")
T5_SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
T5_IDS = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": PAD}


def t5(dropout: float = 0.0) -> PreTrainedModel:
    """Return a T5 of the first kind: tied embeddings, a rectifier."""
    return T5ForConditionalGeneration(T5Config(**T5_SIZES, **T5_IDS, dropout_rate=dropout, initializer_factor=1.0))


def mt5(dropout: float = 0.0) -> PreTrainedModel:
    """Return an mT5: a gate and a separate output projection, as Flan-T5."""
    return MT5ForConditionalGeneration(MT5Config(**T5_SIZES, **T5_IDS, dropout_rate=dropout, initializer_factor=1.0))


def umt5(dropout: float = 0.0) -> PreTrainedModel:
    """Return a UMT5: a position bias in every layer."""
    return UMT5ForConditionalGeneration(UMT5Config(**T5_SIZES, **T5_IDS, dropout_rate=dropout, initializer_factor=1.0))


def bart(dropout: float = 0.0) -> PreTrainedModel:
    """Return a BART: learned positions, biases, scaled attention; answers begin after eos."""
    layers = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in
              (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))}  # fmt: skip
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        max_position_embeddings=512,
        init_std=0.3,
        dropout=dropout,
        attention_dropout=dropout,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
        forced_eos_token_id=None,
        **layers,
    )
    return BartForConditionalGeneration(config)


def two_berts(dropout: float = 0.0) -> PreTrainedModel:
    """Return an `EncoderDecoderModel` whose halves differ in width, with a projection between them."""
    bert = {"vocab_size": VOCABULARY, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3,
            "intermediate_size": 48, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout,
            "max_position_embeddings": 512, "pad_token_id": PAD}  # fmt: skip
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        BertConfig(**bert, hidden_size=40), BertConfig(**bert, hidden_size=32)
    )
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, PAD, EOS
    return EncoderDecoderModel(config)


def t5gemma(dropout: float = 0.0) -> PreTrainedModel:
    """Return a T5Gemma: rotary positions, soft-capped logits."""
    part = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8,
            "initializer_range": 0.3, "sliding_window": 64, "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 5.0, "attention_dropout": dropout, "dropout_rate": dropout,
            "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": EOS}  # fmt: skip
    config = T5GemmaConfig(
        encoder=dict(part),
        decoder=dict(part),
        vocab_size=VOCABULARY,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    return T5GemmaForConditionalGeneration(config)


SEQ2SEQ: dict[str, Callable[..., PreTrainedModel]] = {
    make.__name__: make for make in (t5, mt5, umt5, bart, two_berts, t5gemma)
}


def seq2seq(family: str = "t5", *, dropout: float = 0.0, seed: int = 0) -> PreTrainedModel:
    """Return a float32 model of a family, the same for the same seed. Torch's random numbers stay unchanged.

    Passages outweigh the tokens of the answer so far, so that answers depend on the passages.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = SEQ2SEQ[family](dropout)
        for name, parameter in model.named_parameters():
            if any(output in name for output in CROSS_OUTPUTS):
                parameter.mul_(8)
    return model


def wide_t5() -> PreTrainedModel:
    """Return a float32 T5 whose layers can be in 4 bits: their inputs are multiples of 64."""
    with patch.dict(T5_SIZES, d_model=64, d_kv=16):
        return seq2seq("t5")


def closing_tokenizer(opening: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token a byte that ends every text with eos, and with `opening` begins it with bos."""
    made = tokenizer()
    single = "<s> $A </s>" if opening else "$A </s>"
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[("<s>", 1), ("</s>", EOS)]
    )
    return made


def save_seq2seq(folder: Path, model: PreTrainedModel | None = None) -> str:
    """Write a checkpoint with its tokenizer, a T5 by default; return the folder as a string."""
    (model or seq2seq()).save_pretrained(folder)
    closing_tokenizer().save_pretrained(folder)
    return str(folder)


def random_passages(lengths: list[list[int]], answers: list[int], *, seed: int = 0, length: int | None = None) -> dict:
    """Return a batch (B, N, L) of passages and answers with these numbers of tokens; 0 is a missing passage."""
    generator = torch.Generator().manual_seed(seed)
    most, longest = max(map(len, lengths)), length or max(map(max, lengths))
    ids = torch.full((len(lengths), most, longest), PAD)
    mask = torch.zeros_like(ids)
    labels = torch.full((len(lengths), max(answers)), -100)
    for row, passages in enumerate(lengths):
        for place, tokens in enumerate(passages):
            ids[row, place, :tokens] = torch.randint(5, VOCABULARY, (tokens,), generator=generator)
            mask[row, place, :tokens] = 1
    for row, tokens in enumerate(answers):
        if tokens:
            labels[row, :tokens] = torch.randint(5, VOCABULARY, (tokens,), generator=generator)
            labels[row, tokens - 1] = EOS
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
