"""Every name of ComfyUI, its page, SD.Next and diffusers that this pack uses, and whether a version of them has it.

    python3 tools/host_symbols.py --comfyui DIR [--frontend DIR] [--sdnext DIR] [--libraries DIR]
    python3 tools/host_symbols.py --page docs/host-symbols.md

The first prints what is gone, or takes other arguments than we give, and ends with status 1 if we can't do without. DIR
are sources: of ComfyUI, of its page as built (`comfyui_frontend_package/static`), of SD.Next, and a folder that holds
the packages diffusers and accelerate (`site-packages`). They are read, never imported, and need no environment. What
sources can't tell, such as attributes of an object that a library sets by name, is counted and not complained of. The
second writes the list. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from host_uses.known import FROM_STRINGS, HOSTS, INTRODUCTION, OTHER_ARGUMENTS, WHY
from host_uses.sources import Gone, Sources, Thing
from host_uses.uses import Found, Symbol, find

REPO = Path(__file__).resolve().parent.parent
# Where a server's routes, messages to the page and types of nodes are.
SERVER = ("server", "execution", "main", "nodes")


class Report:
    """What a check found: `gone` are (symbol, what is wrong), `untold` the symbols that sources don't tell of."""

    def __init__(self):
        self.gone: list[tuple[Symbol, str]] = []
        self.untold: list[Symbol] = []
        self.checked = 0

    def take(self, symbol: Symbol, verdict: str | None) -> None:
        """verdict: what is wrong; "" if nothing is, None if that can't be told."""
        self.checked += 1
        if verdict is None:
            self.untold.append(symbol)
        elif verdict:
            self.gone.append((symbol, verdict))

    @property
    def broken(self) -> bool:
        return any(not symbol.optional for symbol, _ in self.gone)


def check(symbols: Iterable[Symbol], host: str, folder: Path, report: Report) -> None:
    """Looks the symbols of one host up in its folder."""
    symbols = [symbol for symbol in symbols if symbol.host == host]
    if host == "page":
        text = "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in sorted(folder.rglob("*.js")))
        for symbol in symbols:
            report.take(symbol, in_page(symbol.name, folder, text))
        return
    sources = Sources(folder)
    kinds = node_types(sources, folder) if host == "server" else set()
    for symbol in symbols:
        report.take(symbol, in_server(symbol.name, sources, kinds) if host == "server" else in_sources(symbol, sources))


def in_page(name: str, folder: Path, text: str) -> str:
    """A built page keeps the names of attributes and little else: they must occur."""
    if name.endswith(".js"):
        return "" if (folder / name).is_file() else f"there is no {name}"
    lost = [part for part in name.split(".")[1:] if not re.search(rf"(?<![\w$]){part}(?![\w$])", text)]
    return f"nothing in it is named {lost[0]}" if lost else ""


def in_server(name: str, sources: Sources, kinds: set[str]) -> str:
    kind, _, what = name.partition(" ")
    if kind == "type":
        return "" if what in kinds else "no node has this type"
    return "" if any(sources.says(module, [what]) for module in SERVER) else f"nothing says {what!r}"


def node_types(sources: Sources, folder: Path) -> set[str]:
    """The types of ComfyUI's own nodes, of both ways to define them."""
    found = set()
    for module in ["nodes", *(f"comfy_extras.{file.stem}" for file in sorted(folder.glob("comfy_extras/*.py")))]:
        for node in ast.walk(sources.tree(module) or ast.Module([], [])):
            match node:
                case ast.Assign(targets=[ast.Name("NODE_CLASS_MAPPINGS")], value=ast.Dict(keys=keys)):
                    found |= {key.value for key in keys if isinstance(key, ast.Constant)}
                case ast.keyword(arg="node_id", value=ast.Constant(str(kind))):
                    found.add(kind)
    return found


def in_sources(symbol: Symbol, sources: Sources) -> str | None:
    module, is_string, text = symbol.name.partition(": ")
    if is_string:
        return "" if sources.says(module, [ast.literal_eval(text)]) else f"{module} does not say {text}"
    base, _, name = symbol.name.rpartition(".")
    try:
        thing = sources.look(symbol.name)
        if thing.known:
            return mismatch(symbol, thing, sources)
    except Gone as error:
        if base not in FROM_STRINGS:
            return str(error)
    if base in FROM_STRINGS:
        output_text = any(sources.says(module, [name, "--" + name.replace("_", "-")]) for module in FROM_STRINGS[base])
        return "" if output_text else f"{base} has no {name}"
    return None


def mismatch(symbol: Symbol, thing: Thing, sources: Sources) -> str:
    """What of our arguments the host would not take, or what of the host's ours would not."""
    args = sources.signature(thing)
    if args is None or symbol.name in OTHER_ARGUMENTS:
        return ""
    by_place = [arg.arg for arg in (*args.posonlyargs, *args.args)]
    by_name = {arg.arg for arg in (*args.args, *args.kwonlyargs)}
    unknown = sorted(symbol.keywords - by_name) if args.kwarg is None else []
    if unknown:
        return f"it takes no {', '.join(unknown)}"
    if symbol.positional > len(by_place) and args.vararg is None:
        return f"it takes {len(by_place)} arguments by place, and we give {symbol.positional}"
    if symbol.role:
        ours = [name for name in symbol.takes if name]
        for theirs, own in zip(by_place, ours, strict=False):
            if theirs != own:
                return f"it is given {theirs} where ours takes {own}"
        more = [*by_place[len(ours) :], *sorted(by_name - {*by_place, *ours})]
        if more and None not in symbol.takes:
            return f"it is given {', '.join(more)}, which ours does not take"
    return ""


def page(found: Found) -> Iterator[str]:
    """The lines of the list of symbols."""
    yield INTRODUCTION
    for host, (title, about) in HOSTS.items():
        yield f"## {title}\n\n{about}\n"
        yield "| name | for | in | |\n|---|---|---|---|"
        rows: dict[tuple[str, str, str], list[str]] = {}
        for symbol in found.values():
            if symbol.host == host:
                places = ", ".join(f"`{where}`" for where in sorted(symbol.where))
                row = (reason(symbol.name), places, "optional" if symbol.optional else "")
                rows.setdefault(row, []).append(shown(symbol))
        for row, names in rows.items():
            yield f"| {'<br>'.join(names)} | {' | '.join(row)} |"
        yield ""


def shown(symbol: Symbol) -> str:
    arguments = f"({', '.join(sorted(symbol.keywords))})" if symbol.keywords else ""
    return f"`{symbol.name}{arguments}`" + (f", {symbol.role}" if symbol.role else "")


def reason(name: str) -> str:
    """Why it is used: of itself, or of the longest name it begins with."""
    return next((WHY[name[:n]] for n in range(len(name), 0, -1) if name[:n] in WHY and name[n : n + 1] in " .:/"), "")


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="tools/host_symbols.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", type=Path, help="write the list to this file")
    parser.add_argument("--repo", type=Path, default=REPO, help="the pack to look at (default: this one)")
    folders = {"comfyui": ("ComfyUI", "server"), "frontend": ("page",), "sdnext": ("SD.Next",)}
    folders["libraries"] = ("libraries",)
    for name in folders:
        parser.add_argument(f"--{name}", type=Path)
    options = parser.parse_args()
    found = find(options.repo)
    if options.page:
        part = options.page.with_name(options.page.name + ".part")
        part.write_text("\n".join(page(found)), encoding="utf-8")
        part.replace(options.page)
    broken = False
    for name, hosts in folders.items():
        folder = getattr(options, name)
        if folder is None:
            continue
        if not folder.is_dir():
            parser.error(f"--{name}: there is no folder {folder}")
        report = Report()
        for host in hosts:
            check(found.values(), host, folder, report)
        print(f"{name}: {report.checked} names, {len(report.gone)} gone, {len(report.untold)} can't be told")
        for symbol, wrong in report.gone:
            print(
                f"  {'optional ' if symbol.optional else ''}{symbol.name}: {wrong} ({', '.join(sorted(symbol.where))})"
            )
        broken = broken or report.broken
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
