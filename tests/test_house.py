"""Rules for the code base: layers, lazy imports, op files, and broken or missing dependencies."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap

from tests.import_graph import LAYERS, cycles, import_graph, imported_names, module_files
from vitpose_kernels.calls import OPS

COMMAND_LINE = "vitpose_fast.__main__"
PACKAGES = [package for package, layer in LAYERS.items() if layer < 3]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new Python process and return it, whether it succeeded or not."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env={**os.environ, **environment}
    )


def package_of(module: str) -> str:
    """Return the top-level package of a module."""
    return module.partition(".")[0]


def test_no_import_points_to_a_higher_layer(root):
    checked = 0
    for module, targets in import_graph(root).items():
        for target in targets:
            checked += 1
            if module != COMMAND_LINE:
                higher = LAYERS[package_of(target)] > LAYERS[package_of(module)]
                assert not higher, f"{module} imports {target} from a higher layer"
            assert target != COMMAND_LINE or package_of(module) == "tests", f"{module} imports {COMMAND_LINE}"
            assert package_of(target) != "tests" or package_of(module) == "tests", f"{module} imports {target}"
            private = any(part.startswith("_") and part != "__main__" for part in target.split("."))
            assert not private or package_of(target) == package_of(module), f"{module} imports the private {target}"
    assert checked > 400


def test_there_are_no_import_cycles(root):
    """Imports inside functions count too: files in a cycle can only be understood together."""
    assert cycles(import_graph(root)) == []


def test_import_cycles_are_found():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"d"}}) == [["a", "b", "c"]]
    assert cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_dynamic_imports_are_rare(root):
    """`import_module` hides an import from every tool that follows imports, so only a few files may use it."""
    allowed = {
        "vitpose_fast.__init__",  # public names are imported lazily
        "vitpose_fast.__main__",  # commands are imported lazily
        "vitpose_fast.bench",  # imports torch only if needed
        "vitpose_kernels.gpu.aot",  # the kernel that a `Source` names, and triton's driver
    }
    hidden = set()
    for module, path in module_files(root).items():
        if package_of(module) != "tests" and re.search(
            r"import_module\(|__import__\(", path.read_text(encoding="utf-8")
        ):
            hidden.add(f"{module}.__init__" if path.name == "__init__.py" else module)
    assert hidden <= allowed, hidden - allowed


def test_kernels_need_torch_and_triton_only(root):
    allowed = {
        "torch",
        "vitpose_kernels",
        "__future__",
        "collections",
        "contextlib",
        "itertools",
        "math",
        "os",
        "typing",
        "functools",
        "contextvars",
        "json",
        "pathlib",
        "platform",
        "importlib",
    }
    tools = {"triton", "re", "subprocess", "tempfile"}  # only in gpu/, which the ops import when they launch
    for path in (root / "kernels").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside_gpu = path.parent.name == "gpu"
        for node in tree.body:
            names = imported_names(ast.Module([node], [])) if isinstance(node, ast.Import | ast.ImportFrom) else []
            for name in names:
                top = name.split(".")[0]
                assert top in allowed or (inside_gpu and top in tools), f"{path.name} imports {name}"
                assert inside_gpu or "vitpose_kernels.gpu" not in name, f"{path.name} imports {name} before it launches"


def test_functions_inside_kernels_take_values_and_not_loose_scalars(root):
    """A kernel takes scalars (see `vitpose_kernels/gpu/__init__.py`); a function that it calls takes at most twelve."""
    texts = [p.read_text(encoding="utf-8") for p in (root / "kernels" / "vitpose_kernels" / "gpu").glob("*.py")]
    functions = [node for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    jitted = [f for f in functions if any("jit" in ast.dump(decorator) for decorator in f.decorator_list)]
    called = [f for f in jitted if any(re.search(rf"(?<!def )\b{f.name}\(", text) for text in texts)]
    assert len(called) > 30 and len(jitted) > len(called)
    for function in called:
        loose = [a.arg for a in function.args.args if a.annotation is None]  # compile-time constants have annotations
        assert len(loose) <= 12, f"{function.name} takes {len(loose)}: {', '.join(loose)}"


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


def test_rocm_uses_the_references():
    """AMD GPUs are `cuda` devices to torch, but the kernels know NVIDIA's chips only."""
    done = python(
        """
        import torch
        torch.version.hip = "6.4"
        from vitpose_fast import functional as F
        x = torch.randn(1, 4, 3, 1, 8)
        assert F.attention(x, (2, 2)).shape == (1, 4, 8)
        try:
            F.attention(x, (2, 2), impl="triton")
        except ValueError as error:
            assert "ROCm" in str(error) and "impl='reference'" in str(error)
        else:
            raise SystemExit("not refused")
        """
    )
    assert done.returncode == 0, done.stderr


def test_every_op_has_its_files_tests_benchmark_and_index_entry(root):
    index = (root / "vitpose_fast" / "functional.py").read_text(encoding="utf-8")
    timed = "".join(p.read_text(encoding="utf-8") for p in (root / "benchmarks").glob("test_*.py"))
    files = sorted((root / "kernels" / "vitpose_kernels").glob("*.py"))
    texts = {p.stem: p.read_text(encoding="utf-8") for p in files}
    ops = [name for name, text in texts.items() if "@triton_op(" in text]
    assert ops == sorted(OPS)
    for op in ops:
        places = ["kernels/vitpose_kernels/gpu/{}.py", "tests/kernels/test_{}.py", "tests/kernels/gpu/test_{}.py"]
        for file in (root / place.format(op) for place in places):
            assert file.is_file(), f"{op} lacks {file}"
        assert f"from vitpose_kernels.{op} import {op}" in index, op
        assert re.search(rf"\bF\.{op}\b", timed), f"{op} has no benchmark"
        order = [texts[op].index(text) for text in (f"def {op}_reference(", "@triton_op(", f"\ndef {op}(")]
        assert order == sorted(order), f"{op}: reference, registration, public function, in this order"


def test_no_package_shadows_another(root):
    assert not (root / "kernels" / "__init__.py").exists() and not (root / "training" / "__init__.py").exists()
    assert not list((root / "tests").rglob("__init__.py"))
    assert not [p for p in root.rglob("*") if p.is_symlink() and ".venv" not in p.parts], (
        "symbolic links are not allowed: some tools do not follow them"
    )
    tops = {p.stem for folder in ("kernels", "training") for p in (root / folder).iterdir()} - {"train", "validate"}
    assert tops == {"vitpose_kernels", "vitpose_training"}


def test_importing_the_package_is_lazy():
    done = python(
        """
        import sys, vitpose_fast
        loaded = {m.split(".")[0] for m in sys.modules}
        bad = loaded & {"torch", "triton", "numpy", "PIL", "tyro", "pycocotools", "matplotlib", "transformers"}
        assert not bad, bad
        import torch
        from vitpose_fast import functional
        import vitpose_kernels.attention
        assert not any(m.startswith(("vitpose_fast.models", "vitpose_fast.modules", "PIL")) for m in sys.modules)
        """
    )
    assert done.returncode == 0, done.stderr


def test_the_first_pose_on_a_cpu_does_not_import_the_compiler(tmp_path):
    """Neither that of PyTorch nor triton: they would take twice as long to import as everything else."""
    done = python(
        f"""
        import sys, torch
        import vitpose_fast as vp
        model = vp.create_model("vitpose-s", image_size=(64, 48), depth=1)
        vp.save_model(model, {str(tmp_path / "m")!r})
        frozen = vp.freeze(vp.load_model({str(tmp_path / "m")!r}), dtype=torch.float32)
        vp.PosePredictor(frozen)(torch.zeros(60, 80, 3, dtype=torch.uint8), [[5, 5, 40, 50]])
        heavy = ("torch._dynamo", "torch._inductor", "sympy", "triton")
        assert not [m for m in sys.modules if m in heavy]
        assert hasattr(torch.ops.vitpose_fast, "linear")
        """
    )
    assert done.returncode == 0, done.stderr


def test_help_does_not_import_torch():
    """Importing torch would add half a second."""
    done = python(
        """
        import sys
        from vitpose_fast.__main__ import main
        try:
            main(["--help"])
        except SystemExit as end:
            assert end.code == 0
        heavy = {m.split(".")[0] for m in sys.modules} & {"torch", "triton", "numpy", "PIL", "tyro"}
        assert not heavy, heavy
        """
    )
    assert done.returncode == 0 and "vitpose-fast COMMAND" in done.stdout, done.stderr


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


def test_everything_imports_with_a_broken_torchvision(root, tmp_path, python_path):
    for name in ("torchvision", "timm"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    modules = [module for module in module_files(root) if package_of(module) in PACKAGES]
    assert len(modules) > 90
    code = f"""
        import importlib
        for name in {modules!r}:
            importlib.import_module(name)
        import torch, vitpose_fast as vp
        model = vp.create_model("vitpose-tiny", image_size=(64, 48), depth=1).eval()
        poses = vp.PosePredictor(model)(torch.zeros(32, 32, 3, dtype=torch.uint8))
        assert poses.keypoints.shape == (1, 17, 2)
        """
    done = python(code, PYTHONPATH=python_path(tmp_path))
    assert done.returncode == 0, done.stderr


def test_without_triton_everything_imports(tmp_path, python_path):
    (tmp_path / "triton.py").write_text("raise ImportError('no triton on this machine')\n")
    code = """
        import torch
        from vitpose_fast import functional as F
        assert F.attention(torch.zeros(1, 4, 3, 1, 8), grid=(2, 2)).shape == (1, 4, 8)
        """
    done = python(code, PYTHONPATH=python_path(tmp_path))
    assert done.returncode == 0, done.stderr


def test_a_broken_device_ends_the_process_and_names_the_test(leave_if_broken, capsys):
    codes = []

    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore lines")

    leave_if_broken("tests/x.py::test_y", lambda: None, codes.append)
    assert codes == [] and capsys.readouterr().err == ""
    leave_if_broken("tests/x.py::test_y", broken, codes.append)
    assert codes == [70]
    assert "tests/x.py::test_y: the CUDA context is broken (CUDA error: an illegal memory" in capsys.readouterr().err
