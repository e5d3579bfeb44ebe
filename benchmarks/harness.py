"""Fair timings: identical random inputs, outputs compared before timing, interleaved rounds, medians and spread.

A `Case` is one comparison: inputs, and contenders, the first of which gives the reference outputs. `measure` checks
that all contenders compute the same, times them in rounds, in each of which every contender runs once on every input
set, and returns one record per contender. A contender that fails, disagrees or is impossibly fast gets a record with
the reason instead of numbers; the records of the other contenders keep their numbers.

On a GPU, calls are timed with CUDA events, and replayed from CUDA graphs unless a contender opts out: one graph of the
calls on all input sets, or one graph per set if the timer waits for every call (`Case.latency`). There are so many
sets, up to 64, that the inputs and weights read in a round exceed the caches. On a CPU there is one set.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import Machine
from vitpose_fast.runtime import count_launches
from vitpose_kernels.launch import HAS_TRITON, recording

LARGER_THAN_CACHES = 128 << 20  # bytes; on a GPU, a round reads more than this, if `MOST_SETS` input sets suffice
MOST_SETS = 64
_ARCH = 90  # launches are recorded for sm_90; the declared work is the same for every chip


@dataclass(frozen=True)
class Contender:
    """One way to compute a case.

    Attributes:
        name: name in the records; contains "eager" if it runs without CUDA graphs next to contenders with graphs.
        function: inputs -> tensors, also nested in tuples, lists or dicts. None if the contender is missing.
        missing: why the contender is missing.
        graph: on a GPU, replay the function from a CUDA graph. Ignored with `own_graph`.
        own_graph: the function uses its own CUDA graphs (torch.compile, frozen models).
        eager: with `own_graph`, the same function without graphs, to measure memory; None means the memory is unknown.
        module: an object whose `state_dict()` counts toward the memory of the contender.
        extra: added to `extra` of the contender's record.
        compiled: uses torch.compile, which takes seconds to minutes to compile.
        on_host: computes on the CPU. Only one input set is timed, because all of them would take minutes.
        agree: replaces `Case.agree` for this contender, whose arithmetic is less exact than that of the others.
        dtype: replaces `Case.dtype` in the choice of the roofline. No time is refused if its ceiling is not measured.
    """

    name: str
    function: Callable[..., Any] | None
    missing: str | None = None
    graph: bool = True
    own_graph: bool = False
    eager: Callable[..., Any] | None = None
    module: Any = None
    extra: dict[str, Any] = field(default_factory=dict)
    compiled: bool = False
    on_host: bool = False
    agree: Callable[[Any, Any], float | None] | None = None
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        suite: one of `records.SUITES`.
        dtype: dtype in which the contenders compute; it selects the roofline.
        batch: samples in a call.
        make: seed -> random inputs on the device.
        contenders: ours first. The outputs of the first contender that is not missing are the reference.
        agree: called with the reference outputs and those of another contender; raises AssertionError if they differ,
            and returns their relative error, which becomes `relative_error` in `extra`, or None.
        flops, bytes: work of one call, usually as declared by the op; None if unknown.
        extra: added to `extra` of every record.
        latency: wait for each call, as a user with one image would, and time each alone.
        launches: add the number of GPU kernels and memory operations of a call (on a CPU: of operators that are not
            views) to `extra`, except for contenders whose own `extra` has it.
    """

    suite: str
    name: str
    dtype: torch.dtype
    batch: int
    make: Callable[[int], tuple[Any, ...]]
    contenders: Sequence[Contender]
    agree: Callable[[Any, Any], float | None]
    flops: int | None = None
    bytes: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    latency: bool = False
    launches: bool = False


def with_rivals(case: Case, compiled: str) -> list[Case]:
    """Return the cases to measure in place of `case`; `compiled` says what to do with its torch.compile contenders.

    "yes" keeps them in the case and "no" drops them. "only" returns one case, ours against the contender, for each
    torch.compile contender that is not missing ([] if there is none), so that a compilation that does not finish in
    time does not lose the measurements of the others.
    """
    if compiled == "yes":
        return [case]
    if compiled == "no":
        return [replace(case, contenders=[c for c in case.contenders if not c.compiled])]
    first, *others = case.contenders
    rivals = [c for c in others if c.compiled and c.function is not None]
    return [replace(case, name=f"{case.name}, against {c.name}", contenders=[first, c]) for c in rivals]


def tensors_of(value: Any) -> list[Tensor]:
    """Return all tensors in nested tuples, lists and dicts, in order. Raises TypeError for any other value."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        raise TypeError(f"a contender returned a {type(value).__name__}, expected tensors in tuples, lists or dicts")
    return [t for part in value for t in tensors_of(part)]


def close(tolerance: float) -> Callable[[Any, Any], float]:
    """Return an `agree` that compares all output tensors by their relative error, and their shapes.

    The root mean square of a difference must be at most `tolerance` times the root mean square of the reference. The
    largest relative error of the tensors is returned.
    """

    def agree(right: Any, other: Any) -> float:
        largest = 0.0
        expected, found = tensors_of(right), tensors_of(other)
        assert [t.shape for t in expected] == [t.shape for t in found], "outputs differ in shape"
        for a, b in zip(expected, found, strict=True):
            a, b = a.detach().double(), b.detach().to(a.device).double()
            error = float((a - b).square().mean().sqrt() / a.square().mean().sqrt().clamp(min=1e-30))
            assert error <= tolerance, f"outputs differ by {error:.2e} (relative), {tolerance:.0e} allowed"
            largest = max(largest, error)
        return largest

    return agree


def same_place(pixels: float) -> Callable[[Any, Any], None]:
    """Return an `agree` for keypoints: at least a quarter of them must lie within `pixels` of the reference.

    Only the first output, the keypoints [..., 2], is compared.

    Heatmaps of untrained networks have many nearly equal maxima, so 16-bit arithmetic or another blur may pick another
    one. By chance, not even one keypoint in a hundred would lie this close.
    """

    def agree(right: Any, other: Any) -> None:
        assert right[0].shape == other[0].shape, "outputs differ in shape"
        distance = (right[0].double().cpu() - other[0].double().cpu()).norm(dim=-1).flatten()
        quarter = float(distance.quantile(0.25))
        assert quarter <= pixels, f"three quarters of the keypoints are {quarter:.1f} px apart or more"

    return agree


def check_random(inputs: Iterable[Any]) -> None:
    """Raise AssertionError if a floating-point tensor of two or more elements is constant or has a non-finite value.

    Power draw and speed depend on the data.
    """
    for i, x in enumerate(inputs):
        if isinstance(x, Tensor) and x.is_floating_point() and x.numel() > 1:
            values = x.detach().float()
            varies = bool(values.isfinite().all()) and float(values.std()) > 0
            assert varies, f"input {i} is constant or not finite; timings are taken on random data only"


def declared(function: Callable[..., Any], inputs: Sequence[Any]) -> tuple[int | None, int | None]:
    """Return (FLOPs, bytes) that our ops declare in the call `function(*inputs)`, with its backward pass if it has one.

    A sum of zero is returned as None, and without triton both are None. The call runs on the meta device, so nothing is
    computed.
    """
    if not HAS_TRITON:
        return None, None
    with recording(_ARCH) as recorded:
        function(*map(_on_meta, inputs))
    return recorded.flops or None, recorded.bytes or None


def _on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        empty = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        return empty.requires_grad_(value.requires_grad)
    return type(value)(map(_on_meta, value)) if type(value) in (list, tuple) else value


def _copy(outputs: Any) -> list[Tensor]:
    """Copy all tensors: the replay of a CUDA graph, ours or torch.compile's, overwrites the previous outputs."""
    return [t.detach().clone() for t in tensors_of(outputs)]


class _Runner:
    """A contender prepared for timing on all input sets, eagerly or from CUDA graphs."""

    def __init__(self, contender: Contender, sets: list[tuple[Any, ...]], machine: Machine, case: Case) -> None:
        self.contender, self.machine, self.latency = contender, machine, case.latency
        function = contender.function
        assert function is not None
        sets = sets[:1] if contender.on_host else sets
        self.calls_a_round = len(sets)
        self.graphed = machine.cuda and (contender.graph or contender.own_graph)
        self.calls: list[Callable[[], Any]] = [lambda s=s: function(*s) for s in sets]
        self.one_call = self.calls[0]
        self.outputs = _copy(self.one_call())
        eager = function if not contender.own_graph else contender.eager
        self.peak_mib = None if eager is None else machine.extra_mib(lambda: eager(*sets[0]))
        if self.peak_mib is not None:
            state = contender.module.state_dict().values() if contender.module is not None else ()
            resident = [*state, *(x for x in sets[0] if isinstance(x, Tensor))]
            self.peak_mib += sum(t.numel() * t.element_size() for t in resident) / 2**20
        if machine.cuda and contender.graph and not contender.own_graph:
            self.calls = machine.record(self.calls, together=not case.latency)
            self.outputs = _copy(self.calls[0]())
        self.milliseconds: list[float] = []
        self.error: float | None = None  # relative to the reference outputs

    def round(self) -> None:
        """Call the contender once on every input set and append the times to `milliseconds`.

        If the case measures latency, the time of each call is appended, else the mean over the calls.
        """
        if self.latency:
            self.milliseconds += [self.machine.time([call]) for call in self.calls]
        else:
            self.milliseconds.append(self.machine.time(self.calls) / self.calls_a_round)


def measure(
    case: Case, machine: Machine, seconds: float, benchmark: Any = None, fewest: int = 3
) -> list[dict[str, Any]]:
    """Check and time the contenders of a case; return one record per contender, in order.

    Args:
        seconds: approximate time spent on timing each contender, in at most 200 rounds.
        benchmark: fixture of pytest-benchmark; if given, it runs the rounds.
        fewest: minimum number of rounds.

    A contender that fails, disagrees with the reference, or is faster than the machine allows gets a record with the
    reason and without numbers; see `faults`. So do all contenders after one that broke the CUDA context. If ours, the
    first contender, fails, the records of the others have `unchecked` in `extra`.

    Raises:
        AssertionError: inputs are constant or not finite, or a contender that is not called "eager" runs without CUDA
            graphs next to one with graphs.
    """
    first = case.make(0)
    check_random(first)
    inputs = [t for t in first if isinstance(t, Tensor) and t.device.type == machine.device.type]
    weights = next((c.module.state_dict().values() for c in case.contenders if c.module is not None), ())
    # Bytes that pass through the caches in a call.
    size = sum(t.numel() * t.element_size() for t in (*inputs, *weights))
    count = min(MOST_SETS, LARGER_THAN_CACHES // size + 2) if machine.cuda and size else 1
    sets = [first, *(case.make(seed) for seed in range(1, count))]
    runners: list[_Runner] = []
    broken: dict[str, str] = {}
    ours = case.contenders[0].name
    for contender in (c for c in case.contenders if c.function is not None):
        if broken and machine.is_lost():
            broken[contender.name] = f"not measured: the GPU's context was lost by {next(reversed(broken))}"
            continue
        try:
            runner = _Runner(contender, sets, machine, case)
        except Exception as error:  # any error: the other contenders are still measured
            broken[contender.name] = _failed(error)
            continue
        if runners and ours not in broken:
            try:
                runner.error = (contender.agree or case.agree)(runners[0].outputs, runner.outputs)
            except AssertionError as error:
                broken[contender.name] = f"{_DISAGREES}{ours}: {error}"
                continue
        runners.append(runner)
    for runner in runners:
        fair = runner.graphed or not any(r.graphed for r in runners) or "eager" in runner.contender.name
        assert fair, (
            f"{case.name}: {runner.contender.name} runs without CUDA graphs next to others with graphs; call it eager"
        )

    def one_round() -> None:
        for runner in list(runners):
            try:
                runner.round()
            except Exception as error:
                broken[runner.contender.name] = _failed(error)
                runners.remove(runner)

    started = time.perf_counter()
    one_round()  # another warm-up, after the check of the outputs
    rounds = min(200, max(fewest, round(seconds * len(runners) / (time.perf_counter() - started))))
    for runner in runners:
        runner.milliseconds.clear()
    if benchmark is None or not runners:
        for _ in range(rounds):
            one_round()
    else:
        benchmark.pedantic(one_round, rounds=rounds, iterations=1)
    records = {r.contender.name: _record(case, r, machine) for r in runners}
    if ours in broken:
        for record in records.values():
            record["extra"]["unchecked"] = f"{ours} failed, there were no outputs to compare with"
    if case.launches:  # after all timings: the profiler slows down whatever runs later in this process
        for runner in (r for r in runners if "launches" not in r.contender.extra):
            records[runner.contender.name]["extra"]["launches"] = _launches(runner)
    if benchmark is not None:
        benchmark.extra_info |= {name: record["median_ms"] for name, record in records.items()}
    return [records.get(c.name) or missing(case, c, broken.get(c.name)) for c in case.contenders]


def _launches(runner: _Runner) -> int | None:
    """Return `Case.launches` of one call, made in the same grad mode as the timed calls; None if the profiler fails."""
    try:
        return count_launches(runner.one_call, runner.machine.device)
    except Exception:  # a profiler that does not work must not cost the timings
        return None


_FAILED, _DISAGREES, _TOO_FAST = "failed: ", "disagrees with ", "too fast to be true: "


def _failed(error: Exception) -> str:
    return f"{_FAILED}{' '.join((str(error) or type(error).__name__).split())[:200]}"


def faults(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return one line for each record of a case that makes its benchmark fail.

    That is: ours (the first record) failed, outputs disagree, or a time is impossibly short. A rival that failed is not
    a fault.
    """
    wrong = []
    for i, record in enumerate(records):
        reason = record["missing"] or ""
        if reason.startswith((_DISAGREES, _TOO_FAST)) or (i == 0 and reason.startswith(_FAILED)):
            wrong.append(f"{record['name']}: {record['implementation']} {reason}")
    return wrong


def missing(case: Case, contender: Contender, reason: str | None = None) -> dict[str, Any]:
    """Return a record without numbers. Its reason is `reason`, else the contender's `missing`, else "not available"."""
    numbers = (
        "flops",
        "bytes",
        "median_ms",
        "p10_ms",
        "p90_ms",
        "p99_ms",
        "per_second",
        "peak_mib",
        "roofline_fraction",
    )
    out = _head(case, contender, False) | dict.fromkeys(numbers)
    return out | {"missing": reason or contender.missing or "not available"}


def _head(case: Case, contender: Contender, graphed: bool) -> dict[str, Any]:
    return {
        "suite": case.suite,
        "name": case.name,
        "implementation": contender.name,
        "dtype": str(case.dtype).removeprefix("torch."),
        "batch": case.batch,
        "graphed": graphed,
        "flops": case.flops,
        "bytes": case.bytes,
        "extra": case.extra | contender.extra,
    }


def _record(case: Case, runner: _Runner, machine: Machine) -> dict[str, Any]:
    samples = sorted(runner.milliseconds)
    median = statistics.median(samples)
    dtype = runner.contender.dtype or case.dtype
    known = dtype in machine.tflops
    fraction = machine.roofline_fraction(case.flops, case.bytes, dtype, median / 1e3) if known else None
    if fraction is not None and fraction > machine.most_believable:
        reason = f"{median:.3g} ms is {fraction:.1f} times as fast as the roofline; the timing did not wait, or the "
        return missing(case, runner.contender, f"{_TOO_FAST}{reason}declared work is wrong")

    def quantile(q: float) -> float:
        return samples[min(len(samples) - 1, int(q * len(samples)))]

    head = _head(case, runner.contender, runner.graphed)
    if runner.error is not None:
        head["extra"]["relative_error"] = runner.error
    return head | {
        "median_ms": median,
        "p10_ms": quantile(0.1),
        "p90_ms": quantile(0.9),
        "p99_ms": quantile(0.99),
        "per_second": case.batch / median * 1e3,
        "peak_mib": runner.peak_mib,
        "roofline_fraction": fraction,
        "rounds": len(samples),
        "missing": None,
    }
