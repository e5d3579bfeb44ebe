"""Score the results of an evaluation with the metric of their data set (docs/numerics.md 7)."""

from __future__ import annotations

from collections.abc import Sequence

from vitpose_fast.rows import Row
from vitpose_training.data.people import Labels, Metric, by_data_set


def score(labels: Sequence[Labels], results: list[Row]) -> dict[str, float]:
    """Compute the metric of a data set (docs/numerics.md 7).

    Args:
        labels: The labels of one or more annotation files of the same data set.
        results: Results as returned by `evaluate_labels`. They are scored as they are, without OKS suppression.

    Returns:
        The numbers of the metric by name.

    Raises:
        ValueError: If the metric cannot score the labels or the results (see `Metric.score`). The message is one line.
    """
    return labels[0].data_set.metric.score(labels, results)


def check_can_evaluate(labels: Sequence[Labels]) -> None:
    """Check before training that evaluation will be possible afterwards.

    Args:
        labels: The labels of annotation files of any number of data sets.

    Raises:
        ValueError: If a data set has no people in any of its files, or if its metric cannot score an empty list of
            results: for example if the keypoint set has no OKS sigmas, or a file that the metric reads is missing.
    """
    for group in by_data_set(labels).values():
        if not any(one.people for one in group):
            raise ValueError(f"no people to evaluate on: {group[0].summary()}")
        try:
            score(group, [])
        except ValueError as error:
            files = ", ".join(dict.fromkeys(one.people[0].source for one in group if one.people))
            raise ValueError(f"{files}: cannot be used for evaluation: {error}") from None


def table(numbers: dict[str, float], metric: Metric) -> str:
    """Format the numbers of a metric, at least one, as a table with up to six numbers per line.

    Distances (`Metric.pixels`) are in pixels; all other numbers are printed as percentages. The value -1, which means
    that there is nothing to measure, is not scaled.
    """

    def shown(name: str, value: float) -> str:
        if name in metric.pixels:
            return f"{value:.2f} px"
        return f"{value if metric.per_cent or value < 0 else 100 * value:.1f}"

    cells = [f"{name} {shown(name, value)}" for name, value in numbers.items()]
    width = max(map(len, cells)) + 3
    return "\n".join("".join(c.ljust(width) for c in cells[i : i + 6]).rstrip() for i in range(0, len(cells), 6))
