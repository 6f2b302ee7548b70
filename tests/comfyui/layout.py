"""Where the nodes and links of an open workflow are on ComfyUI's page, and what lies over what."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

# In the graph's own units. On the canvas a node's box is what LiteGraph keeps, title included; in Nodes 2.0 it is the
# element's, with what hangs out of it. A link is the path that the page has drawn: it passes beneath a node where the
# path crosses the box's edge.
MEASURE = """() => {
    const {ds, canvas, ctx} = app.canvas, page = canvas.getBoundingClientRect(), pen = new OffscreenCanvas(1, 1);
    const box = node => {
        const element = document.querySelector(`[data-node-id="${node.id}"]`);
        if (!element) {
            node.updateArea(ctx);
            const [left, top, width, height] = node.boundingRect;
            return [left, top, left + width, top + height];
        }
        const parts = [element, ...element.children].map(one => one.getBoundingClientRect()).filter(one => one.width);
        const across = x => (x - page.left) / ds.scale - ds.offset[0];
        const down = y => (y - page.top) / ds.scale - ds.offset[1];
        return [across(Math.min(...parts.map(one => one.left))), down(Math.min(...parts.map(one => one.top))),
            across(Math.max(...parts.map(one => one.right))), down(Math.max(...parts.map(one => one.bottom)))];
    };
    const stroke = pen.getContext('2d');
    stroke.lineWidth = 6;
    const crosses = (path, [left, top, right, bottom]) => {
        for (let x = left; x <= right; x += 3)
            if (stroke.isPointInStroke(path, x, top) || stroke.isPointInStroke(path, x, bottom)) return true;
        for (let y = top; y <= bottom; y += 3)
            if (stroke.isPointInStroke(path, left, y) || stroke.isPointInStroke(path, right, y)) return true;
        return false;
    };
    const nodes = app.graph._nodes.map(node => ({id: node.id, name: node.title || node.type, box: box(node)}));
    const links = [...app.graph.links.values()].map(link => {
        const from = app.graph.getNodeById(link.origin_id), to = app.graph.getNodeById(link.target_id);
        const others = nodes.filter(node => node.id !== from.id && node.id !== to.id);
        return {
            name: `${from.title || from.type} to ${to.title || to.type}`,
            forward: from.getOutputPos(link.origin_slot)[0] < to.getInputPos(link.target_slot)[0],
            over: others.filter(node => crosses(link.path, node.box)).map(node => node.name),
        };
    });
    return {nodes, links};
}"""


@dataclass(frozen=True)
class Box:
    """Edges of a node, in the graph's units."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box, gap: float = 0) -> bool:
        """Whether less than `gap` is between the two."""
        across = self.left < other.right + gap and other.left < self.right + gap
        return across and self.top < other.bottom + gap and other.top < self.bottom + gap


def faults(page, gap: float = 10) -> list[str]:
    """What a person would move: nodes nearer than `gap` to each other, links beneath a third node or back to the left.

    Waits until the page has drawn what is to be measured.
    """
    page.wait_for_function("[...app.graph.links.values()].every(link => link.path)")
    measured = page.evaluate(MEASURE)
    for _ in range(40):  # until nothing moves any more: previews and results come later
        page.wait_for_timeout(250)
        before, measured = measured, page.evaluate(MEASURE)
        if measured == before:
            break
    nodes = [(node["name"], Box(*node["box"])) for node in measured["nodes"]]
    over = [f"{a} {x} lies over {b} {y}" for (a, x), (b, y) in combinations(nodes, 2) if x.meets(y, gap)]
    links = measured["links"]
    beneath = [f"the link from {link['name']} passes beneath {node}" for link in links for node in link["over"]]
    return over + beneath + [f"the link from {link['name']} runs back" for link in links if not link["forward"]]
