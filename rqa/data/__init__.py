"""User files: examples, passages, the corpus, and the passages of a training example."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
