"""The import graph of the repository: layers of packages, and cycles between files.

`python tests/import_graph.py` prints the graph, file by file.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOTS = {  # package -> the folder it is imported from, the lowest layer first
    "vitpose_kernels": "kernels",
    "vitpose_fast": "",
    "vitpose_training": "training",
    "benchmarks": "",
    "tests": "",
}
LAYERS = {"vitpose_kernels": 0, "vitpose_fast": 1, "vitpose_training": 2, "benchmarks": 3, "tests": 3}


def module_files(root: Path) -> dict[str, Path]:
    """Return {module name: file} for every Python file of every layer.

    Tests are not a package, but get names from their paths all the same: "tests.models.test_heads".
    """
    found = {}
    for package, folder in ROOTS.items():
        base = root / folder
        for path in sorted((base / package).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_names(tree: ast.AST) -> list[str]:
    """Return what all import statements load, also those inside functions.

    That is "a.b" for `import a.b`, and "a.b.name" for `from a.b import name`. A relative import of a module raises
    AssertionError.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "use absolute imports"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def import_graph(root: Path) -> dict[str, set[str]]:
    """Return {module: the modules that it imports from the three packages, the benchmarks and the tests}."""
    files = module_files(root)
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        names = imported_names(ast.parse(path.read_text(encoding="utf-8")))
        targets = (name if name in files else name.rpartition(".")[0] for name in names)
        graph[module] = {target for target in targets if target in files and target != module}
    return graph


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return every group of two or more modules that import each other, directly or through others, sorted by name.

    The groups are the strongly connected components of the graph (Tarjan's algorithm).
    """
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        number[module] = low[module] = len(number)
        stack.append(module)
        for target in graph[module]:
            if target not in number:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], number[target])
        if low[module] == number[module]:
            group = [stack.pop()]
            while group[-1] != module:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for module in graph:
        if module not in number:
            visit(module)
    return found


if __name__ == "__main__":
    graph = import_graph(Path(__file__).resolve().parents[1])
    for module, targets in graph.items():
        print(f"layer {LAYERS[module.split('.')[0]]}  {module} -> {', '.join(sorted(targets)) or '-'}")
    print(f"{len(graph)} files, {sum(map(len, graph.values()))} imports, cycles: {cycles(graph) or 'none'}")
