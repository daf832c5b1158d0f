from .card import RECORD as RECORD
from .card import config_of as config_of
from .card import record_run as record_run
from .card import write_cards as write_cards
from .hub import check_push as check_push
from .hub import files_to_upload as files_to_upload
from .hub import finish_run as finish_run
from .hub import push as push

__all__ = [
    "RECORD",
    "check_push",
    "config_of",
    "files_to_upload",
    "finish_run",
    "push",
    "record_run",
    "write_cards",
]
