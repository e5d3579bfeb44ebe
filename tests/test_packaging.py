"""Packaging: reproducible builds that hold the three packages only and coexist with packages of similar names."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import vitpose_fast
from tests.import_graph import LAYERS, ROOTS, module_files

PACKAGES = [package for package, layer in LAYERS.items() if layer < 3]


def copy_of_checkout(root: Path, copy: Path) -> Path:
    """Copy the tracked files, and new files that git does not ignore, from `root` to `copy`, and return `copy`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
    for source in filter(Path.is_file, (root / name for name in listed)):
        target = copy / source.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    return copy


def build(copy: Path, out: Path) -> tuple[Path, Path]:
    """Build the checkout `copy` into `out` and return the paths of (sdist, wheel built from that sdist)."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"SOURCE_DATE_EPOCH": "1700000000"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr + done.stdout
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return sdist, wheel


@pytest.fixture(scope="module")
def built(root, tmp_path_factory) -> tuple[Path, Path]:
    return build(copy_of_checkout(root, tmp_path_factory.mktemp("copy")), tmp_path_factory.mktemp("dist"))


def test_building_twice_gives_the_same_bytes(root, built, tmp_path):
    """The second build runs at another time, in another folder and with another umask."""
    before = os.umask(0o077)
    try:
        copy = copy_of_checkout(root, tmp_path / "another" / "copy")
    finally:
        os.umask(before)
    os.utime(copy / "setup.py", (1, 1))
    for one, again in zip(built, build(copy, tmp_path / "dist"), strict=True):
        assert one.name == again.name and one.read_bytes() == again.read_bytes(), one.name


def test_wheel_holds_the_three_packages_and_nothing_else(root, built):
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(n).decode() for n in names if n.endswith("/METADATA"))
    files = {n for n in names if ".dist-info/" not in n}
    wanted = {
        path.relative_to(root / ROOTS[module.partition(".")[0]]).as_posix()
        for module, path in module_files(root).items()
        if module.partition(".")[0] in PACKAGES
    }
    data = {f"{package}/py.typed" for package in PACKAGES} | {"vitpose_kernels/gpu/tuned.json"}
    assert files == wanted | data
    assert any(n.endswith("/LICENSE") for n in names)
    fields = email.message_from_string(metadata)
    assert fields["Name"] == "vitpose-fast" and fields["Version"] == vitpose_fast.__version__
    assert fields["Author"] == "vitpose_fast developers" and fields["License"] == "Apache-2.0"
    assert fields["Requires-Python"] == ">=3.11" and "Programming Language :: Python :: 3.11" in fields.get_all(
        "Classifier"
    )
    assert fields.get_payload().strip() == (root / "README.md").read_text(encoding="utf-8").strip()
    assert fields.get_all("Project-URL") and fields["Description-Content-Type"] == "text/markdown"


def test_the_version_is_defined_once(root):
    for path in (root / "setup.py", root / "pyproject.toml", *(root / "vitpose_fast").rglob("*.py")):
        count = path.read_text(encoding="utf-8").count(f'"{vitpose_fast.__version__}"')
        assert count == (path == root / "vitpose_fast" / "__init__.py"), path


def test_sdist_holds_what_a_build_needs(root, built):
    with tarfile.open(built[0]) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    names = {n for n in names if ".egg-info/" not in n}
    assert {n.split("/")[0] for n in names if "/" in n} == {"kernels", "vitpose_fast", "training"}
    assert {n for n in names if "/" not in n} == {
        "LICENSE",
        "MANIFEST.in",
        "PKG-INFO",
        "README.md",
        "pyproject.toml",
        "setup.cfg",
        "setup.py",
    }
    assert not [n for n in names if "test" in n or "results" in n]


def test_the_installed_wheel_coexists_with_packages_of_similar_names(built, tmp_path):
    """The wheel is imported outside the checkout; PyPI has a package called `kernels`."""
    target = tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
        str(built[1]),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for other in ("kernels", "training"):
        (target / other).mkdir()
        (target / other / "__init__.py").write_text("whose = 'somebody else'\n")
    code = f"""
import kernels, training, vitpose_fast, vitpose_kernels.gpu, vitpose_training.run.presets, os
assert kernels.whose == training.whose == "somebody else"
for package in (vitpose_fast, vitpose_kernels, vitpose_training):
    assert os.path.dirname(package.__path__[0]) == {str(target)!r}, package.__path__
"""
    environment = os.environ | {"PYTHONPATH": str(target)}
    for command in (["-c", code], ["-m", "vitpose_fast", "train", "tiny", "--help"], ["-m", "vitpose_fast", "info"]):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_checkout_coexists_with_a_package_called_kernels(root, tmp_path, python_path):
    """The folder kernels/ in the current directory is not a package, so a real package `kernels` wins."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("whose = 'somebody else'\n")
    code = "import kernels, vitpose_kernels; assert kernels.whose == 'somebody else'"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(tmp_path)])}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
