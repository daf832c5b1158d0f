"""Which evaluation of a run was the best, and when to stop: a pure function of their scores."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# What a trained model can be chosen by, and whether more of it is better. The retriever's scores are left out: it is
# frozen, so that they are the same after every update.
HIGHER_IS_BETTER = {"loss": False, "bleu": True, "rouge1": True, "rouge2": True, "rougeL": True, "em": True, "f1": True}


@dataclass
class EarlyStopping:
    """The evaluations of a run by one of its metrics: which was best, and how long ago.

    Without a metric nothing is best, and nothing is over.
    """

    metric: str = ""  # one of HIGHER_IS_BETTER
    patience: int | None = None  # evaluations
    values: dict[int, float] = field(default_factory=dict)  # of each evaluation, by update

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take note of the evaluation after update `step`."""
        if self.metric:
            self.values[step] = metrics[self.metric]

    @property
    def best(self) -> int | None:
        """The update of the best evaluation, of equals the first; what is not a number is worst."""
        sign = 1.0 if HIGHER_IS_BETTER.get(self.metric) else -1.0
        numbers = {step: sign * value for step, value in self.values.items() if value == value}
        return max(numbers, key=lambda step: (numbers[step], -step), default=None)

    @property
    def should_stop(self) -> bool:
        """Whether the last `patience` evaluations were no better than one before them."""
        best = -1 if self.best is None else self.best
        return self.patience is not None and sum(step > best for step in self.values) >= self.patience
