"""The architecture, read from the imports: layers, doors for foreign libraries, pure modules.

What is read is every import statement, also those inside functions; imports for type checkers
alone are left out. `KNOWN` lists the breaches that there are: the tests fail on a new one, and on
one that is gone but still listed.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PURE = (
    "megarl.algorithms",
    "megarl.layout",
    "megarl.data.order",
    "megarl.data.balance",
    "megarl.data.seeds",
    "megarl.roles.batching",
)

# Lowest first; a module belongs to the longest name that fits. Imports go down, or stay inside.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("megarl.types", "megarl.errors", "megarl.plugins", "megarl.config"),
    PURE,
    ("megarl.native", "megarl.runtime", "megarl.observe"),
    ("megarl.mesh", "megarl.experience"),
    (
        "megarl.models",
        "megarl.weights",
        "megarl.reshard",
        "megarl.rollout",
        "megarl.data",
        "megarl.rewards",
        "megarl.checkpoint",
    ),
    ("megarl.transfer", "megarl.environments"),
    ("megarl.roles",),
    ("megarl.validate",),
    ("megarl.train",),
    ("megarl.convert",),
    ("megarl.pipeline",),
    ("megarl.slurm",),
    ("megarl.trainer",),
    ("megarl.bench", "megarl.cli", "megarl"),
)
MEET = (0, 1, 2)
"""Layers whose parts may import each other, as long as there is no cycle."""

DOORS: dict[str, tuple[str, ...]] = {
    "megatron": (
        "megarl.models",
        "megarl.mesh",
        "megarl.checkpoint",
        "megarl.convert.logits",
        "megarl.data",
        "megarl.bench",
        "megarl.runtime.megatron_cpu",
    ),
    "vllm": ("megarl.rollout", "megarl.bench", "megarl.reshard", "megarl.transfer"),
    "megarl_cpp": ("megarl.native",),
    "torch.cuda": ("megarl.runtime",),
    "os.environ": ("megarl.runtime",),
}
ATTRIBUTES = {
    ("torch", "cuda"): "torch.cuda",
    ("os", "environ"): "os.environ",
    ("os", "getenv"): "os.environ",
}

KNOWN: frozenset[tuple[str, str]] = frozenset()
"""(module, what it reaches for) that is not as it should be."""


@cache
def modules() -> dict[str, Path]:
    found = {}
    for file in sorted((ROOT / "megarl").rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


@cache
def references(module: str) -> frozenset[str]:
    """Dotted names that a module imports, and torch.cuda and os.environ where it reads them."""
    tree = ast.parse(modules()[module].read_text())
    return frozenset(name for node in walk(tree) for name in names_of(node))


def walk(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from walk(node)


def names_of(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        assert node.level == 0, "imports are absolute"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            is_module = inner in modules() or (node.module, alias.name) in ATTRIBUTES
            yield inner if is_module else node.module
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        if (node.value.id, node.attr) in ATTRIBUTES:
            yield ATTRIBUTES[node.value.id, node.attr]


def inside(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def place(module: str) -> tuple[int, str]:
    """(layer, the part of it) of a module."""
    fits = [
        (len(part), layer, part)
        for layer, parts in enumerate(LAYERS)
        for part in parts
        if inside(module, part) and (part != "megarl" or module == "megarl")
    ]
    assert fits, f"{module} belongs to no layer: add it to LAYERS"
    _, layer, part = max(fits)
    return layer, part


def upward_imports() -> set[tuple[str, str]]:
    found = set()
    for module in modules():
        layer, part = place(module)
        for name in references(module) & modules().keys():
            other_layer, other_part = place(name)
            beside = other_layer == layer and other_part != part and layer not in MEET
            if other_layer > layer or beside:
                found.add((module, name))
    return found


def wrong_doors() -> set[tuple[str, str]]:
    return {
        (module, library)
        for module in modules()
        for library, doors in DOORS.items()
        if any(inside(name, library) for name in references(module))
        and not any(inside(module, door) for door in doors)
    }


def test_imports_go_down_the_layers() -> None:
    assert upward_imports() == {pair for pair in KNOWN if pair[1] in modules()}


def test_foreign_libraries_come_in_by_their_doors() -> None:
    assert wrong_doors() == {pair for pair in KNOWN if pair[1] in DOORS}


def test_there_is_no_cycle() -> None:
    left = {module: set(references(module) & modules().keys()) - {module} for module in modules()}
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    assert sorted(left) == []


def pure_modules() -> list[str]:
    wanted = (*PURE, "megarl.types", "megarl.errors", "megarl.config.schema", "megarl")
    return [
        module
        for module in modules()
        if module in wanted or any(inside(module, part) for part in PURE)
    ]


def test_pure_modules_import_alone_and_fast() -> None:
    """CPU seconds on top of `import torch`; the best of three, since others use the machine too."""
    program = """
import sys, time
import torch
before = time.process_time()
for name in sys.argv[1:]:
    __import__(name)
seconds = time.process_time() - before
heavy = {"megatron", "vllm", "transformers", "megarl_cpp"} & {m.split(".")[0] for m in sys.modules}
assert not heavy, heavy
assert "torch.distributed.run" not in sys.modules
print(seconds)
"""
    command = [sys.executable, "-c", program, *pure_modules()]
    times = []
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
        times.append(float(done.stdout))
        if times[-1] <= 0.3:
            return
    pytest.fail(f"the pure modules add {min(times):.2f} s to `import torch`, more than 0.3 s")
