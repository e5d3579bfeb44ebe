"""The tuner's search under a fake clock: noise, ties, options that fail, are wrong, or take long to get ready."""

from __future__ import annotations

import random

import pytest

from vitpose_fast.search import search


class Machine:
    """A fake machine: settings have true times, each run takes that time with noise, and the clock runs.

    `seconds` maps (switch, option) to a factor of the time; `base` is the time of the default.
    """

    def __init__(self, factors, noise=0.02, budget=1e9, seed=0, base=0.01):
        self.factors, self.noise, self.base, self.now, self.budget = factors, noise, base, 0.0, budget
        self.random, self.ready, self.runs = random.Random(seed), {}, 0
        self.errors, self.fails = {}, set()

    def left(self):
        return self.budget - self.now

    def trial(self, setting):
        machine, parts = self, set(setting.items())
        machine.now += sum(self.ready.get(part, 0.0) for part in parts)
        if parts & self.fails:
            raise RuntimeError("no kernel\nimage")

        class Trial:
            error = next((machine.errors[p] for p in parts if p in machine.errors), 1e-3)

            def run(self):
                time = machine.base
                for part in parts:
                    time *= machine.factors.get(part, 1.0)
                time *= machine.random.uniform(1 - machine.noise, 1 + machine.noise)
                machine.now += time
                machine.runs += 1
                return time

        return Trial()


SWITCHES = {"fc1": ["a", "b"], "attention": ["c"]}
LIBRARY = {"fc1": "a", "attention": "c"}


def found(machine, switches=SWITCHES, library=LIBRARY):
    return search(switches, library, machine.trial, machine.left)


@pytest.mark.parametrize("seed", range(8))
def test_a_slow_default_is_left(seed):
    """The default is 30 % slower than option b of fc1, and the libraries are slower than the default."""
    machine = Machine({("fc1", "b"): 1 / 1.3, ("fc1", "a"): 1.2, ("attention", "c"): 1.1}, noise=0.05, seed=seed)
    result = found(machine)
    assert result.setting == {"fc1": "b"}
    assert result.seconds["default"] / result.seconds["chosen"] == pytest.approx(1.3, rel=0.1)
    assert result.seconds["library"] / result.seconds["default"] == pytest.approx(1.32, rel=0.1)


@pytest.mark.parametrize("seed", range(8))
def test_a_gain_of_two_percent_is_refused(seed):
    factors = {("fc1", "a"): 0.99, ("fc1", "b"): 0.98, ("attention", "c"): 1.0}
    assert found(Machine(factors, noise=0.004, seed=seed)).setting == {}


@pytest.mark.parametrize("seed", range(8))
def test_ties_in_noise_leave_the_default(seed):
    assert found(Machine({}, noise=0.3, seed=seed)).setting == {}


def test_small_gains_count_where_there_is_little_noise():
    assert found(Machine({("fc1", "b"): 0.95}, noise=0.002)).setting == {"fc1": "b"}


def test_two_runs_agree():
    factors = {("fc1", "a"): 0.9, ("fc1", "b"): 0.8, ("attention", "c"): 1.3}
    settings = [found(Machine(factors, noise=0.05, seed=seed)).setting for seed in (1, 2)]
    assert settings == [{"fc1": "b"}] * 2


def test_libraries_are_the_start_if_together_they_are_faster():
    """Then each part is tried back at its default: attention is better off there."""
    factors = {("fc1", "a"): 0.5, ("attention", "c"): 1.4}
    result = found(Machine(factors))
    assert result.setting == {"fc1": "a"}
    assert result.seconds["chosen"] < result.seconds["library"] < result.seconds["default"]


def test_a_fast_and_wrong_option_is_refused():
    machine = Machine({("fc1", "b"): 0.5})
    machine.errors["fc1", "b"] = 1.6e-3  # that of the default is 1e-3
    result = found(machine)
    assert result.setting == {} and any("fc1 b: refused, error 1.6e-03" in note for note in result.notes)
    machine = Machine({("fc1", "b"): 0.5})
    machine.errors["fc1", "b"] = 1.4e-3
    result = found(machine)
    assert result.setting == {"fc1": "b"} and result.errors["chosen"] == 1.4e-3


@pytest.mark.parametrize("error", [float("nan"), float("inf")])
def test_an_option_that_gives_no_numbers_is_refused(error):
    machine = Machine({("fc1", "b"): 0.5})
    machine.errors["fc1", "b"] = error
    assert found(machine).setting == {}


def test_an_option_that_fails_is_noted_in_one_line():
    machine = Machine({("fc1", "a"): 0.5, ("fc1", "b"): 0.9})
    machine.fails.add(("fc1", "a"))
    result = found(machine)
    assert result.setting == {"fc1": "b"} and "library" not in result.seconds
    assert "fc1 a: failed (RuntimeError: no kernel image)" in result.notes


def test_a_default_that_fails_is_an_error():
    machine = Machine({})
    with pytest.raises(RuntimeError):
        search(
            SWITCHES, {}, lambda setting: machine.fails.add(1) or (_ for _ in ()).throw(RuntimeError("x")), machine.left
        )


def test_no_option_starts_after_the_end():
    """Option a takes longer than the budget to get ready, so nothing is compared."""
    machine = Machine({("fc1", "a"): 0.5, ("fc1", "b"): 0.5}, budget=60.0)
    machine.ready["fc1", "a"] = 100.0
    result = found(machine)
    assert result.setting == {} and "fc1 b: no time left" in result.notes
    assert set(result.seconds) >= {"default", "chosen"}


def test_the_time_is_kept():
    machine = Machine({("fc1", "b"): 0.9}, noise=0.3, budget=2.0)
    found(machine)
    assert machine.now < 2.0 + 10 * machine.base
