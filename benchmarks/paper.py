"""Table 12 of the ViTPose++ paper: its rows, its claims about speed, and whether a result file confirms them."""

from __future__ import annotations

from benchmarks.records import Results, digits, gather

REFUSAL = "cannot be judged from this file"
TOLERANCE = 0.25

PAPER_RATIOS = (  # rows of Table 12 to compare, similar in accuracy, with its own ratio of frames per second
    ("ViTPose-S 256x192", "SimpleBaseline-R152 256x192", 1.74),
    ("ViTPose-B 256x192", "HRNet-W32 384x288", 2.21),
    ("ViTPose-L 256x192", "UDP HRNet-W48 384x288", 1.33),
    ("ViTPose-H 256x192", "HRFormer-B 256x192", 1.53),
)
PAPER_ROWS = (
    "SimpleBaseline-R152 256x192",
    "HRNet-W32 384x288",
    "HRNet-W48 384x288",
    "UDP HRNet-W48 384x288",
    "FastPose-R152 256x192",
    "TokenPose-L/D24 256x192",
    "TransPose-H/A6 256x192",
    "HRFormer-B 256x192",
    "HRFormer-B 384x288",
    *(f"ViTPose-{size} 256x192" for size in "SBLH"),
    *(f"ViTPose++-{size} 256x192" for size in "SBLH"),  # once split, the same networks: the paper repeats the speeds
)


def verdicts(results: Results) -> list[tuple[str, list[str]]]:
    """Compare a file with Table 12, in order of speed and in ratios; return (title, lines) per dtype and batch."""
    if not results.suite("table12"):
        return []
    if not results.on_gpu:
        return [(f"The paper's Table 12 {REFUSAL}: {results.environment['device']} is not a GPU.", [])]
    eager = [r for r in results.suite("table12") if r.implementation == "eager" and not r.graphed]
    if not eager:
        return [(f"The paper's Table 12 {REFUSAL}: it has no eager rows.", [])]
    mark = " (quick run)" if results.environment["quick"] else ""
    texts = []
    for (dtype, batch), rows in gather(eager, "dtype", "batch").items():
        speed = {r.name: r.throughput for r in rows if r.throughput}
        paper = {r.name: r.extra["paper_fps"] for r in rows if r.extra.get("paper_fps")}
        lines = [order(speed, paper), *(ratio(speed, *pair) for pair in PAPER_RATIOS)]
        texts.append((f"Against the paper's A100 column, eager, {dtype}, batch {batch}{mark}:", lines))
    return texts


def order(speed: dict[str, float], paper: dict[str, float]) -> str:
    """Compare the order of speed with the paper's, leaving out pairs that are equally fast in the paper."""
    ranked = sorted((n for n in speed if n in paper), key=lambda n: -paper[n])
    pairs = [(a, b) for i, a in enumerate(ranked) for b in ranked[i + 1 :] if paper[a] > paper[b]]
    wrong = [f"{a} {digits(speed[a])} not above {b} {digits(speed[b])}" for a, b in pairs if speed[a] <= speed[b]]
    text = f"in {len(wrong)} of {len(pairs)} pairs it differs from the paper's" + (": " if wrong else "")
    text += "; ".join(wrong)
    absent = [n for n in PAPER_ROWS if n not in ranked and not n.startswith("ViTPose++")]
    if absent:
        return f"Order of speed: {REFUSAL}, missing: {', '.join(absent)}. Among the rows present {text}."
    return f"Order of speed: {text}." if wrong else f"Order of speed: equals the paper's in all {len(pairs)} pairs."


def ratio(speed: dict[str, float], ours: str, rival: str, paper: float) -> str:
    """Compare one ratio of speeds with the paper's; it is reproduced if it lies within 25 % of it."""
    absent = [name for name in (ours, rival) if name not in speed]
    if absent:
        return f"{ours} / {rival}: {REFUSAL}, missing: {', '.join(absent)}."
    found = speed[ours] / speed[rival]
    word = "reproduced" if abs(found / paper - 1) <= TOLERANCE else "not reproduced"
    return f"{ours} / {rival}: paper {paper}, measured {found:.2f}: {word}."
