"""Looking a dotted name up in Python sources: nothing is imported, and what can't be told is said to be so."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Thing:
    """What a name stands for: a module (no node), a class, a function, or an assigned value, in a module and perhaps in
    a class there. With no module it is something that these sources don't tell."""

    module: str = ""
    node: ast.AST | None = None
    owner: Thing | None = None

    @property
    def known(self) -> bool:
        return bool(self.module)

    @property
    def is_class(self) -> bool:
        return isinstance(self.node, ast.ClassDef)

    @property
    def is_function(self) -> bool:
        return isinstance(self.node, ast.FunctionDef | ast.AsyncFunctionDef)


UNTOLD = Thing()


class Gone(Exception):
    """A name that is not there; says which part of it."""


class Sources:
    """Folders that hold modules and packages, as `sys.path` does."""

    def __init__(self, *roots: Path):
        self.roots = roots
        self.trees: dict[str, ast.Module | None] = {}
        self.bound: dict[str, dict[str, list[ast.AST]]] = {}
        self.looking: set[tuple] = set()  # which import and inheritance go around in circles of

    def look(self, name: str) -> Thing:
        """What a dotted name stands for. Raises Gone."""
        first, *rest = name.split(".")
        thing, so_far = self.module(first), first
        if thing is None:
            raise Gone(f"there is no module {first}")
        for part in rest:
            thing = self.member(thing, part)
            if thing is None:
                raise Gone(f"{so_far} has no {part}")
            so_far += f".{part}"
        return thing

    def module(self, name: str) -> Thing | None:
        path = Path(*name.split("."))
        if self.tree(name) or any((root / path).is_dir() for root in self.roots):
            return Thing(name)
        return None

    def file(self, name: str) -> Path | None:
        path = Path(*name.split("."))
        files = (root / file for root in self.roots for file in (path.with_suffix(".py"), path / "__init__.py"))
        return next((file for file in files if file.is_file()), None)

    def tree(self, name: str) -> ast.Module | None:
        if name not in self.trees:
            file = self.file(name)
            self.trees[name] = ast.parse(file.read_text(encoding="utf-8"), str(file)) if file else None
        return self.trees[name]

    def bindings(self, module: str) -> dict[str, list[ast.AST]]:
        """Name in a module: the statements that bind it. `*` holds the star imports."""
        if module not in self.bound:
            self.bound[module] = {}
            for node in statements(tree.body if (tree := self.tree(module)) else []):
                for name in names(node):
                    self.bound[module].setdefault(name, []).append(node)
            for node in ast.walk(tree) if tree else ():
                for name in node.names if isinstance(node, ast.Global) else ():
                    self.bound[module].setdefault(name, []).append(node)
        return self.bound[module]

    def member(self, thing: Thing, name: str) -> Thing | None:
        """What `thing.name` stands for; None if there is no such thing."""
        key = (thing.module, id(thing.node), name)
        if key in self.looking:
            return None
        self.looking.add(key)
        try:
            if not thing.known:
                return UNTOLD
            if thing.node is None:
                return self.of_module(thing.module, name)
            if thing.is_class:
                return self.of_class(thing, name)
            return first(self.member(one, name) for one in self.instance(thing))
        finally:
            self.looking.discard(key)

    def of_module(self, module: str, name: str) -> Thing | None:
        bindings = self.bindings(module)
        if name in bindings and (key := (module, name)) not in self.looking:
            self.looking.add(key)
            try:
                return best(self.binding(module, node, name) for node in bindings[name])
            finally:
                self.looking.discard(key)
        if (submodule := self.module(f"{module}.{name}")) is not None:
            return submodule
        for node in bindings.get("*", []):
            source = self.imported(module, node)
            if source is None:
                continue
            shown = self.bindings(source).get("__all__")
            if shown is None or name in ast.literal_eval(shown[-1].value):
                found = self.of_module(source, name)
                if found is not None:
                    return found
        for node in bindings.get("__class__", []):  # sys.modules[__name__].__class__ = ...
            return first(self.member(one, name) for one in self.evaluate(node.value, module, None))
        return UNTOLD if "__getattr__" in bindings else None

    def binding(self, module: str, node: ast.AST, name: str) -> Thing | None:
        if isinstance(node, ast.Import):
            alias = next(alias for alias in node.names if (alias.asname or alias.name.split(".")[0]) == name)
            return self.module(alias.name if alias.asname else name) or UNTOLD
        if isinstance(node, ast.ImportFrom):
            source = self.imported(module, node)
            alias = next(alias for alias in node.names if (alias.asname or alias.name) == name)
            return UNTOLD if source is None else self.of_module(source, alias.name)
        return Thing(module, node)

    def imported(self, module: str, node: ast.ImportFrom) -> str | None:
        """The module that `from ... import` names; None if it is not among these sources."""
        name = node.module or ""
        if node.level:
            file = self.file(module)
            up = node.level - (file is not None and file.name == "__init__.py")
            name = ".".join(part for part in (*module.split(".")[: -up or None], name) if part)
        return name if self.module(name) else None

    def of_class(self, thing: Thing, name: str) -> Thing | None:
        for node in statements(thing.node.body):
            if name in names(node):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    return self.binding(thing.module, node, name)
                return Thing(thing.module, node, thing)
        values = [node for node in ast.walk(thing.node) if name in attributes_set(node, thing.node.name)]
        if values:
            return best(Thing(thing.module, node, thing) for node in values)
        untold = False
        for base in self.bases(thing):
            found = self.member(base, name)
            if found is not None and found.known:
                return found
            untold = untold or found is not None
        return UNTOLD if untold else None

    def bases(self, thing: Thing) -> Iterator[Thing]:
        """The classes that a class derives from; `object` and what it does not matter for are left out."""
        for base in thing.node.bases:
            base = base.value if isinstance(base, ast.Subscript) else base  # Generic[T]
            if isinstance(base, ast.Name) and base.id in ("object", "ABC", "Generic", "Protocol", "str"):
                continue
            if isinstance(base, ast.Name) and base.id == thing.node.name:  # the outer one of the same name
                yield self.of_module(thing.module, base.id) or UNTOLD
            else:
                yield from self.evaluate(base, thing.module, thing.owner)

    def instance(self, thing: Thing) -> list[Thing]:
        """The classes that a value may be of, or that a function (or property) may return."""
        key = (thing.module, id(thing.node))
        if key in self.looking:
            return [UNTOLD]
        self.looking.add(key)
        try:
            return self.reported(thing)
        finally:
            self.looking.discard(key)

    def reported(self, thing: Thing) -> list[Thing]:
        node = thing.node
        if thing.is_function:
            return self.evaluate(node.returns, thing.module, thing.owner)
        if isinstance(node, ast.AnnAssign):
            reported = self.evaluate(node.annotation, thing.module, thing.owner)
            if any(one.known for one in reported):
                return reported
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr):
            return self.evaluate(node.value, thing.module, thing.owner)
        return [UNTOLD]

    def evaluate(self, node: ast.expr | None, module: str, owner: Thing | None) -> list[Thing]:
        """What an expression or an annotation stands for, an instance being taken for its class."""
        match node:
            case ast.Constant(str(text)):
                try:
                    return self.evaluate(ast.parse(text, mode="eval").body, module, owner)
                except SyntaxError:
                    return [UNTOLD]
            case ast.BinOp(left=left, op=ast.BitOr(), right=right) | ast.BoolOp(values=[left, right]):
                return [*self.evaluate(left, module, owner), *self.evaluate(right, module, owner)]
            case ast.Subscript(value=ast.Name("Optional" | "Type" | "type" | "Annotated"), slice=inner):
                return self.evaluate(inner, module, owner)
            case ast.Call():
                made = self.evaluate(node.func, module, owner)
                return [found for one in made for found in (self.instance(one) if one.is_function else [one])]
            case ast.Name("self" | "cls") if owner is not None:
                return [owner]
            case ast.Name(name):
                inside = [self.of_class(owner, name)] if owner is not None else []
                found = next((one for one in (*inside, self.of_module(module, name)) if one is not None), UNTOLD)
            case ast.Attribute(value=value, attr=name):
                found = first(self.member(one, name) for one in self.evaluate(value, module, owner)) or UNTOLD
            case _:
                return [UNTOLD]
        if found.known and not found.is_class and not found.is_function and found.node is not None:
            return self.instance(found)
        return [found]

    def says(self, module: str, texts: Iterable[str]) -> bool:
        """Is one of these texts a string in a module?"""
        wanted, tree = set(texts), self.tree(module)
        return (
            any(isinstance(node, ast.Constant) and node.value in wanted for node in ast.walk(tree)) if tree else False
        )

    def signature(self, thing: Thing) -> ast.arguments | None:
        """The parameters of a function or of a class's constructor, less the first of a method; None if untold."""
        if thing.is_class:
            if any("dataclass" in ast.unparse(decorator) for decorator in thing.node.decorator_list):
                fields = [node.target.id for node in thing.node.body if isinstance(node, ast.AnnAssign)]
                return ast.arguments([], [ast.arg(name) for name in fields], None, [], [], None, [])
            made = self.of_class(thing, "__init__") if not self.derives_from_untold(thing) else None
            return self.signature(made) if made is not None and made.is_function else None
        if not thing.is_function:
            return None
        args = thing.node.args
        static = any(isinstance(one, ast.Name) and one.id == "staticmethod" for one in thing.node.decorator_list)
        if thing.owner is None or static:
            return args
        plain = [*args.posonlyargs, *args.args][1:]
        return ast.arguments([], plain, args.vararg, args.kwonlyargs, args.kw_defaults, args.kwarg, args.defaults)

    def derives_from_untold(self, thing: Thing) -> bool:
        """May a base that is not among these sources have the constructor?"""
        found = self.of_class(thing, "__init__")
        return found is not None and not found.known


def first(things: Iterable[Thing | None]) -> Thing | None:
    """The first that is known, else one that is untold, else None."""
    things = list(things)
    return next((one for one in things if one and one.known), next((one for one in things if one), None))


def best(things: Iterable[Thing | None]) -> Thing | None:
    """Of several bindings of one name the one that tells most: a class, function or module rather than a value."""
    things = [one for one in things if one is not None]
    for reported in (lambda one: one.is_class or one.is_function, lambda one: one.known and not is_none(one.node)):
        if (found := next(filter(reported, things), None)) is not None:
            return found
    return first(things)


def is_none(node: ast.AST | None) -> bool:
    value = getattr(node, "value", None)
    return isinstance(value, ast.Constant) and value.value is None and not isinstance(node, ast.AnnAssign)


def statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module or class, those under `if`, `try`, `with` and loops too; not those of functions."""
    for node in body:
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for inner in ("body", "orelse", "finalbody"):
                yield from statements(getattr(node, inner, ()))
            for handler in getattr(node, "handlers", ()):
                yield from statements(handler.body)


def names(node: ast.AST) -> set[str]:
    """The names that a statement binds."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return {node.name}
        case ast.Import():
            return {alias.asname or alias.name.split(".")[0] for alias in node.names}
        case ast.ImportFrom():
            return {alias.asname or alias.name for alias in node.names}
        case ast.Assign(targets=targets):
            if any(isinstance(target, ast.Attribute) and target.attr == "__class__" for target in targets):
                return {"__class__"}
            return {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
        case ast.AnnAssign(target=ast.Name(name)) | ast.AugAssign(target=ast.Name(name)):
            return {name}
        case ast.For(target=target):
            return {part.id for part in ast.walk(target) if isinstance(part, ast.Name)}
    return set()


def attributes_set(node: ast.AST, class_name: str) -> set[str]:
    """The attributes that a part of a method sets on its object or class; pipelines of diffusers register theirs."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "register_modules":
        return {keyword.arg for keyword in node.keywords if keyword.arg}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    parts = [
        part for target in targets for part in ([target] if isinstance(target, ast.Attribute) else ast.walk(target))
    ]
    return {
        part.attr
        for part in parts
        if isinstance(part, ast.Attribute)
        and isinstance(part.value, ast.Name)
        and part.value.id in ("self", "cls", class_name)
    }
