"""What the modules of the mask core import: each other in one direction, and of the rest of img2img the shared root alone."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import img2img

ROOT = Path(img2img.__file__).parent
SHARED = ("errors", "files", "fonts", "registry", "validation")
"""What the mask core may import of img2img beside itself."""


def _name(path: Path) -> str:
    parts = ("img2img", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in (ROOT / "masks").rglob("*.py")}


def _imports(source: str) -> Iterator[tuple[str, bool]]:
    """Every name that is imported, within functions and for types too; and whether that is at the top of the module."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative"
            yield from ((f"{node.module}.{alias.name}", node in tree.body) for alias in node.names)


def _module(name: str) -> str:
    """The module of the mask core that an imported name is or is in; else the name itself."""
    return next((n for n in (name, name.rpartition(".")[0]) if n in MODULES), name)


def test_the_graph_of_imports_has_no_cycle() -> None:
    graph = {name: {_module(found) for found, _ in _imports(path.read_text())} & MODULES.keys() for name, path in MODULES.items()}
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == set(MODULES)
    assert len(order) > 30
    assert order.index("img2img.masks.storage") < order.index("img2img.masks.network") < order.index("img2img.masks")


def test_a_cycle_would_be_found() -> None:
    sources = {"a": "def f():\n    from img2img.masks.b import x", "b": "if TYPE_CHECKING:\n    import img2img.masks.a"}
    graph = {
        f"img2img.masks.{name}": {m for found, _ in _imports(source) for m in (found, found.rpartition(".")[0])}
        for name, source in sources.items()
    }
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_the_core_at_its_top_and_beside_it_the_shared_root_alone(name: str) -> None:
    for found, at_top in _imports(MODULES[name].read_text()):
        if found.partition(".")[0] == "img2img":
            assert at_top, f"{found}: within a function, or for types alone"
            part = found.split(".")[1]
            assert part in ("masks", *SHARED), found
