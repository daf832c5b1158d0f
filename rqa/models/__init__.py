"""Models of transformers that generate answers: decoders, and encoder-decoders for fusion-in-decoder."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
