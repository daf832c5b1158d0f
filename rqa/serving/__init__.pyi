from .access import Access as Access
from .app import make_app as make_app
from .batcher import Batcher as Batcher
from .feedback import Feedback as Feedback
from .server import serve as serve

__all__ = ["Access", "Batcher", "Feedback", "make_app", "serve"]
