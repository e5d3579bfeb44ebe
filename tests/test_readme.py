"""The README's code runs, and what it says about the commands is true."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from vitpose_fast.__main__ import COMMANDS


@pytest.fixture(scope="module")
def readme(root) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


def test_python_snippets_run(readme, tmp_path, monkeypatch):
    import vitpose_fast as vp

    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((200, 200, 3), 128, np.uint8)).save("photo.jpg")
    vp.save_model(vp.create_model("vitpose-tiny"), "weights")
    snippets = re.findall(r"```python\n(.*?)```", readme, re.S)
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {})


def test_commands_are_listed(readme):
    for command in COMMANDS:
        assert f"vitpose-fast {command}" in readme, command


def test_links_and_pictures_exist(readme, root):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", readme):
        assert (root / target).exists(), target
