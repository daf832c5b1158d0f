"""Questions that a language model writes about the passages of a corpus, checked by rules and by a judge."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
