"""Search for the fastest of several ways to do the same work, by timing them against each other.

A *setting* says for each *switch* which of its options is used; a switch that it does not name stays at its default.
The search starts with the default of everything, tries one given setting (everything by libraries), then every option
of every switch in turn, and keeps what is faster (greedy). It knows nothing about models: a `Trial` is anything that
can be timed and that has an error.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

LEAST_GAIN = 0.03  # fraction of the time that an option must save
MOST_ERROR = 1.5  # an option's error may be this many times that of the default
PAIRS = (6, 24)  # least and most pairs of runs in a comparison

NO_TIME = "no time left"  # the note about an option that was not measured for lack of time

Option = TypeVar("Option")


class Trial(Protocol):
    """A setting that is ready to run.

    Attributes:
        error: error of its results.
    """

    error: float

    def run(self) -> float:
        """Run once and return the time in seconds."""
        ...


@dataclass
class Found:
    """What a search found.

    Attributes:
        setting: the fastest setting: switch -> option, only where the option is not the default.
        seconds: median time of a run, of "default", "library" (absent if that setting could not run) and "chosen".
        errors: of the same.
        notes: what was refused and why, and what there was no time for.
    """

    setting: dict[str, object]
    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def gain(new: Trial, old: Trial, left: Callable[[], float]) -> float:
    """Return which fraction of the time of `old` the trial `new` saves; 0 if that is too little, or may be noise.

    The two run in pairs, each first in every other pair, so that both meet the same changes of clock rate and load. A
    gain counts from `LEAST_GAIN` on, and from twice the standard error of the median ratio on. The comparison ends when
    it is decided, after the most pairs, or when no time is `left`.
    """
    ratios: list[float] = []
    saved = 0.0
    while len(ratios) < PAIRS[1]:
        if left() <= 0:
            return 0.0 if len(ratios) < PAIRS[0] else saved
        if len(ratios) % 2:
            before, after = old.run(), new.run()
        else:
            after, before = new.run(), old.run()
        ratios.append(after / before)
        if len(ratios) < PAIRS[0]:
            continue
        low, middle, high = statistics.quantiles(ratios)
        spread = 1.253 * (high - low) / 1.349 / math.sqrt(len(ratios))  # standard error, for a normal distribution
        saved = 1 - middle if 1 - middle >= max(LEAST_GAIN, 2 * spread) else 0.0
        if abs(1 - middle - LEAST_GAIN) > 4 * spread:
            break
    return saved


def wins(new: Trial, old: Trial, left: Callable[[], float]) -> bool:
    """Return whether `new` is faster, twice in a row: among many options, noise would let some win once."""
    return gain(new, old, left) > 0 and gain(new, old, left) > 0


def search(
    switches: Mapping[str, Sequence[Option]],
    library: Mapping[str, Option],
    trial: Callable[[dict[str, Option]], Trial],
    left: Callable[[], float],
) -> Found:
    """Find a fast setting within the time that `left()` returns, in seconds.

    Args:
        switches: switch -> its options other than the default, the most important switch first.
        library: the setting that is tried before the single options. Empty means none.
        trial: makes a setting ready to run, which may take long (compilation); an exception refuses the setting.
        left: the time left.

    Returns:
        The setting, which is the default if nothing else is faster, right and ready in time.
    """
    default = trial({})
    best, chosen = default, Found({}, errors={"default": default.error})

    def ready(setting: dict[str, Option], name: str) -> Trial | None:
        if left() <= 0:
            chosen.notes.append(f"{name}: {NO_TIME}")
            return None
        try:
            new = trial(setting)
        except Exception as error:  # an option may fail in any way, and the default remains
            reason = " ".join(str(error).split())[:120]
            chosen.notes.append(f"{name}: failed ({type(error).__name__}: {reason})")
            return None
        if not new.error <= MOST_ERROR * default.error:
            chosen.notes.append(f"{name}: refused, error {new.error:.1e} against {default.error:.1e} of the default")
            return None
        return new

    libraries = ready(dict(library), "all by libraries") if library else None
    if libraries is not None and wins(libraries, best, left):
        best, chosen.setting = libraries, dict(library)
    for switch, options in switches.items():
        without = {name: option for name, option in chosen.setting.items() if name != switch}
        tried: list[dict[str, object]] = [{**without, switch: option} for option in options]
        for setting in [*tried, without] if switch in chosen.setting else tried:
            if setting == chosen.setting:
                continue
            name = f"{switch} {setting.get(switch, 'default')}"
            new = ready(setting, name)  # type: ignore[arg-type]
            if new is not None and wins(new, best, left):
                best, chosen.setting = new, setting
    rivals = {"default": default} | ({} if libraries is None else {"library": libraries})
    rivals |= {} if best in rivals.values() else {"chosen": best}
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for i in range(PAIRS[0]):
        if i < 2 or left() > 0:
            for name, one in rivals.items():
                times[name].append(one.run())
    if "chosen" not in rivals:
        name = "default" if best is default else "library"
        rivals["chosen"], times["chosen"] = best, times[name]
    chosen.seconds = {name: statistics.median(t) for name, t in times.items()}
    chosen.errors = {name: one.error for name, one in rivals.items()}
    return chosen
