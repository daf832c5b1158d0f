"""Calls of a language model behind an OpenAI-compatible endpoint: retries, budgets, and a store of the responses."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
