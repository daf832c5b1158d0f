from .checks import control_token_finding as control_token_finding
from .checks import length_findings as length_findings
from .checks import record_findings as record_findings
from .checks import sample_for_rows as sample_for_rows
from .checks import sources_of as sources_of
from .checks import truncation_finding as truncation_finding
from .checks import update_finding as update_finding
from .files import read_corpus as read_corpus
from .files import read_splits as read_splits
from .findings import KINDS as KINDS
from .findings import Finding as Finding
from .memory import estimate_training as estimate_training
from .memory import planned_sharding as planned_sharding
from .memory import sample_inputs as sample_inputs
from .memory import training_memory as training_memory
from .summary import exit_status as exit_status
from .summary import print_findings as print_findings
from .summary import print_training as print_training
from .summary import token_lengths as token_lengths
from .summary import write_findings as write_findings

__all__ = [
    "KINDS",
    "Finding",
    "control_token_finding",
    "estimate_training",
    "exit_status",
    "length_findings",
    "planned_sharding",
    "print_findings",
    "print_training",
    "read_corpus",
    "read_splits",
    "record_findings",
    "sample_for_rows",
    "sample_inputs",
    "sources_of",
    "token_lengths",
    "training_memory",
    "truncation_finding",
    "update_finding",
    "write_findings",
]
