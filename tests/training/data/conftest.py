"""Fixtures shared by the tests of the annotation readers: sample files, and files with changed content."""

from __future__ import annotations

import json
from functools import cache

import pytest

from tests.training.data.sample_files import COMPANIONS, FILES
from vitpose_fast.rows import read_json
from vitpose_training.data.read import read_labels


@pytest.fixture(scope="session")
def original(samples):
    """original(layout, kind="data") -> content of the sample file of a layout, or of InterHand's companion `kind`.

    If the content is a list, it is cut to the first five entries. Tests must not change it.
    """

    @cache
    def read(layout, kind="data"):
        if kind != "data":
            return read_json(samples / f"interhand2.6m/test_interhand2.6m_{kind}.json")
        data = read_json(samples / FILES[layout][1])
        return data[:5] if isinstance(data, list) else data

    return read


@pytest.fixture
def reread(original, tmp_path):
    """reread(layout, data, **companions) -> `Labels` read from a file with the content `data`.

    For InterHand the companion files are written too, with the original content unless other content is given.
    """

    def read(layout, data, **companions):
        content = {"data": data}
        if layout == "interhand":
            content |= {kind: companions.get(kind, original(layout, kind)) for kind in COMPANIONS}
        for kind, value in content.items():
            (tmp_path / f"x_{kind}.json").write_text(json.dumps(value))
        return read_labels(FILES[layout][0], tmp_path / "x_data.json", tmp_path)

    return read
