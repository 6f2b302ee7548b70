"""What this repository uses of its hosts, found in its own sources: nothing is imported.

A use is a dotted name such as `comfy.model_management.load_models_gpu`. An instance goes by its class: what is asked of
`comfy.utils.ProgressBar(1)` is `comfy.utils.ProgressBar.update_absolute`. Variables are followed as far as one function
shows: imports, assignments, annotations of parameters, and `self` in a class that derives from a host's.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .known import NOT_NODES, OURS, UNSEEN

COMFYUI = ("comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "latent_preview")
COMFYUI += ("node_helpers", "nodes", "server")
ROOTS = {**dict.fromkeys(COMFYUI, "ComfyUI"), "modules": "SD.Next"}
ROOTS |= {"diffusers": "libraries", "accelerate": "libraries"}
# Methods of objects that are no host's (dict, torch.nn.Module): a name ends before them.
ENDS = {"get", "items", "setdefault", "parameters", "buffers", "__dict__", "__init__", "__signature__"}
# Our own list of what SD.Next must have.
LIST = "scripts/dcae_sdnext/host.py"
PYTHON = ("__init__.py", "dcae_core/integrations/*.py", "nodes/*.py", "scripts/*.py", "scripts/*/*.py")
GUARDS = {"Exception", "BaseException", "AttributeError", "ImportError", "ModuleNotFoundError", "TypeError"}


@dataclass
class Symbol:
    """One name of a host, and all that is done with it.

    where: our files; `LIST` only where no other is. optional: is every use one that does without it? keywords: the
    arguments given by name. positional: the most that are given by place. role: "overridden" for a method that a class
    of ours replaces, "replaced" for a function in whose place ours is put; then `takes` are the parameters of ours,
    with None at their end if it takes any.
    """

    name: str
    host: str
    where: set[str] = field(default_factory=set)
    optional: bool = True
    keywords: set[str] = field(default_factory=set)
    positional: int = 0
    role: str = ""
    takes: tuple[str | None, ...] = ()


class Found(dict[str, Symbol]):
    """Symbols by name."""

    def add(self, name: str, host: str, where: str, optional: bool = False) -> Symbol:
        symbol = self.setdefault(name, Symbol(name, host))
        symbol.where = (symbol.where | {where}) - {LIST} or {LIST}
        symbol.optional = symbol.optional and optional
        return symbol

    def without_prefixes(self) -> Found:
        """Without those that are only on the way to another: modules, and classes of which something is named."""
        longer = {name.rsplit(".", n)[0] for name in self for n in range(1, name.count(".") + 1)}
        kept = (
            s for s in self.values() if s.keywords or s.role or s.name not in longer or s.host in ("page", "server")
        )
        return Found((s.name, s) for s in sorted(kept, key=lambda s: s.name.lower()))


def find(repo: Path) -> Found:
    """Everything that the sources under `repo` use of a host."""
    found, classes = Found(), {}
    for pattern in PYTHON:
        for file in sorted(repo.glob(pattern)):
            where = file.relative_to(repo).as_posix()
            Finder(found, classes, where).visit(ast.parse(file.read_text(encoding="utf-8"), where))
    for file in sorted((repo / "web").glob("*.js")):
        find_in_page(found, file.relative_to(repo).as_posix(), file.read_text(encoding="utf-8"))
    for file in sorted((repo / "example_workflows" / "api").glob("*.json")):
        kinds = {node["class_type"] for node in json.loads(file.read_text(encoding="utf-8")).values()}
        for kind in kinds:
            if not kind.startswith("DCAE_") and kind not in NOT_NODES:
                found.add(f"type {kind}", "server", "example_workflows")
    for name, (host, where) in UNSEEN.items():
        found.add(name, host, where)
    return found.without_prefixes()


class Finder(ast.NodeVisitor):
    """Adds what one file uses. `classes` maps our classes to the host's class that they derive from."""

    def __init__(self, found: Found, classes: dict[str, str], where: str):
        self.found, self.classes, self.where = found, classes, where
        self.scopes: list[dict[str, str | None]] = [{}]
        self.guarded = 0
        self.replacing: dict[str, ast.FunctionDef] = {}
        self.of_ours: set[str] = set()  # names that the class at hand has beside the host's

    def add(self, name: str, optional: bool = False) -> Symbol | None:
        host = ROOTS.get(name.split(".")[0])
        return self.found.add(name, host, self.where, optional or self.guarded > 0) if host else None

    def value(self, node: ast.expr | None) -> str | None:
        """The dotted name of what an expression is, or None."""
        match node:
            case ast.Name():
                return next((scope[node.id] for scope in reversed(self.scopes) if node.id in scope), None)
            case ast.Attribute():
                return self.attribute(self.value(node.value), node.attr, is_own(node.value))
            case ast.Call(func=ast.Name("getattr"), args=[what, ast.Constant(str(name)), *_]):
                return self.attribute(self.value(what), name, is_own(what))
            case ast.Call(func=ast.Name("super")):
                return self.value(ast.Name("super"))
            case ast.Call():
                made = self.value(node.func)
                return made if made and made.rsplit(".", 1)[-1][:1].isupper() else None
            case ast.Await():
                return self.value(node.value)
            case ast.BinOp(op=ast.BitOr()):  # an annotation: X | None
                return self.value(node.left) or self.value(node.right)
        return None

    def attribute(self, base: str | None, name: str, own: bool) -> str | None:
        """The dotted name of an attribute; None if it is ours, or no host's."""
        if base is None or name.startswith("dcae") or (own and name in self.of_ours):
            return None
        if name in OURS and base in self.classes.values():
            return None
        return base if name in ENDS else f"{base}.{name}"

    def bind(self, target: ast.expr, value: ast.expr | None) -> None:
        match target, value:
            case (ast.Tuple(elts=targets), ast.Tuple(elts=values)) if len(targets) == len(values):
                for one, its in zip(targets, values, strict=True):
                    self.bind(one, its)
            case ((ast.Tuple(elts=targets) | ast.List(elts=targets)), _):
                for one in targets:
                    self.bind(one, None)
            case ast.Name(), _:
                self.scopes[-1][target.id] = self.value(value)

    # What brings names in.

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            name = alias.name if alias.asname else alias.name.split(".")[0]
            self.scopes[-1][alias.asname or name] = name if name.split(".")[0] in ROOTS else None
            self.add(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            ours = self.classes.get(alias.name) if node.level or (node.module or "").startswith("dcae_core") else None
            is_hosts = not node.level and name.split(".")[0] in ROOTS
            self.scopes[-1][alias.asname or alias.name] = name if is_hosts else ours
            if is_hosts:
                self.add(name)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self.bind(target, node.value)
        match node:
            case ast.Assign(targets=[ast.Name("SYMBOLS")], value=ast.Dict(keys=keys, values=values)):
                for key, names in zip(keys, values, strict=True):  # in LIST
                    for name in ast.literal_eval(names):
                        self.add(f"{ast.literal_eval(key)}.{name}")

    def visit_For(self, node: ast.For) -> None:
        self.bind(node.target, None)
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for part in [*node.decorator_list, *node.args.defaults, *node.args.kw_defaults, node.returns]:
            if part is not None:
                self.visit(part)
        scope = {}
        for arg in parameters(node.args):
            if arg.annotation is not None:
                self.visit(arg.annotation)
            scope[arg.arg] = self.value(arg.annotation)
        first = node.args.args[0].arg if node.args.args else ""
        if first in ("self", "cls"):
            scope[first] = self.scopes[-1].get("self")
        if first == "original":
            self.replacing[node.name] = node
        self.scopes.append(scope)
        for statement in node.body:
            self.visit(statement)
        self.scopes.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            self.visit(base)
        base = next((name for base in node.bases if (name := self.value(base))), None)
        direct = not any(isinstance(base, ast.Name) and base.id in self.classes for base in node.bases)
        outer, self.of_ours = self.of_ours, set()
        if base:
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
            names = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute) and is_own(part.value)}
            self.of_ours = {method.name for method in methods} | {name for name in names if re.match("_[^_]", name)}
            for method in methods if direct else ():
                if method.name not in OURS and re.match("[^_]|__call__", method.name):
                    symbol = self.add(f"{base}.{method.name}")
                    if symbol:
                        symbol.role, symbol.takes = "overridden", takes(method.args, 1)
            self.classes[node.name] = self.scopes[-1][node.name] = base
        self.scopes.append({"self": base, "super": base if direct else None})
        for statement in node.body:
            self.visit(statement)
        self.scopes.pop()
        self.of_ours = outer

    def visit_Try(self, node: ast.Try) -> None:
        caught = {part.id for handler in node.handlers for part in ast.walk(handler.type) if isinstance(part, ast.Name)}
        self.guarded += bool(caught & GUARDS)
        for statement in node.body:
            self.visit(statement)
        self.guarded -= bool(caught & GUARDS)
        for statement in [*node.handlers, *node.orelse, *node.finalbody]:
            self.visit(statement)

    # What is done with them.

    def visit_Name(self, node: ast.Name) -> None:
        name = self.value(node)
        if name and isinstance(node.ctx, ast.Load) and node.id not in ("self", "cls"):
            self.add(name, optional=True)  # where it was bound says whether it is

    def visit_Attribute(self, node: ast.Attribute) -> None:
        name = self.value(node)
        if name and self.add(name):
            node = node.value
            while isinstance(node, ast.Attribute):
                node = node.value
            if not isinstance(node, ast.Name):
                self.visit(node)
        else:
            self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        match node:
            case ast.Call(func=ast.Name("getattr" | "hasattr" as how), args=[what, ast.Constant(str(name)), *rest]):
                found = self.attribute(self.value(what), name, is_own(what))
                if found:
                    self.add(found, optional=bool(rest) or how == "hasattr")
                    return
        self.generic_visit(node)
        name = self.value(node.func)
        if isinstance(node.func, ast.Name) and node.func.id in ("cls", *self.classes):
            return  # ours, with arguments of its own
        at = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        symbol = self.add(name, optional=True) if name and (at == "__init__" or at not in ENDS) else None
        if symbol:
            symbol.keywords |= {keyword.arg for keyword in node.keywords if keyword.arg}
            if not any(isinstance(arg, ast.Starred) for arg in node.args):
                symbol.positional = max(symbol.positional, len(node.args))

    def visit_Tuple(self, node: ast.Tuple) -> None:
        match node.elts:
            case [ast.Name() as module, ast.Name(function)] if function in self.replacing and self.value(module):
                symbol = self.add(f"{self.value(module)}.{function}")
                symbol.role, symbol.takes = "replaced", takes(self.replacing[function].args, 1)
        self.generic_visit(node)

    def visit_Module(self, node: ast.Module) -> None:
        # A function may be named in another that comes before it.
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and part.args.args and part.args.args[0].arg == "original":
                self.replacing[part.name] = part
        self.generic_visit(node)


def is_own(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def parameters(args: ast.arguments) -> Iterator[ast.arg]:
    yield from (*args.posonlyargs, *args.args, *args.kwonlyargs)
    yield from (arg for arg in (args.vararg, args.kwarg) if arg)


def takes(args: ast.arguments, first: int) -> tuple[str | None, ...]:
    """Names of parameters from number `first` on, and None if there may be any more by name."""
    names = [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs)][first:]
    return (*names, None) if args.kwarg else tuple(names)


# The page: our scripts are small and plain enough for patterns.

STARTS = "app|api|LiteGraph|node|graph|widget|loader|load|from|slot|input"
CHAIN = re.compile(rf"(?<![\w.])({STARTS})((?:\??\.[A-Za-z_]\w*)+)(\?\.)?")
# Methods of JavaScript's own objects, where a chain of the host's ends.
PLAIN = {"find", "findIndex", "includes", "push", "apply", "startsWith", "js", "map", "filter"}
ON = {"node": "node", "loader": "node", "load": "node", "from": "node", "graph": "graph", "input": "slot"}


def find_in_page(found: Found, where: str, text: str) -> None:
    """Adds what a script of the page uses: of the frontend, and of the server's routes, messages and nodes."""
    code = re.sub(r"^\s*//.*$|(?<=\s)// .*$", "", text, flags=re.MULTILINE)
    for start, chain, guarded in CHAIN.findall(code):
        names = [ON.get(start, start)]
        for name in chain.replace("?", "").strip(".").split("."):
            if name in PLAIN or name.startswith("dcae"):
                break
            names.append(name)
        if len(names) > 1:
            found.add(".".join(names), "page", where, bool(guarded))
    for hook in re.findall(r"^  (\w+)\([^()]*\) \{$", section(code, "app.registerExtension({", "\n});"), re.MULTILINE):
        found.add(f"extension.{hook}", "page", where)
    for module in re.findall(r'from "\.\./\.\./(scripts/\w+\.js)"', code):
        found.add(module, "page", where)
    for route in re.findall(r"(?:fetchApi|apiURL)\([\"`](/[a-z_/]+)", code):
        if not route.startswith("/dcae/"):
            found.add(f"route {route}", "server", where)
    for event in re.findall(r'api\.addEventListener\("(\w+)"', code):
        found.add(f"message {event}", "server", where)
    for kind in re.findall(r'"([A-Z]\w*[a-z]\w*)"', code):
        if not kind.startswith("DCAE_") and kind not in NOT_NODES:
            found.add(f"type {kind}", "server", where)


def section(text: str, start: str, end: str) -> str:
    """The part of a text between two marks, or "" where it has none."""
    return text.partition(start)[2].partition(end)[0]
