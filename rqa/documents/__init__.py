"""Folders of documents to a corpus: files to text, text to passages, passages to a file."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
