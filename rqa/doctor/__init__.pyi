from .checks import KINDS as KINDS
from .checks import Finding as Finding
from .checks import length_findings as length_findings
from .checks import record_findings as record_findings
from .checks import source_of as source_of
from .checks import truncation_finding as truncation_finding
from .memory import estimate_training as estimate_training
from .memory import planned_sharding as planned_sharding
from .memory import sample_inputs as sample_inputs
from .memory import training_memory as training_memory
from .summary import print_findings as print_findings
from .summary import print_training as print_training
from .summary import token_lengths as token_lengths
from .summary import write_findings as write_findings

__all__ = [
    "KINDS",
    "Finding",
    "estimate_training",
    "length_findings",
    "planned_sharding",
    "print_findings",
    "print_training",
    "record_findings",
    "sample_inputs",
    "source_of",
    "token_lengths",
    "training_memory",
    "truncation_finding",
    "write_findings",
]
