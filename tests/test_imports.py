"""Imports run one way: never to a higher layer of the list below, nor in a circle. Those in functions count too.

Nor does one part use private names of another.
"""

import ast
import functools
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tandem_cuda

# From the lowest to the highest. A part is a module or package of tandem_cuda; it imports from its own layer and below.
LAYERS = [
    {"_C", "_load", "_cuda_versions", "_progress", "_table"},
    {"neuron"},
    {"ops", "events", "spike_code", "spike_train", "reference"},
    {"nn"},
    {"convert", "freeze", "analysis", "exchange", "models", "quantisation", "build_info"},
    {"benchmark", "doctor", "plot"},
    {"__init__", "__main__"},
]
PRIVATE: dict[tuple[str, str], str] = {}
"""Uses of a private name of another part that are there on purpose: the module and the name, and why."""

Arrow = tuple[str, str]


def module_names(root: Path) -> dict[str, Path]:
    """Every module of a package, by its name in it; packages by that of their folder, and "__init__" the root."""
    found = {"_C": root / "_C"}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


def imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All of them, also those that only a type checker sees."""
    if isinstance(tree, (ast.Import, ast.ImportFrom)):
        yield tree
    for child in ast.iter_child_nodes(tree):
        yield from imports(child)


def targets(node: ast.Import | ast.ImportFrom, name: str, modules: dict[str, Path], root: Path) -> Iterator[str]:
    """The modules of the package that an import in one of them reads."""
    if isinstance(node, ast.Import):
        paths = [alias.name.split(".") for alias in node.names]
    elif node.level:
        inside = [] if name == "__init__" else name.split(".")
        up = node.level - (modules[name].name == "__init__.py" and name != "__init__")
        base = [root.name, *inside[: len(inside) - up], *(node.module.split(".") if node.module else [])]
        paths = [[*base, alias.name] for alias in node.names]
    else:
        assert node.module is not None
        paths = [[*node.module.split("."), alias.name] for alias in node.names]
    for first, *rest in paths:
        if first == root.name:
            while rest and ".".join(rest) not in modules:  # a name in a module
                rest.pop()
            yield ".".join(rest) or "__init__"


def arrows(root: Path) -> set[Arrow]:
    """Which module imports which."""
    modules = module_names(root)
    return {
        (name, target)
        for name, path in modules.items()
        if path.suffix == ".py"
        for node in imports(ast.parse(path.read_text()))
        for target in targets(node, name, modules, root)
        if target != name
    }


def part(module: str) -> str:
    return module.partition(".")[0]


def between_parts(found: set[Arrow]) -> set[Arrow]:
    pairs = {(part(source), part(target)) for source, target in found}
    return {(source, target) for source, target in pairs if source != target}


def upward(found: set[Arrow], layers: list[set[str]]) -> list[Arrow]:
    height = {name: i for i, layer in enumerate(layers) for name in layer}
    return sorted((source, target) for source, target in between_parts(found) if height[source] < height[target])


def circle(found: set[Arrow]) -> list[str]:
    """One of them; none is []."""
    graph: dict[str, set[str]] = {}
    for source, target in found:
        graph.setdefault(source, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def owners(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Private names that are methods of some class: the parts that have them, as methods or attributes."""
    methods: set[str] = set()
    having: dict[str, set[str]] = {}
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found = {child.name for child in node.body if isinstance(child, ast.FunctionDef)}
                methods |= found
            else:
                found = {node.attr} if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) else set()
            for attribute in found:
                having.setdefault(attribute, set()).add(part(name))
    return {name: having[name] for name in methods if is_private(name)}


def private_uses(root: Path) -> set[Arrow]:
    """Modules and the private names that they use of another part.

    They import them, look them up in what they import, or call methods that only classes of other parts have.
    """
    modules = module_names(root)
    trees = {name: ast.parse(path.read_text()) for name, path in modules.items() if path.suffix == ".py"}
    known, found = owners(trees), set()
    for name, tree in trees.items():
        foreign = set()
        for node in ast.walk(tree):
            for alias in node.names if isinstance(node, ast.ImportFrom) else []:
                single = ast.ImportFrom(node.module, [alias], node.level)
                for target in targets(single, name, modules, root):
                    if part(target) == part(name) or target == alias.name:  # a module of the root may have any name
                        continue
                    foreign.add(alias.asname or alias.name)
                    if is_private(alias.name):
                        found.add((name, alias.name))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                its_own = part(name) in known.get(node.attr, {part(name)})
                if not its_own or (isinstance(node.value, ast.Name) and node.value.id in foreign):
                    found.add((name, node.attr))
    return found


ROOT = Path(tandem_cuda.__file__).parent


@functools.cache
def all_arrows() -> set[Arrow]:
    """Which module of tandem_cuda imports which."""
    return arrows(ROOT)


def test_every_part_has_its_layer():
    listed = [name for layer in LAYERS for name in layer]
    assert sorted(listed) == sorted({part(name) for name in module_names(ROOT)})


def test_no_import_goes_up():
    assert upward(all_arrows(), LAYERS) == []


def test_no_circle_of_parts():
    assert circle(between_parts(all_arrows())) == []


def test_no_circle_of_modules():
    assert circle(all_arrows()) == []


def test_private_names_stay_in_their_part():
    assert private_uses(ROOT) == PRIVATE.keys()


# --- the tests themselves --------------------------------------------------------------------------------------------


def package(folder: Path, **files: str) -> Path:
    """With modules of these contents; a_b is b in a."""
    root = folder / "made"
    for name, text in {"": "", **files}.items():
        path = root.joinpath(*name.split("_")).with_suffix(".py") if name else root / "__init__.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name("__init__.py").touch()
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    "text",
    [
        "from .high import x",
        "from . import high",
        "import made.high",
        "from made import high",
        "from made.high import x",
        "def f():\n    from .high.inner import x",
        "if True:\n    import made.high.inner as m",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\nelse:\n    from .high import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .high import x",
    ],
)
def test_sees_every_import(tmp_path: Path, text: str):
    root = package(tmp_path, low=text, high_inner="x = 1")
    assert upward(arrows(root), [{"low"}, {"high"}]) == [("low", "high")]


def test_sees_nothing_where_nothing_is(tmp_path: Path):
    assert arrows(package(tmp_path, low="import torch", high="x = 1")) == set()


def test_sees_circles(tmp_path: Path):
    root = package(
        tmp_path, one="def f():\n    from . import two", two_a="from .b import x", two_b="from ..one import f"
    )
    found = arrows(root)
    assert found == {("one", "two"), ("two.a", "two.b"), ("two.b", "one")}
    assert circle(found) == []
    assert sorted({*circle(between_parts(found))}) == ["one", "two"]
    root = package(tmp_path, two_b="from .a import x")
    assert sorted({*circle(arrows(root))}) == ["two.a", "two.b"]


@pytest.mark.parametrize(
    ("text", "used"),
    [
        ("from .low import _f", "_f"),
        ("def f():\n    from .low.inner import a, _f as g", "_f"),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .low import _C", "_C"),
        ("from made.low import _x", "_x"),
        ("def f(x):\n    return x._method()", "_method"),
        ("from .low import inner\ninner._f()", "_f"),
        ("from .low.inner import A as B\nB._values", "_values"),
        ("class B:\n    def f(self):\n        return self._method()", "_method"),
        ("def f(x):\n    return x._own() + x.__len__() + x._f + x._fields", None),
        ("from torch import _C\nfrom . import _load\ndef _own():\n    pass", None),
        ("class B:\n    def _method(self):\n        return super()._method()", None),
        ("class B:\n    def __init__(self):\n        self._method = 1", None),
    ],
)
def test_sees_private_names(tmp_path: Path, text: str, used: str | None):
    low = "def _f():\n    pass\nclass A:\n    def _method(self):\n        self._method()"
    root = package(tmp_path, low_inner=low, high=text)
    (root / "_load.py").touch()
    assert private_uses(root) == ({("high", used)} if used else set())
