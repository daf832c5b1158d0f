"""The best evaluation of a run, and early stopping: pure functions of the scores."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rqa.errors import InputError
from rqa.evaluation.metrics import HIGHER_IS_BETTER


@dataclass
class EarlyStopping:
    """The evaluations of a run by one metric. Without a metric there is no best one, and no early stop."""

    metric: str = ""
    patience: int | None = None  # evaluations
    values: dict[int, float] = field(default_factory=dict)  # of each evaluation, by step

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the evaluation after a step. Raises InputError if it lacks the metric: without references."""
        if self.metric and self.metric not in metrics:
            raise InputError(
                f"--metric_for_best_model {self.metric}: expected it among the scores, got {', '.join(metrics)}. Add "
                "answers to the questions of --eval_file."
            )
        if self.metric:
            self.values[step] = metrics[self.metric]

    @property
    def best(self) -> int | None:
        """The step of the best evaluation, the first of equal ones. NaN is never the best."""
        sign = 1.0 if HIGHER_IS_BETTER.get(self.metric, True) else -1.0
        numbers = {step: sign * value for step, value in self.values.items() if value == value}
        return max(numbers, key=lambda step: (numbers[step], -step), default=None)

    @property
    def should_stop(self) -> bool:
        """True if none of the last `patience` evaluations is better than the best before them."""
        best = -1 if self.best is None else self.best
        return self.patience is not None and sum(step > best for step in self.values) >= self.patience
