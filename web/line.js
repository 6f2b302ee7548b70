// A read-only line of text at the foot of a node, in the classic canvas and in Nodes 2.0.

const INK = "var(--fg-color, #ddd)";
const COLOURS = { done: INK, busy: INK, error: "var(--error-text, #ff7a7a)", plan: "var(--descrip-text, #9aa)" };
const HEIGHT = 34;

export function addLine(node) {
  const element = document.createElement("div");
  element.className = "dcae-line";
  Object.assign(element.style, {
    font: "12px/16px sans-serif",
    minHeight: `${HEIGHT}px`,
    overflow: "hidden auto",
    overflowWrap: "anywhere",
    color: COLOURS.plan,
    userSelect: "text",
  });
  // A type that ComfyUI does not know: it replaces widgets of known types with its components.
  const widget = node.addDOMWidget("dcae_line", "dcae_line", element, {
    serialize: false,
    hideOnZoom: false,
    margin: 6,
    getMinHeight: () => HEIGHT + 12,
    getMaxHeight: () => HEIGHT + 12,
  });
  widget.serialize = false;
  node.dcae = { element, key: "" };
  node.expandToFitContent?.();
  const before = node.onAdded;
  node.onAdded = function () {
    node.dcae.added = true;
    before?.apply(this, arguments);
  };
}

// The page puts a node in the place of another pack's without this event, on which widgets of elements are shown.
export function ensureAdded(node) {
  if (!node.dcae.added) node.onAdded(node.graph);
}

// state: "plan" (what will happen), "busy", "done" or "error".
export function show(node, text, state) {
  if (!node?.dcae) return;
  const { element } = node.dcae;
  element.textContent = element.title = text;
  element.style.color = COLOURS[state];
  element.dataset.state = node.dcae.state = state;
}
