from .formats import FORMATS as FORMATS
from .formats import Format as Format
from .formats import recognized as recognized
from .source import Source as Source
from .writer import Conversion as Conversion
from .writer import convert as convert

__all__ = ["FORMATS", "Conversion", "Format", "Source", "convert", "recognized"]
