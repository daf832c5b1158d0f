from .batches import map_batches as map_batches
from .chat import Chat as Chat
from .chat import ChatQuestion as ChatQuestion
from .generator import Answer as Answer
from .generator import AnswerStreamer as AnswerStreamer
from .generator import Generator as Generator

__all__ = [
    "Answer",
    "AnswerStreamer",
    "Chat",
    "ChatQuestion",
    "Generator",
    "map_batches",
]
