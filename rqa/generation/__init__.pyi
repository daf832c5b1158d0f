from .answers import ANSWERS_FILE as ANSWERS_FILE
from .answers import Answer as Answer
from .answers import AnswerStore as AnswerStore
from .batches import map_batches as map_batches
from .chat import Chat as Chat
from .chat import ChatQuestion as ChatQuestion
from .endpoint_generator import EndpointGenerator as EndpointGenerator
from .endpoint_generator import GeneratorEndpoint as GeneratorEndpoint
from .generator import AnswerStreamer as AnswerStreamer
from .generator import Generator as Generator
from .streaming import Listener as Listener

__all__ = [
    "ANSWERS_FILE",
    "Answer",
    "AnswerStore",
    "AnswerStreamer",
    "Chat",
    "ChatQuestion",
    "EndpointGenerator",
    "Generator",
    "GeneratorEndpoint",
    "Listener",
    "map_batches",
]
