"""What the pages say is true: citations and links resolve, tables and generated pages are up to date."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.records import load
from benchmarks.speed_page import chart
from vitpose_fast.models.config import PLUS_TASKS, PRESETS
from vitpose_fast.models.vitpose import create_model
from vitpose_kernels.chips import ARCHITECTURES
from vitpose_training.data.catalog import DATA_SETS
from vitpose_training.run.presets import PRESETS as RUNS

PAGE = "docs/numerics.md"
NUMBER = r"\d+(?:\.\d+)*"
CITATION = re.compile(rf"{re.escape(PAGE)} ({NUMBER}(?:(?:, | to | and ){NUMBER})*)")
HEADING = re.compile(rf"^#{{2,}} ({NUMBER})\.? ", re.M)
# The last letters are in brackets, so that this line does not match itself.
INTERNAL = re.compile(r"\b(?:SPE[C]|HOUS[E])\b|\b(?:KERNEL[S]|GP[U]|PAPE[R])\.md")
BUILT = {"build", "demo", "dist", "node_modules", "runs", "site-packages", "venv"}  # folders that are not sources


def cited_sections(text: str) -> list[str]:
    """Return the section numbers of docs/numerics.md that a text cites, ranges expanded, in order.

    A citation may continue on the next line of a docstring, a comment or a paragraph.
    """
    found: list[str] = []
    for numbers in CITATION.findall(re.sub(r"[ \t]*\n[ \t]*(?:[#>] )?[ \t]*", " ", text)):
        for part in re.split(", | and ", numbers):
            first, _, last = part.partition(" to ")
            found.append(first)
            if last:
                chapter, _, start = first.rpartition(".")
                end_chapter, _, end = last.rpartition(".")
                if chapter == end_chapter:
                    prefix = f"{chapter}." if chapter else ""
                    found += [f"{prefix}{i}" for i in range(int(start) + 1, int(end))]
                found.append(last)
    return found


def unresolved_citations(text: str, headings: set[str]) -> list[str]:
    """Return the cited section numbers that are not among `headings`, each once, in the order of the text."""
    return [number for number in dict.fromkeys(cited_sections(text)) if number not in headings]


def headings_of(page: str) -> set[str]:
    """Return the numbers that the headings of a Markdown page begin with."""
    return set(HEADING.findall(page))


def source_files(root: Path) -> list[Path]:
    """Return the files of the project: the existing files that git tracks or, without git, all that are not built."""
    if (root / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True)
        if listed.returncode == 0:
            tracked = [root / name for name in listed.stdout.split("\0") if name]
            return [path for path in tracked if path.is_file()]
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [
            f for f in folders if f not in BUILT and not (f.startswith((".", "__")) or f.endswith(".egg-info"))
        ]
        found += [Path(folder, name) for name in names]
    return found


@pytest.fixture(scope="module")
def texts(root) -> dict[str, str]:
    """Content of the project's text files by path relative to the root; binary files are left out."""
    out = {}
    for path in source_files(root):
        try:
            out[path.relative_to(root).as_posix()] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
    return out


def test_every_cited_section_has_a_heading(texts, root):
    headings = headings_of((root / PAGE).read_text(encoding="utf-8"))
    cited = {name: text for name, text in texts.items() if name.endswith((".py", ".md", ".toml"))}
    cited.pop("tests/test_docs.py", None)  # it makes up citations, some of them wrong
    missing = {name: wrong for name, text in cited.items() if (wrong := unresolved_citations(text, headings))}
    assert not missing, f"{PAGE} has no such sections: {missing}"
    assert any(cited_sections(text) for name, text in cited.items() if name != PAGE), f"nothing cites {PAGE}"


def test_no_file_mentions_an_internal_document(texts):
    found = {
        f"{name}:{number}": line.strip()[:100]
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if INTERNAL.search(line)
    }
    assert not found, f"internal documents are mentioned: {found}"


HEADINGS = {"1", "1.2", "3", "3.1", "3.2", "3.3", "10", "12.1"}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Zero padding (docs/numerics.md 1.2).", []),
        ("As docs/numerics.md 1.2, 3.1, 10: whole chapters too.", []),
        ("Source: docs/numerics.md 3.1 to 3.3.", []),
        ("See docs/numerics.md for all of it, or docs/numerics.md 12.1.", []),
        ("docs/numerics.md 9.9 does not exist", ["9.9"]),
        ("docs/numerics.md 1.2, 9.9 and 8", ["9.9", "8"]),
        ("docs/numerics.md 3.2 to 3.5: 3.4 and 3.5 are missing", ["3.5", "3.4"]),
        ("docs/numerics.md 1 to 3: a chapter between them is missing", ["2"]),
        ("# a comment that ends with docs/numerics.md\n    # 9.9 goes on", ["9.9"]),
        ('"""A docstring (docs/numerics.md 1.2,\n    7.7) goes on."""', ["7.7"]),
        ("docs/numerics.md 1.20 is not 1.2", ["1.20"]),
        ("A paragraph that ends with docs/numerics.md\n\n9.9 begins the next one", []),
        ("another page: docs/other.md 9.9", []),
    ],
)
def test_unresolved_citations_are_found(text, wrong):
    assert sorted(unresolved_citations(text, HEADINGS)) == sorted(wrong)


def test_headings_are_found():
    blocks = [
        "# Page",
        "## 1. Model",
        "text 9.9",
        "### 1.2 Forward",
        "    ## 7 code",
        "#8 text",
        "## 12. Values",
        "### 12.1 A",
    ]
    page = "\n\n".join(blocks)
    assert headings_of(page) == {"1", "1.2", "12", "12.1"}


def test_internal_documents_are_found():
    names = [
        text.replace("-", "") for text in ("SPE-C 7.1", "the HOUS-E", "KERNEL-S.md", "GP-U.md", "in PAPE-R.md, page 2")
    ]
    assert all(INTERNAL.search(name) for name in names)
    assert not any(INTERNAL.search(name) for name in ("INSPECTION", "test_house.py", "a GPU", "PAPER", "specification"))


@pytest.mark.parametrize("is_repository", [True, False])
def test_files_of_a_made_up_tree(tmp_path, is_repository):
    if is_repository and not shutil.which("git"):
        pytest.skip("needs git")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "numerics.md").write_text("## 1. Model\n\n### 1.2 Forward\n")
    (tmp_path / "code.py").write_text('"""Cites docs/numerics.md 1.2 and docs/numerics.md 4.4."""\n')
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "code.py").write_text("# docs/numerics.md 5.5\n")
    if is_repository:
        for command in (["init", "-q"], ["add", "docs", "code.py"]):
            subprocess.run(["git", *command], cwd=tmp_path, check=True)
    files = source_files(tmp_path)
    assert sorted(f.relative_to(tmp_path).as_posix() for f in files) == ["code.py", "docs/numerics.md"]
    headings = headings_of((tmp_path / PAGE).read_text())
    wrong = [unresolved_citations(f.read_text(), headings) for f in sorted(files)]
    assert wrong == [["4.4"], []]


# --- links, generated pages, tables


def pages(root: Path) -> list[Path]:
    return [*root.glob("*.md"), *(root / "docs").rglob("*.md")]


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a Markdown page."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page, flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_and_pictures_exist(root):
    checked = 0
    for page in pages(root):
        for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
            file, _, anchor = target.partition("#")
            path = page.parent / file if file else page
            assert path.exists(), f"{page}: {target}"
            assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), f"{page}: {target}"
            checked += 1
    assert checked > 50


def test_paths_named_in_the_design_exist(root):
    """Paths with a placeholder (NAME, an op called x) are patterns."""
    text = (root / "DESIGN.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w.+]+(?:/[\w.+]+)*/?)`", text))
    paths = [
        p
        for p in named
        if "/" in p and p.split("/")[0] in {"kernels", "vitpose_fast", "training", "tests", "docs", "benchmarks"}
    ]
    paths = [p for p in paths if not re.search(r"NAME|/x\.py|test_x\.py", p)]
    assert len(paths) > 40
    assert [p for p in sorted(paths) if not (root / p).exists()] == []


def test_the_api_reference_is_what_the_docstrings_say(root):
    done = subprocess.run([sys.executable, "docs/make_api.py", "--check"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_chart_is_what_the_committed_result_files_say(root):
    files = sorted((root / "benchmarks" / "results").glob("*.json"))
    results = [load(file) for file in files if not file.stem.endswith("-tuned")]
    assert (root / "docs" / "speed.svg").read_text(encoding="utf-8") == chart(results)


def table_rows(page: Path, first_column: str) -> list[list[str]]:
    """Return the rows of the first table whose head begins with this column, each a list of cells, without the head."""
    table = page.read_text(encoding="utf-8").split(f"| {first_column} |", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()[2:]]


def test_the_table_of_models_has_their_parameter_counts(root):
    rows = table_rows(root / "README.md", "model")
    assert [row[0].lower() for row in rows] == [name for name in PRESETS if "tiny" not in name]
    for name, parameters, *_ in rows:
        plus = "++" in name
        with torch.device("meta"):
            model = create_model(name.lower(), tasks=PLUS_TASKS if plus else ("coco",))
        assert parameters == f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} M", name


def test_the_table_of_data_sets_is_the_catalog(root):
    rows = {row[0].strip("`"): row for row in table_rows(root / "docs" / "data.md", "name")}
    assert list(rows) == list(DATA_SETS)
    for name, (_, folder, keypoints, splits, _) in rows.items():
        known = DATA_SETS[name]
        assert folder.startswith(f"`data/{known.folder}`") and int(keypoints) == known.keypoint_set.num_keypoints, name
        assert splits.split(", ") == list(known.splits), name


def test_the_table_of_platforms_names_every_architecture(root):
    page = (root / "docs" / "platforms.md").read_text(encoding="utf-8")
    assert set(map(int, re.findall(r"\(sm_(\d+)\)", page))) == set(ARCHITECTURES)


def test_the_table_of_presets_names_presets(root):
    named = set()
    for row in table_rows(root / "docs" / "train.md", "presets"):
        for text in re.findall(r"`([^`]+)`", row[0]):
            start = (
                text if text.startswith(("coco", "joint", "mix", "experts", "tiny", "overfit")) else f"coco-b-8{text}"
            )
            head, brace, rest = start.partition("{")
            inside, _, tail = rest.partition("}")
            named |= {head + choice + tail for choice in inside.split(",")} if brace else {start}
    assert named <= set(RUNS), named - set(RUNS)
    families = {"coco", "joint", "mix", "experts", "tiny", "overfit"}
    assert {name.split("-")[0] for name in RUNS} == {name.split("-")[0] for name in named} == families
