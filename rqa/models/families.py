"""The kind of a checkpoint, and the model families that are refused or need batches of their own.

tests/models/test_architectures.py compares every family of transformers with the plain computation, and requires that
the tables here are its result.
"""

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    PreTrainedConfig,
)

from rqa.errors import InputError

DECODER, ENCODER_DECODER = "a decoder", "an encoder-decoder"
_ROBERTAS = "camembert data2vec-text roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl".split()
_POSITIONS = "generate() of transformers counts their positions from 0, and training from the padding token"
# By model_type, the reason for a message.
UNSUPPORTED_MODELS = {
    "blt": "generate() of transformers fails",
    "cpmant": "they read prompts in both directions, so that the loss depends on padding",
    "emu3": "transformers cannot load the exported text model again",
    "mllama": "transformers cannot load the exported text model again",
    "moshi": "they generate speech beside text",
    "prophetnet": "they predict several tokens at each position",
    "reformer": "they need rows of a fixed length",
    "xlm": "they are trained to fill in masked tokens",
    "xlnet": "they are trained on permuted tokens, so that a token reads later ones",
    "xlstm": "generate() of transformers fails",
    **dict.fromkeys(_ROBERTAS, _POSITIONS),
}
# Answers of these families change with padding on the left: they have no attention mask, no positions by mask (the
# decoders of encoder-decoders), or attention to groups of positions.
_HALVES = "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart trocr whisper".split()
UNPADDED_MODELS = frozenset([*_HALVES, "deepseek_v4", "git", "rwkv"])
SINGLE_PROMPT_MODELS = frozenset(["rwkv"])  # the state of several rows is wrong in transformers' Rwkv


def check_family(name_or_path: str, config: PreTrainedConfig, kind: str) -> None:
    """Raise InputError unless a model is of this `kind`, "decoder" or "encoder-decoder", and of a supported family."""
    found, fix = _kind(config)
    if found != (DECODER if kind == "decoder" else ENCODER_DECODER):
        expected = DECODER if kind == "decoder" else f"{ENCODER_DECODER} (T5, BART) for fusion-in-decoder"
        raise InputError(f"{name_or_path}: expected {expected}, got {found} ({config.model_type}). {fix}")
    if reason := UNSUPPORTED_MODELS.get(config.model_type):
        raise InputError(
            f"{name_or_path}: models of type {config.model_type} are not supported: {reason}. Choose another model"
        )


def _kind(config: PreTrainedConfig) -> tuple[str, str]:
    """Return the kind of a model, and the fix if another kind is expected."""
    is_causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and getattr(config, "is_decoder", None) is not False
    if config.is_encoder_decoder and type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return ENCODER_DECODER, "Train it with recipes/fid_flan_t5.py, evaluate it with --qa_is_fid true"
    if is_causal and not config.is_encoder_decoder:
        return DECODER, "Train it with recipes/sft_mistral.py or recipes/swr_starling.py"
    fix = "Choose a model that AutoModelForCausalLM loads, or an encoder-decoder for recipes/fid_flan_t5.py"
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return "a model of images and text", fix
    return "an encoder" if type(config) in MODEL_FOR_MASKED_LM_MAPPING else "another kind of model", fix
