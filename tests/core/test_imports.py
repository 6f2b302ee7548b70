"""The house's rules for imports, read from the sources: downwards only, no cycles, nothing that is not exported."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# From the ground up; a module may import from its own floor and those below. See docs/architecture.md.
FLOORS = (
    ("dcae_core.errors", "dcae_core.files", "dcae_core.picture_plugins", "dcae_core.untrusted", "dcae_core.version"),
    ("dcae_core.architecture", "dcae_core.variants"),
    ("dcae_core.model", "dcae_core.media"),
    ("dcae_core.engine", "dcae_core.weights"),
    ("dcae_core.autoencoder", "dcae_core.taesana"),
    ("dcae_core",),  # the public names, for everybody above
    ("dcae_core.integrations", "dcae_core.compare", "dcae_core.batch"),
    ("dcae_core.cli", "dcae_core.__main__", "nodes", "scripts.dcae_sdnext"),
)
# These know nothing of each other.
APART = ("dcae_core.engine", "dcae_core.weights"), ("dcae_core.compare", "dcae_core.batch")
HOSTS = ("nodes", "scripts")


def modules() -> dict[str, Path]:
    files = [f for folder in ("dcae_core", *HOSTS) for f in (ROOT / folder).rglob("*.py")]
    names = [".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for f in files]
    return dict(zip(names, files, strict=True))


MODULES = modules()
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in MODULES.items()}


def exported(name: str) -> set[str]:
    """What a module's `__all__` lists; for one without, the names it binds that do not begin with an underscore."""
    names = set()
    for node in TREES[name].body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(getattr(target, "id", None) == "__all__" for target in targets):
            return set(ast.literal_eval(node.value))
        names |= {node.name} if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else set()
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {n for n in names if not n.startswith("_")}


def absolute(module: str, node: ast.ImportFrom) -> str:
    """The module that `from ... import` names, as if from the repository's root."""
    if not node.level:
        inside = {"dcae_sdnext": f"scripts.{node.module}", "nodes": "ComfyUI's, since ours are imported relatively"}
        return inside.get(node.module.split(".")[0], node.module)
    parts = module.split(".")
    is_package = MODULES[module].name == "__init__.py"
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def imports(module: str) -> list[tuple[str, str, str]]:
    """(module, name, name here) of each name that `module` imports from another of ours."""
    # The public face names what is above it for type checkers only, and imports it when it is asked for.
    lazy = [n for node in TREES[module].body if isinstance(node, ast.If) for n in node.body if module == "dcae_core"]
    found = []
    for node in ast.walk(TREES[module]):
        if not isinstance(node, ast.ImportFrom) or node in lazy:
            continue
        if (source := absolute(module, node)) in MODULES:
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                pair = (inner, "") if inner in MODULES else (source, alias.name)
                found.append((*pair, alias.asname or alias.name))
    return found


def floor(module: str) -> int:
    fits = [(len(name), i) for i, names in enumerate(FLOORS) for name in names if f"{module}.".startswith(f"{name}.")]
    return max(fits)[1] if module != "dcae_core" else FLOORS.index(("dcae_core",))


@pytest.mark.parametrize("module", MODULES)
def test_only_downwards(module):
    for source, *_ in imports(module):
        if source != "dcae_core" or module.split(".")[0] != "dcae_core":  # inside, `from .. import x` is of a module
            assert floor(source) <= floor(module), f"{module} imports {source}, which is above it"
        for pair in APART:
            for one, other in (pair, pair[::-1]):
                assert not (module.startswith(one) and source.startswith(other)), f"{module} imports {source}"
        assert not source.startswith(HOSTS) or module.startswith(HOSTS)


def test_no_cycles():
    """Nor any that are put off by importing inside a function."""
    graph = {name: {s for s, *_ in imports(name) if s != name} for name in MODULES}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_imported_that_is_not_exported(module):
    here = {}
    for source, name, alias in imports(module):
        if name:
            assert name in exported(source), f"{module} imports {name}, which {source} keeps to itself"
        else:
            here[alias] = source
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in here:
            source = here[node.value.id]
            known = exported(source) | {m.rpartition(".")[2] for m in MODULES if m.rpartition(".")[0] == source}
            assert node.attr in known, f"{module} uses {node.attr}, which {source} keeps to itself"


def test_the_modules_of_the_core_list_what_they_export():
    for name in MODULES:
        if name.startswith("dcae_core.") and not name.endswith("__main__"):
            bound = {n.id for n in ast.walk(TREES[name]) if isinstance(n, ast.Name)}
            assert "__all__" in bound or not exported(name), f"{name} has no __all__"
