from .answer_decoder import unknown_control_tokens as unknown_control_tokens
from .chat_template import TEMPLATE_DATE as TEMPLATE_DATE
from .collators import IGNORE_INDEX as IGNORE_INDEX
from .collators import Collator as Collator
from .collators import ConcatenatedCollator as ConcatenatedCollator
from .collators import EncodedExample as EncodedExample
from .collators import ParallelCollator as ParallelCollator
from .decoder_prompt import INSTRUCTION as INSTRUCTION
from .decoder_prompt import ChatFormat as ChatFormat
from .decoder_prompt import Prompt as Prompt
from .decoder_prompt import PromptBuilder as PromptBuilder
from .decoder_prompt import load_tokenizer as load_tokenizer
from .fid_prompt import PassagePromptBuilder as PassagePromptBuilder
from .fid_prompt import PassagePrompts as PassagePrompts

__all__ = [
    "IGNORE_INDEX",
    "INSTRUCTION",
    "TEMPLATE_DATE",
    "ChatFormat",
    "Collator",
    "ConcatenatedCollator",
    "EncodedExample",
    "ParallelCollator",
    "PassagePromptBuilder",
    "PassagePrompts",
    "Prompt",
    "PromptBuilder",
    "load_tokenizer",
    "unknown_control_tokens",
]
