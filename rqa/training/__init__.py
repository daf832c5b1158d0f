"""The training loop and its parts: batches, optimizer, learning rate, checkpoints, log."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
