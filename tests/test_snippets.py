"""Every code block of the README, CONTRIBUTING.md and docs/ runs, in the order of its page, on small data made here.

Python blocks of a page share their variables. Shell commands run in this process; after `<!-- parsed only: reason -->`
they are parsed by their own parsers (every preset, flag and value has to exist) and not run.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "DESIGN.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:<!-- ([^>]*?) -->\n)?^```(\w*)\n(.*?)^```$", re.S | re.M)
# What sets up an environment or checks a whole checkout: .ci/run and tests/test_packaging.py do that.
SETUP = ("python3 -m venv", "pip install", ".venv/bin/", "python -m pytest", "ruff", "bash .ci/run")


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """Return (note, code) for every code block of a page in one of these languages.

    The note is the text of a comment directly before the block, such as "parsed only: reason", or "".
    """
    text = page.read_text(encoding="utf-8")
    return [(note or "", code) for note, language, code in BLOCK.findall(text) if language in languages]


def commands(code: str) -> list[str]:
    """Return the commands of a shell block: its lines, with continued lines joined and without comments."""
    lines = code.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s+#.*", "", f" {line}").strip() for line in lines) if line]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with the files that the snippets name: a photo, boxes, weights of the tiny model, annotated images."""
    import vitpose_fast as vp
    from vitpose_fast.checkpoints import save_official
    from vitpose_training.demo.synthetic import write_dataset

    folder = tmp_path_factory.mktemp("snippets")
    Image.fromarray(np.full((200, 200, 3), 128, np.uint8)).save(folder / "photo.jpg")
    model = vp.create_model("vitpose-tiny", decoder_width=256)  # as wide as the released ones
    vp.save_model(model, folder / "weights")
    save_official(model, folder / "official.pth")
    detections = [{"file_name": "photo.jpg", "bbox": [20, 10, 100, 150], "score": 0.9}]
    (folder / "boxes.json").write_text(json.dumps(detections))
    annotations = write_dataset(folder / "made", 10, 0)
    shutil.copy(annotations, folder / "people.json")
    shutil.copytree(annotations.parent / "images", folder / "photos")
    for split in ("train", "val"):
        file = folder / "data" / "coco" / "annotations" / f"person_keypoints_{split}2017.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(annotations, file)
        shutil.copytree(annotations.parent / "images", folder / "data" / "coco" / f"{split}2017")
    shutil.copytree(ROOT / "benchmarks" / "results", folder / "benchmarks" / "results")
    return folder


@pytest.fixture
def workplace(made, tmp_path, monkeypatch) -> Path:
    """A copy of the folder `made`, as the current folder, for the snippets of one page."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


class Parsed(Exception):
    """Raised by commands under `parse_only` once their command line is parsed without error."""


@pytest.fixture
def parse_only(monkeypatch):
    """Make every command raise `Parsed` once its command line is parsed."""
    import tyro

    def stop(parse):
        def parsed(*args, **kwargs):
            parse(*args, **kwargs)
            raise Parsed

        return parsed

    monkeypatch.setattr(tyro, "cli", stop(tyro.cli))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop(argparse.ArgumentParser.parse_args))


def call(command: str) -> int:
    """Run a shell command of a snippet in this process and return its exit code."""
    from benchmarks import report
    from vitpose_fast.__main__ import main

    words = shlex.split(command)
    if words[0] == "torchrun":
        words = ["python", *words[words.index("training/train.py") :]]
    if words[0] == "vitpose-fast":
        arguments = words[1:]
    elif words[:2] in (["python", "training/train.py"], ["python", "training/validate.py"]):
        arguments = [Path(words[1]).stem, *words[2:]]
    elif words[:2] == ["python", "benchmarks/report.py"]:
        return report.main(words[2:])
    else:
        raise AssertionError(f"a command that no test runs: {command}")
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code


def pages_with(*languages: str) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in PAGES if blocks(page, *languages)]


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_blocks_run(page, workplace):
    torch.manual_seed(0)
    variables: dict = {}
    for _, code in blocks(ROOT / page, "python"):
        exec(compile(code, page, "exec"), variables)


@pytest.mark.parametrize("page", pages_with("bash"))
def test_shell_commands_run(page, workplace):
    for note, code in blocks(ROOT / page, "bash"):
        for command in commands(code):
            if not note.startswith("parsed only:") and not command.startswith(SETUP):
                assert call(command) == 0, command


@pytest.mark.parametrize("page", pages_with("bash"))
def test_shell_commands_that_take_too_long_are_understood(page, workplace, parse_only):
    for note, code in blocks(ROOT / page, "bash"):
        if note.startswith("parsed only:"):
            for command in commands(code):
                with pytest.raises(Parsed):
                    call(command)


def test_no_block_is_left_out():
    """A language that nobody runs would be a hole; ```text``` is output or a formula."""
    for page in PAGES:
        languages = {language for _, language, _ in BLOCK.findall(page.read_text(encoding="utf-8"))}
        assert languages <= {"python", "bash", "text"}, page
        fences = len(re.findall(r"^```", page.read_text(encoding="utf-8"), re.M))
        assert fences == 2 * len(BLOCK.findall(page.read_text(encoding="utf-8"))), page


def test_unknown_presets_and_flags_are_noticed(workplace, parse_only):
    for wrong in ("train coco-x", "train coco-b --no-such-flag 1", "bench --suites nothing"):
        assert call(f"vitpose-fast {wrong}") == 2


def test_commands_are_listed(root):
    from vitpose_fast.__main__ import COMMANDS

    readme = (root / "README.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"vitpose-fast {command}" in readme, command


def test_messages_of_the_prediction_page_are_those_that_users_get(root, workplace):
    import vitpose_fast as vp

    page = (root / "docs" / "predict.md").read_text(encoding="utf-8")
    predict = vp.PosePredictor(vp.create_model("vitpose-tiny", image_size=(64, 48), depth=1))
    two_heads = vp.create_model("vitpose++-tiny", tasks=("coco", "aic"), image_size=(64, 48), depth=1)
    failures = [
        lambda: predict("photo.jpg", [[1, 2, 3]]),
        lambda: predict("photo.jpg", [[500, 10, 20, 20]]),
        lambda: vp.PosePredictor(two_heads),
    ]
    for failure in failures:
        with pytest.raises(ValueError) as error:
            failure()
        message = str(error.value).removeprefix("photo.jpg: ").removeprefix("boxes: ")
        message = re.sub(r"\[[\d., ]+\] lies", "[...] lies", message).partition(" (x, y")[0]
        assert f"| `{message}` |" in page, message
