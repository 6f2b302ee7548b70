"""The tables of docs/other-nodes.md, and prompts for nodes that only `/object_info` describes."""

from .prompts import PACK, node

RESULTS = {"kept", "follows", "whole", "kept or whole", "follows or whole", "same", "works", "no", "not tried"}


def rows(section: str) -> dict[str, str]:
    """The result of each node in the table under the heading that begins with `section`."""
    text = (PACK / "docs" / "other-nodes.md").read_text(encoding="utf-8")
    (part,) = [part for part in text.split("\n## ")[1:] if part.startswith(section)]
    found = {}
    for line in part.splitlines():
        if line.startswith("| `"):
            names, result = (cell.strip() for cell in line.split("|")[1:3])
            assert result in RESULTS, line
            found |= {name.strip("` "): result for name in names.split(",")}
    return found


def types(description: dict) -> dict[str, object]:
    """The types of a node's inputs, by name."""
    inputs = (part for kind, part in description["input"].items() if kind != "hidden")
    return {name: value[0] for part in inputs for name, value in part.items()}


def filled(kind: str, description: dict, links: dict[str, list]) -> dict:
    """A node with its defaults, small sizes, and `links` by type."""
    inputs = {}
    for part in ("required", "optional"):
        for name, (of, *options) in description["input"].get(part, {}).items():
            options = options[0] if options else {}
            if isinstance(of, str) and of in links:
                inputs[name] = links[of]
            elif isinstance(of, list) or of == "COMBO":
                inputs[name] = options.get("default", (of if isinstance(of, list) else options["options"])[0])
            elif part == "required" or "default" in options:
                inputs[name] = {"width": 160, "height": 160, "length": 9}.get(name, options.get("default"))
    return node(kind, **inputs)
