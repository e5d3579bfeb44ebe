"""The house rules: floors, cold imports, what ships, and life beside a broken torchvision."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest

from vitpose_fast.kernels._calls import OPS

FLOORS = {"kernels": 0, "vitpose_fast": 1, "training": 2, "benchmarks": 3, "tests": 3}
FRONT_DOOR = "vitpose_fast/__main__.py"


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env={**os.environ, **environment}
    )


def sources(root: Path) -> list[Path]:
    return [
        p
        for folder in FLOORS
        for p in sorted((root / folder).rglob("*.py"))
        if not any(parent.is_symlink() for parent in p.parents if root in parent.parents)
    ]


def floor_of(module: str) -> int | None:
    parts = module.split(".")
    if parts[0] != "vitpose_fast":
        return FLOORS.get(parts[0])
    return FLOORS.get(parts[1], 1) if len(parts) > 1 else 1


def imports(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "siblings are imported by their full name"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_imports_point_down_or_sideways(root):
    checked = 0
    for path in sources(root):
        name = path.relative_to(root).as_posix()
        if name == FRONT_DOOR:
            continue
        for module in imports(ast.parse(path.read_text(encoding="utf-8"))):
            floor = floor_of(module)
            if floor is not None:
                checked += 1
                assert floor <= FLOORS[name.split("/")[0]], f"{name} imports {module} from a higher floor"
            assert not module.startswith("vitpose_fast.__main__") or name.startswith(("training/", "tests/")), name
    assert checked > 50


def test_kernels_need_torch_and_triton_only(root):
    allowed = {
        "torch",
        "vitpose_fast",
        "__future__",
        "collections",
        "contextlib",
        "itertools",
        "math",
        "os",
        "typing",
        "functools",
        "importlib",
    }
    tools = {"triton", "re", "subprocess", "tempfile"}  # in kernels/gpu alone: the ops import it when they launch
    for path in (root / "kernels").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside_gpu = path.parent.name == "gpu"
        for node in tree.body:
            for module in imports(ast.Module([node], [])) if isinstance(node, ast.Import | ast.ImportFrom) else []:
                top = module.split(".")[0]
                assert top in allowed or (inside_gpu and top in tools), f"{path.name} imports {module}"
                assert inside_gpu or "kernels.gpu" not in module, f"{path.name} imports {module} before it launches"


def test_a_machine_without_triton_uses_the_references():
    done = python(
        """
        import sys
        sys.modules["triton"] = None
        import torch
        from vitpose_fast import functional as F
        x = torch.randn(1, 4, 3, 1, 8)
        assert F.attention(x, (2, 2)).shape == (1, 4, 8)
        try:
            F.attention(x, (2, 2), impl="triton")
        except ValueError as error:
            assert "triton is not installed" in str(error)
        else:
            raise SystemExit("not refused")
        """
    )
    assert done.returncode == 0, done.stderr


def test_every_op_has_its_test_and_its_place_in_the_index(root):
    index = (root / "vitpose_fast" / "functional.py").read_text(encoding="utf-8")
    ops = [p.stem for p in (root / "kernels").glob("*.py") if not p.name.startswith("_")]
    assert len(ops) >= 10
    assert sorted(ops) == sorted(OPS)
    for op in ops:
        for folder in ("kernels", "kernels/gpu"):
            assert (root / "tests" / folder / f"test_{op}.py").is_file(), op
        assert (root / "kernels" / "gpu" / f"{op}.py").is_file(), op
        assert f"vitpose_fast.kernels.{op} import {op}" in index, op
        text = (root / "kernels" / f"{op}.py").read_text(encoding="utf-8")
        order = [text.index(f"def {op}_reference("), text.index("@triton_op("), text.index(f"\ndef {op}(")]
        assert order == sorted(order), f"{op}: reference, registration, public function, in this order"


def test_no_packages_where_they_would_shadow_others(root):
    assert not (root / "kernels" / "__init__.py").exists() and not (root / "training" / "__init__.py").exists()
    assert not list((root / "tests").rglob("__init__.py"))
    taken = set(sys.stdlib_module_names) | {"datasets", "evaluate", "transforms", "accelerate"}
    assert not {p.stem for p in (root / "training").glob("*.py")} & taken


def test_import_loads_nothing():
    done = python(
        """
        import sys, vitpose_fast
        loaded = {m.split(".")[0] for m in sys.modules}
        bad = loaded & {"torch", "triton", "numpy", "PIL", "tyro", "pycocotools", "matplotlib", "transformers"}
        assert not bad, bad
        import torch
        from vitpose_fast import functional
        import vitpose_fast.kernels.attention
        assert not any(m.startswith(("vitpose_fast.models", "vitpose_fast.modules", "PIL")) for m in sys.modules)
        """
    )
    assert done.returncode == 0, done.stderr


def test_import_adds_less_than_a_tenth_of_a_second():
    code = "import torch, time; t = time.process_time(); import vitpose_fast; print(time.process_time() - t)"
    assert min(float(python(code).stdout) for _ in range(3)) < 0.1


def test_every_public_name_exists():
    done = python(
        """
        import vitpose_fast as vp
        for name in vp.__all__:
            assert getattr(vp, name) is not None
        assert set(vp.__all__) <= set(dir(vp))
        try:
            vp.nonsense
        except AttributeError as error:
            assert "nonsense" in str(error)
        else:
            raise SystemExit("no AttributeError")
        """
    )
    assert done.returncode == 0, done.stderr


def test_everything_imports_beside_a_broken_torchvision(root, tmp_path):
    for name in ("torchvision", "timm"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    modules = [
        "vitpose_fast." + ".".join(p.relative_to(root / "vitpose_fast").with_suffix("").parts)
        for p in sorted((root / "vitpose_fast").rglob("*.py"))
    ]
    modules += [f"vitpose_fast.{f}.{p.stem}" for f in ("kernels", "training") for p in sorted((root / f).glob("*.py"))]
    code = f"""
        import importlib
        for name in {[m.removesuffix(".__init__") for m in modules]!r}:
            importlib.import_module(name)
        import torch, vitpose_fast as vp
        model = vp.create_model("vitpose-tiny", image_size=(64, 48), depth=1).eval()
        poses = vp.PosePredictor(model)(torch.zeros(32, 32, 3, dtype=torch.uint8))
        assert poses.keypoints.shape == (1, 17, 2)
        """
    done = python(code, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_without_triton_everything_imports(tmp_path):
    (tmp_path / "triton.py").write_text("raise ImportError('no triton on this machine')\n")
    code = """
        import torch
        from vitpose_fast import functional as F
        assert F.attention(torch.zeros(1, 4, 3, 1, 8), grid=(2, 2)).shape == (1, 4, 8)
        """
    done = python(code, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def built(root, tmp_path_factory) -> dict[str, set[str]]:
    """File names in the wheel and in the sdist, built from a copy of the tracked files."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        source, target = root / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
        elif source.is_file():
            target.write_bytes(source.read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive, tarfile.open(sdist) as tar:
        return {"wheel": set(archive.namelist()), "sdist": {n.split("/", 1)[1] for n in tar.getnames() if "/" in n}}


def test_wheel_holds_the_package_and_nothing_else(root, built):
    tops = {n.split("/")[0] for n in built["wheel"]}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"vitpose_fast"}
    for folder in ("kernels", "training", "vitpose_fast"):
        for path in sources(root):
            name = path.relative_to(root).as_posix()
            if name.startswith(f"{folder}/"):
                shipped = name if folder == "vitpose_fast" else f"vitpose_fast/{name}"
                assert shipped in built["wheel"], shipped
    assert "vitpose_fast/py.typed" in built["wheel"]
    assert any(n.endswith("/LICENSE") for n in built["wheel"])


def test_sdist_can_be_built_again(built):
    needed = {"setup.py", "pyproject.toml", "README.md", "LICENSE", "kernels/attention.py", "training/train.py"}
    assert needed <= built["sdist"]


def test_a_broken_device_ends_the_process_and_names_the_test(leave_if_broken, capsys):
    codes = []

    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore lines")

    leave_if_broken("tests/x.py::test_y", lambda: None, codes.append)
    assert codes == [] and capsys.readouterr().err == ""
    leave_if_broken("tests/x.py::test_y", broken, codes.append)
    assert codes == [70]
    assert "tests/x.py::test_y: the CUDA context is broken (CUDA error: an illegal memory" in capsys.readouterr().err
