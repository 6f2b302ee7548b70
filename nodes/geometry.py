"""Where the true picture lies in the decoded one: at its size before padding, moved as ComfyUI's latent nodes between
the node that wrote the size and DC-AE Decode have moved it. Plain arithmetic on the prompt, no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..dcae_core.errors import ImageError
from ..dcae_core.media.sizes import Fit

__all__ = ["Node", "Way", "true_area", "ways"]

Node = Mapping[str, Any]  # of a prompt: {"class_type", "inputs"}

PADDED = (1, 2)  # of a picture's sides top, right, bottom, left (0 to 3): where Fit adds pixels
TURNS = {"90": 1, "180": 2, "270": 3}  # clockwise, by the first word of LatentRotate's choices
# Nodes of two latents whose result has the place and size of one of them, and the name of that input.
BASE = {"LatentComposite": "samples_to", "LatentCompositeMasked": "destination"}
ELSEWHERE = ("LatentUpscale", "LatentCrop", "LatentCut", "LatentCutToBatch", "LatentConcat", "TrimVideoLatent")


@dataclass(frozen=True)
class Way:
    """How a latent came from the node `origin`. sides: which side of the origin's picture is now at the top, right,
    bottom and left. scaled: made larger or smaller on the way. known: False after a node that moves it elsewhere."""

    origin: str
    sides: tuple[int, int, int, int] = (0, 1, 2, 3)
    scaled: bool = False
    known: bool = True

    def through(self, kind: str, inputs: Mapping[str, Any]) -> Way:
        """Return the way after one of ComfyUI's nodes, by its class and its inputs in the prompt."""
        top, right, bottom, left = self.sides
        if kind == "LatentRotate":
            choice = inputs.get("rotation")
            if not isinstance(choice, str):  # linked: not known before the node runs
                return replace(self, known=False)
            turns = TURNS.get(choice.split()[0], 0)
            return replace(self, sides=self.sides[-turns:] + self.sides[:-turns])
        if kind == "LatentFlip":
            choice = inputs.get("flip_method")
            if not isinstance(choice, str):
                return replace(self, known=False)
            flipped = (bottom, right, top, left) if choice.startswith("x") else (top, left, bottom, right)
            return replace(self, sides=flipped)
        if kind == "LatentUpscaleBy" or (kind == "LatentUpscale" and inputs.get("crop") == "disabled"):
            return replace(self, scaled=True)
        return replace(self, known=self.known and kind not in ELSEWHERE)


def ways(
    node_id: str,
    node: Callable[[str], Node],
    carries_latent: Callable[[Node, str], bool],
    ends: tuple[str, ...],
) -> set[Way]:
    """Return the ways on which latents reach a node: one for each picture that meets there.

    node: gives a node of the prompt by its id. carries_latent: whether a node's input, by
    its name, may be linked to a latent. ends: classes of the nodes that write a size.
    """
    known: dict[str, set[Way]] = {}

    def visit(one: str) -> set[Way]:
        if one in known:
            return known[one]
        known[one] = set()  # a loop adds nothing
        kind, inputs = node(one)["class_type"], node(one)["inputs"]
        names = [BASE[kind]] if kind in BASE else [name for name in inputs if carries_latent(node(one), name)]
        links = [inputs[name] for name in names if isinstance(inputs.get(name), list)]
        before = set() if kind in ends else set().union(*(visit(str(source)) for source, _ in links))
        known[one] = {way.through(kind, inputs) for way in before} or {Way(one)}
        return known[one]

    return visit(node_id)


def true_area(
    latent: tuple[int, int],
    ratio: int,
    size: tuple[int, int] | None = None,
    found: set[Way] | None = None,
    height: int = 0,
    width: int = 0,
) -> tuple[slice, slice]:
    """Return the rows and columns of a decoded picture that are not padding.

    latent: rows and columns. size: (height, width) that the latent remembers of its picture before padding; used only
    where it can be true: one picture, in a latent of the size that it had or was scaled to. found: see `ways`; None is
    one that came straight. height, width: the true ones in pixels if the user gives them, 0 where not.
    Raises ImageError for a given side that would cut off more than padding.
    """
    whole = [side * ratio for side in latent]
    true = list(whole)
    way = Way("") if found is None else next(iter(found)) if len(found) == 1 else Way("", known=False)
    if size is not None and way.known:
        fit = Fit(*size, ratio)
        padding = [padded - side for padded, side in zip(fit.padded, size, strict=True)]
        had = list(fit.latent)
        if way.sides[0] % 2:  # lies on its side
            padding.reverse()
            had.reverse()
        if way.scaled or had == list(latent):
            true = [w - pad * now // before for w, pad, now, before in zip(whole, padding, latent, had, strict=True)]
    for i, (name, given) in enumerate((("height", height), ("width", width))):
        if given and not whole[i] - ratio < given <= whole[i]:
            raise ImageError(
                f"{name} {given} is not that of a picture with this latent: decoded it is {whole[1]}x{whole[0]}, of "
                f"which at most {ratio - 1} pixels are padding. Give {whole[i] - ratio + 1} to {whole[i]}, or 0 for "
                "what the latent remembers."
            )
        true[i] = given or true[i]
    starts = [w - t if way.sides[side] in PADDED else 0 for w, t, side in zip(whole, true, (0, 3), strict=True)]
    rows, columns = (slice(start, start + side) for start, side in zip(starts, true, strict=True))
    return rows, columns
