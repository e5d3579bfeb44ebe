"""What is shipped: the same bytes every time, three packages and nothing else, at home beside other packages."""

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
from tests.import_graph import FLOORS, ROOTS, module_files

PACKAGES = [package for package, floor in FLOORS.items() if floor < 3]


def copy_of_checkout(root: Path, copy: Path) -> Path:
    """A copy of the tracked files (and of new ones that git does not ignore)."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
    for source in filter(Path.is_file, (root / name for name in listed)):
        target = copy / source.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    return copy


def build(copy: Path, out: Path) -> tuple[Path, Path]:
    """(sdist, wheel made from that sdist)."""
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
    """At another time, in another folder, by another umask."""
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
    assert files == wanted | {f"{package}/py.typed" for package in PACKAGES}
    assert any(n.endswith("/LICENSE") for n in names)
    face = email.message_from_string(metadata)
    assert face["Name"] == "vitpose-fast" and face["Version"] == vitpose_fast.__version__
    assert face["Author"] == "vitpose_fast developers" and face["License"] == "Apache-2.0"
    assert face["Requires-Python"] == ">=3.11" and "Programming Language :: Python :: 3.11" in face.get_all(
        "Classifier"
    )
    assert face.get_payload().strip() == (root / "README.md").read_text(encoding="utf-8").strip()
    assert face.get_all("Project-URL") and face["Description-Content-Type"] == "text/markdown"


def test_the_version_stands_once(root):
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


def test_installed_it_lives_beside_packages_of_similar_names(built, tmp_path):
    """Only from the wheel, far from the checkout; PyPI has a package called `kernels`."""
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


def test_a_checkout_runs_beside_a_package_called_kernels(root, tmp_path, python_path):
    """The folder kernels/ of the working folder is no package: a real one wins."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("whose = 'somebody else'\n")
    code = "import kernels, vitpose_kernels; assert kernels.whose == 'somebody else'"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(tmp_path)])}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
