"""Results of an evaluation to the numbers of each data set (SPEC 7)."""

from __future__ import annotations

from collections.abc import Sequence

from vitpose_fast.rows import Row
from vitpose_training.data.people import Labels, Metric, by_data_set


def score(labels: Sequence[Labels], results: list[Row]) -> dict[str, float]:
    """The metrics of a data set (SPEC 7) for results as `evaluate_labels` makes them.

    Raises:
        ValueError: ground truth or results that cannot be evaluated, in one line.
    """
    return labels[0].data_set.metric.score(labels, results)


def check_can_evaluate(labels: Sequence[Labels]) -> None:
    """Refuse now what an evaluation would refuse after a training.

    Raises:
        ValueError: a keypoint set without OKS sigmas, ground truth or files that are of no use.
    """
    for group in by_data_set(labels).values():
        if not any(one.people for one in group):
            raise ValueError(f"nobody to evaluate on: {group[0].summary()}")
        try:
            score(group, [])
        except ValueError as error:
            files = ", ".join(dict.fromkeys(one.people[0].source for one in group if one.people))
            raise ValueError(f"{files}: cannot be evaluated on: {error}") from None


def table(numbers: dict[str, float], metric: Metric) -> str:
    """The numbers of a metric in lines of up to six, per cent but for distances. -1, nothing to measure, stays."""

    def shown(name: str, value: float) -> str:
        if name in metric.pixels:
            return f"{value:.2f} px"
        return f"{value if metric.per_cent or value < 0 else 100 * value:.1f}"

    cells = [f"{name} {shown(name, value)}" for name, value in numbers.items()]
    width = max(map(len, cells)) + 3
    return "\n".join("".join(c.ljust(width) for c in cells[i : i + 6]).rstrip() for i in range(0, len(cells), 6))
