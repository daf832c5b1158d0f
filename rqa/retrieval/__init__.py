"""Retrieval: the vector index, the encoder, and the passages retrieved for the examples of a run."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
