from .address import endpoint_of as endpoint_of
from .client import Endpoint as Endpoint
from .client import Reply as Reply

__all__ = ["Endpoint", "Reply", "endpoint_of"]
