"""Table 12 of the ViTPose++ paper: its rows, its claims about speed, and whether a result file confirms them."""

from __future__ import annotations

from benchmarks.records import Results, digits, gather

REFUSAL = "cannot be judged from this file"
TOLERANCE = 0.25

PAPER_RATIOS = (  # two rows of Table 12 with similar accuracy, and the ratio of their frames per second in the table
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
    *(f"ViTPose++-{size} 256x192" for size in "SBLH"),  # with merged experts the same networks; same speeds
)


def verdicts(results: Results) -> list[tuple[str, list[str]]]:
    """Compare the eager rows of a file with the A100 column of Table 12, in order of speed and in `PAPER_RATIOS`.

    Returns (title, lines) per dtype and batch size; a title without lines if the file is not from a GPU or has no eager
    rows; [] if it has no suite `table12`.
    """
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
    """Return a sentence that compares the order of the rows by speed with their order in the paper.

    `speed` and `paper` map the names of rows to samples per second. A pair of rows differs if the row that is faster in
    the paper is not faster here; pairs that are equally fast in the paper are left out.
    """
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
    """Return a sentence that compares the ratio of the speeds of two rows with `paper`, the paper's ratio.

    The paper's ratio is reproduced if the measured one differs from it by at most 25 %.
    """
    absent = [name for name in (ours, rival) if name not in speed]
    if absent:
        return f"{ours} / {rival}: {REFUSAL}, missing: {', '.join(absent)}."
    found = speed[ours] / speed[rival]
    word = "reproduced" if abs(found / paper - 1) <= TOLERANCE else "not reproduced"
    return f"{ours} / {rival}: paper {paper}, measured {found:.2f}: {word}."
