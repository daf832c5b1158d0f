"""A server of answers over a corpus: OpenAI's chat completions, a page, feedback."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
