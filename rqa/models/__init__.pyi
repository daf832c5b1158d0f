from .auto import attention_for as attention_for
from .auto import export_dtype as export_dtype
from .auto import load_collator as load_collator
from .auto import load_generator as load_generator
from .decoder import AnswerLM as AnswerLM
from .decoder import check_context_length as check_context_length
from .decoder import max_positions as max_positions
from .fid import FusionInDecoder as FusionInDecoder
from .loading import load_config as load_config
from .loading import load_model as load_model
from .lora import Lora as Lora
from .lora import planned_adapter as planned_adapter

__all__ = [
    "AnswerLM",
    "FusionInDecoder",
    "Lora",
    "attention_for",
    "check_context_length",
    "export_dtype",
    "load_collator",
    "load_config",
    "load_generator",
    "load_model",
    "max_positions",
    "planned_adapter",
]
