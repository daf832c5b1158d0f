"""Files of other data sets and libraries, converted to rows that rqa reads."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
