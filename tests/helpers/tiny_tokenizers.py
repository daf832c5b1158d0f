"""Tiny tokenizers, one of each family of chat formats, with a few words as tokens."""

from functools import cache, partial
from itertools import pairwise
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from rqa.prompts.decoder_prompt import ChatFormat, PromptBuilder

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (  # it trims what it is given
    "{{ bos_token }}{% for message in messages %}<|header|>{{ message.role }}<|/header|>\n\n"
    "{{ message.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant<|/header|>\n\n{% endif %}"
)
INST = (  # it refuses what does not alternate; the space before an answer is not in the opening of one
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}"
)
CORRECT = (
    "{{ bos_token }}{% for message in messages %}GPT4 Correct {{ message.role.title() }}: "
    "{{ message.content }}<|end_of_turn|>{% endfor %}"
    "{% if add_generation_prompt %}GPT4 Correct Assistant:{% endif %}"
)
LINES = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
HYBRID = (  # it reasons unless it is told not to; a conversation ends with a closed block
    "{% if tools %}<tool_call>{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
CHANNELS = (  # only the last message of a conversation ends with <|return|>
    "<|start|>system<|message|>Today: {{ strftime_now('%Y-%m-%d') }}<|end|>"
    "{% for message in messages %}<|start|>{{ message.role }}"
    "{{ '<|channel|>final' if message.role == 'assistant' }}<|message|>{{ message.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
HEADED = (  # a block is closed before every answer, and no token ends one
    "[gMASK]<sop>{% for message in messages %}<|{{ message.role }}|>\n"
    "{{ '<think></think>\n' if message.role == 'assistant' }}{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TURNS = (  # BOS opens each question, and a space precedes eos
    "{% for message in messages %}{% if message.role == 'user' %}{{ bos_token + '[INST] ' + message.content }} [/INST]"
    "{% else %}{{ ' ' + message.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TEXTUAL = (  # no token but eos, and no BOS
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;?!'\"[]()<>/|_-"
WORDS = [  # merged from their left; {s} is a space
    *"{s}the {s}and {s}us ing {s}[ {s}{s} </ _of_ {s}Answer Answer {s}question {s}only {s}passages {s}below".split(),
    *"user assistant Assistant {s}Correct {s}Assistant {s}User GPT4 INST Who Yes".split(),
    *"Water {s}water Boil Cat {s}cat {s}dogs".split(),
    *(".\n\n", "\n\n"),
]
SPLIT = r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # as Llama 3 and Qwen


def _bpe(control: list[str], symbols: list[str], words: list[str], **options) -> Tokenizer:
    """Return a byte-pair encoding with `control` first, then `symbols`, then the words, merged from their left."""
    vocabulary = {token: id for id, token in enumerate([*control, *symbols])}
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        starts = [word[:end] for end in range(1, len(word) + 1)]
        merges |= {(start, longer[-1]): None for start, longer in pairwise(starts)}
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    return Tokenizer(models.BPE(vocabulary, merges=list(merges), **options))


def _add_bos(backend: Tokenizer, bos: str) -> None:
    backend.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))])


def _byte_level(control: list[str]) -> Tokenizer:
    words = [word.format(s="Ġ").replace("\n", "Ċ") for word in WORDS]
    backend = _bpe(control, sorted(pre_tokenizers.ByteLevel.alphabet()), words)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def chatml() -> PreTrainedTokenizerFast:
    """Return a tokenizer like Qwen's: bytes, no BOS; padding is eos."""
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(control),
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=control,
        chat_template=CHATML,
    )


def headers() -> PreTrainedTokenizerFast:
    """Return a tokenizer like Llama 3's: bytes, BOS before every text, no padding token."""
    control = ["<|begin|>", "<|eot|>", "<|header|>", "<|/header|>"]
    backend = _byte_level(control)
    _add_bos(backend, "<|begin|>")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin|>",
        eos_token="<|eot|>",
        additional_special_tokens=control,
        chat_template=HEADERS,
    )


def mistral(*more: str, spaces: str = "always", strips: bool = False, template: str = INST) -> PreTrainedTokenizerFast:
    """Return a tokenizer like Mistral's: SentencePiece with byte fallback, BOS and a space before every text.

    `spaces`: before the text at each side of a control token ("always"; by a "normalizer", as older files have it), or
    before the "first" alone. The control tokens `more` swallow the white space after them where it `strips`.
    """
    control = ["<unk>", "<s>", "</s>", *more]
    symbols = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", "\n", *CHARACTERS]
    words = [word.format(s="▁") for word in WORDS]
    backend = _bpe(control, symbols, words, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    if spaces == "normalizer":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=spaces, split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _add_bos(backend, "<s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=[AddedToken(token, special=True, normalized=False, rstrip=strips) for token in more],
        chat_template=template,
    )


def starling(spaces: str = "always") -> PreTrainedTokenizerFast:
    """Return a tokenizer like Starling's: Mistral's and a control token that ends turns and is not eos."""
    return mistral("<|end_of_turn|>", spaces=spaces, template=CORRECT)


def phi(spaces: str = "always") -> PreTrainedTokenizerFast:
    """Return a tokenizer like Phi 3's: line feeds after a control token belong to it; padding is not eos."""
    tokenizer = mistral("<|user|>", "<|assistant|>", "<|end|>", spaces=spaces, strips=True, template=LINES)
    tokenizer.pad_token = "<unk>"
    return tokenizer


def spaced() -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes whose template writes a space before an answer."""
    tokenizer = headers()
    tokenizer.chat_template = INST
    return tokenizer


def hybrid(template: str = HYBRID) -> PreTrainedTokenizerFast:
    """Return a tokenizer like Qwen 3's: some of its control tokens are not special."""
    tokenizer = chatml()
    tokenizer.add_tokens(["<think>", "</think>", "<tool_call>", "\n\n\n"])
    tokenizer.chat_template = template
    return tokenizer


def channels() -> PreTrainedTokenizerFast:
    """Return a tokenizer like that of gpt-oss: an answer is in the last of several channels."""
    control = ["<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(control),
        eos_token="<|return|>",
        additional_special_tokens=control,
        chat_template=CHANNELS,
    )


def headed() -> PreTrainedTokenizerFast:
    """Return a tokenizer like GLM's: text after the generation prompt, and the next turn ends an answer."""
    control = ["<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<think>", "</think>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(control),
        eos_token="<|endoftext|>",
        additional_special_tokens=control,
        chat_template=HEADED,
    )


STARLING = ChatFormat("GPT4 Correct User", "GPT4 Correct Assistant", "<|end_of_turn|>", "<|end_of_turn|>")
MISTRAL = ChatFormat("<s>[INST]", "[/INST]", " ", "</s>")
TEMPLATES = {  # by the tokenizer's chat template
    "chatml": chatml,
    "headers": headers,
    "mistral": mistral,
    "mistral, older": partial(mistral, spaces="normalizer"),
    "mistral, newer": partial(mistral, spaces="first"),
    "starling": starling,
    "starling, newer": partial(starling, "first"),
    "phi": phi,
    "phi, newer": partial(phi, "first"),
    "spaced": spaced,
    "hybrid": hybrid,
    "channels": channels,
    "headed": headed,
    "turns": partial(mistral, template=TURNS),
    "turns, older": partial(mistral, template=TURNS, spaces="normalizer"),
    "turns, newer": partial(mistral, template=TURNS, spaces="first"),
    "textual": partial(mistral, template=TEXTUAL),
    "textual, older": partial(mistral, template=TEXTUAL, spaces="normalizer"),
    "textual, newer": partial(mistral, template=TEXTUAL, spaces="first"),
}
FORMATS = {  # and by flags
    **{f"{name}'s template": (make, None) for name, make in TEMPLATES.items()},
    "starling's flags": (starling, STARLING),
    "starling's flags, newer": (partial(starling, "first"), STARLING),
    "mistral's flags": (mistral, MISTRAL),
    "mistral's flags, older": (partial(mistral, spaces="normalizer"), MISTRAL),
    "flags that end in white space": (chatml, ChatFormat("<|im_start|>user", "<|im_start|>bot", "\n", "<|im_end|>\n")),
    "flags without control tokens": (headers, ChatFormat("User", "Assistant", "\n", "#\n")),
}


@cache
def builder(name: str, **options: Any) -> PromptBuilder:
    """Return the prompt builder of one of `FORMATS`."""
    make, chat = FORMATS[name]
    return PromptBuilder(make(), chat, **options)
