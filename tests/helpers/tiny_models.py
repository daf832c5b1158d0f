"""Tiny models with random weights: one of each family of decoders, and a sentence encoder.

Weights are large, so that answers depend on every token of the prompt.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
PAD, BOS, EOS = 0, 1, 2
VOCABULARY = len(SPECIAL) + 256
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
COMMON = {
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "initializer_range": 0.3,
    "max_position_embeddings": 4096,
}
TEMPLATE = (
    "<s>{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if message.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def llama(dropout: float = 0.0, *, tied: bool = False) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(**SIZES, **HEADS, **COMMON, attention_dropout=dropout, tie_word_embeddings=tied)
    )


def qwen2(dropout: float = 0.0) -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, **HEADS, **COMMON, attention_dropout=dropout))


def mistral(dropout: float = 0.0) -> PreTrainedModel:
    """Return a Mistral with a window of 8 positions, shorter than the rows of the tests."""
    return MistralForCausalLM(MistralConfig(**SIZES, **HEADS, **COMMON, attention_dropout=dropout, sliding_window=8))


def gemma2(dropout: float = 0.0) -> PreTrainedModel:
    """Return a Gemma 2: soft caps that change every logit, tied embeddings, a window."""
    config = Gemma2Config(
        **SIZES,
        **HEADS,
        **COMMON,
        head_dim=8,
        query_pre_attn_scalar=8,
        attention_dropout=dropout,
        sliding_window=8,
        attn_logit_softcapping=1.0,
        final_logit_softcapping=2.0,
    )
    return Gemma2ForCausalLM(config)


def gpt2(dropout: float = 0.0) -> PreTrainedModel:
    """Return a GPT-2: learned positions, tied embeddings, biases."""
    config = {**COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 2048}
    del config["max_position_embeddings"]
    return GPT2LMHeadModel(GPT2Config(**config, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout))


def mixtral(dropout: float = 0.0) -> PreTrainedModel:
    """Return a Mixtral: two of four experts for each token."""
    config = MixtralConfig(**SIZES, **HEADS, **COMMON, attention_dropout=dropout, num_local_experts=4)
    return MixtralForCausalLM(config)


DECODERS: dict[str, Callable[..., PreTrainedModel]] = {
    make.__name__: make for make in (llama, qwen2, mistral, gemma2, gpt2, mixtral)
}


def decoder(family: str = "llama", *, dropout: float = 0.0, seed: int = 0) -> PreTrainedModel:
    """Return a float32 model of a family, the same for the same seed. Torch's random numbers stay unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DECODERS[family](dropout)


def wide_decoder(family: str = "llama") -> PreTrainedModel:
    """Return a float32 model whose layers can be in 4 bits: their inputs are multiples of 64."""
    with patch.dict(SIZES, hidden_size=64, intermediate_size=128):
        return decoder(family)


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token a byte, with a chat template that writes its own control tokens."""
    alphabet = {token: id for id, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=TEMPLATE,
    )


def save_decoder(folder: Path, model: PreTrainedModel | None = None) -> str:
    """Write a checkpoint with its tokenizer, a Llama by default; return the folder as a string."""
    (model or decoder()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def save_encoder(
    folder: Path,
    *,
    seed: int = 0,
    prompts: dict[str, str] | None = None,
    pooling: str = "mean",
    size: int = 32,
    length: int = 128,
) -> str:
    """Write a sentence-transformers checkpoint: a BERT, a WordPiece tokenizer of single characters, a pooling."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    folder.mkdir(parents=True)
    characters = "abcdefghijklmnopqrstuvwxyz0123456789.,:?'-"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *characters, *(f"##{character}" for character in characters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=size,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=length,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config)
    plain = folder / "plain"
    model.save_pretrained(plain)
    BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(plain)
    transformer = Transformer(str(plain), max_seq_length=length)
    modules = [transformer, Pooling(size, pooling_mode=pooling)]
    SentenceTransformer(modules=modules, prompts=prompts or {}, device="cpu").save(str(folder / "encoder"))
    return str(folder / "encoder")


def save_reranker(folder: Path, plain: Path, *, seed: int = 0) -> str:
    """Write a cross-encoder with one score: its sizes and tokenizer are those of the BERT in `plain`."""
    config = BertConfig.from_pretrained(plain, num_labels=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(plain).save_pretrained(folder)
    return str(folder)


def random_batch(
    rows: Sequence[tuple[int, int]], *, seed: int = 0, length: int | None = None
) -> dict[str, torch.Tensor]:
    """Return a batch of rows of (prompt, answer) tokens, drawn at random, padded on the right; answers end in eos."""
    generator = torch.Generator().manual_seed(seed)
    length = length or max(prompt + answer for prompt, answer in rows)
    input_ids, labels = torch.full((len(rows), length), PAD), torch.full((len(rows), length), -100)
    for row, (prompt, answer) in enumerate(rows):
        ids = torch.randint(len(SPECIAL), VOCABULARY, (prompt + answer,), generator=generator)
        if answer:
            ids[-1] = EOS
        input_ids[row, : len(ids)] = ids
        labels[row, prompt : prompt + answer] = ids[prompt:]
    return {"input_ids": input_ids, "labels": labels}
