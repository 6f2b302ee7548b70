// The slider of DC-AE Compare: the original on its left, a VAE's result on its right; or their difference.
import { api } from "../../scripts/api.js";

const HEIGHT = 320;
// As ComfyUI's own: a pill with name and value on the canvas, the value in a box of its own in Nodes 2.0.
const STYLE = `
  .dcae-compare label { display: flex; align-items: center; gap: 8px; height: 20px; margin: 0 9px; padding: 0 10px;
    font: 12px Inter, Arial, sans-serif; color: var(--descrip-text, #999); background: var(--comfy-input-bg, #222);
    border: 1px solid var(--border-color, #666); border-radius: 10px; }
  .dcae-compare select { flex: 1; min-width: 0; height: 100%; padding: 0 14px 0 0; font: inherit; text-align: right;
    text-align-last: right; text-overflow: ellipsis; color: var(--input-text, #ddd); border: 0; outline-offset: 2px;
    appearance: none; cursor: pointer; background: none; }
  .dcae-compare option { color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222); }
  .dcae-compare label::after { content: "▾"; margin-left: -20px; pointer-events: none; color: var(--input-text, #ddd); }
  [data-node-id] .dcae-compare label { height: 28px; margin: 0; padding: 0; background: none; border: 0;
    color: var(--node-component-slot-text, var(--descrip-text, #999)); }
  [data-node-id] .dcae-compare label > span { flex: 0 0 76px; }
  [data-node-id] .dcae-compare select { padding: 0 28px 0 8px; text-align: left; text-align-last: left;
    color: var(--component-node-foreground, var(--input-text, #ddd));
    background: var(--component-node-widget-background, var(--comfy-input-bg, #333));
    border-radius: 8px; }
  [data-node-id] .dcae-compare label::after { margin-left: -28px; width: 20px; }`;

export function addSlider(node) {
  const make = (tag, style, parent, more = {}) => {
    const element = Object.assign(document.createElement(tag), more);
    Object.assign(element.style, style);
    parent?.append(element);
    return element;
  };
  const over = { position: "absolute", inset: 0, width: "100%", height: "100%", margin: 0 };
  const box = make("div", { display: "none", flexDirection: "column", gap: "4px", height: "100%", width: "100%" });
  box.className = "dcae-compare";
  make("style", {}, box, { textContent: STYLE });
  const choose = (name) => {
    const label = make("label", {}, box);
    make("span", {}, label, { textContent: name });
    return make("select", {}, label, { ariaLabel: name });
  };
  const [picture, result, view] = [choose("picture"), choose("VAE"), choose("view")];
  view.append(new Option("original | result", "slider"), new Option("difference", "difference"));
  const frame = make("div", { flex: "1 1 0", minHeight: `${HEIGHT - 110}px`, display: "flex", justifyContent: "center", alignItems: "center" }, box);
  const stage = make("div", { position: "relative", maxWidth: "100%", maxHeight: "100%", overflow: "hidden" }, frame);
  const before = make("img", { ...over, objectFit: "fill" }, stage, { alt: "original" });
  const after = make("img", { ...over, objectFit: "fill" }, stage, { alt: "result" });
  const edge = make("div", { position: "absolute", top: 0, bottom: 0, width: "2px", marginLeft: "-1px", background: "#fff",
    boxShadow: "0 0 3px #000", pointerEvents: "none" }, stage);
  // A range input brings mouse, touch and arrow keys.
  const cut = make("input", { ...over, opacity: 0, cursor: "ew-resize", touchAction: "none" }, stage, {
    type: "range", min: 0, max: 100, step: 0.5, value: 50, ariaLabel: "original left, result right",
  });
  const text = make("div", { font: "12px/16px sans-serif", color: "var(--fg-color, #ddd)", userSelect: "text" }, box);
  for (const kind of ["pointerdown", "mousedown", "touchstart", "keydown"]) {
    box.addEventListener(kind, (event) => event.stopPropagation()); // else the node moves, or ComfyUI's keys do something
  }

  const move = () => {
    const all = view.value === "difference";
    after.style.clipPath = all ? "none" : `inset(0 0 0 ${cut.value}%)`;
    Object.assign(edge.style, { left: `${cut.value}%`, display: all ? "none" : "" });
  };
  const draw = () => {
    const row = node.dcaeCompare.pictures[picture.value];
    const entry = row.results[result.value];
    text.textContent = text.title = entry.text;
    text.style.color = entry.result ? "var(--fg-color, #ddd)" : "var(--error-text, #ff7a7a)";
    before.src = url(row.original);
    after.style.visibility = entry.result ? "" : "hidden";
    if (entry.result) after.src = url(view.value === "difference" ? entry.difference : entry.result);
    move();
  };
  // Fit the picture into the frame, with its proportions.
  const fit = () => {
    const scale = Math.min(frame.clientWidth / before.naturalWidth, frame.clientHeight / before.naturalHeight);
    if (!(scale > 0 && scale < Infinity)) return;
    stage.style.width = `${before.naturalWidth * scale}px`;
    stage.style.height = `${before.naturalHeight * scale}px`;
  };
  before.onload = fit;
  before.onerror = () => (text.textContent = "The pictures of this run are gone. Run it again.");
  new ResizeObserver(fit).observe(frame);
  picture.onchange = result.onchange = view.onchange = draw;
  cut.oninput = move;

  const widget = node.addDOMWidget("dcae_compare", "dcae_compare", box, {
    serialize: false, hideOnZoom: false, margin: 6, getMinHeight: () => (node.dcaeCompare ? HEIGHT : 0),
  });
  widget.serialize = false;
  // The grid, which is there for clients of the API, is not shown: in Nodes 2.0 (older pages: dcae.js), on the canvas.
  Object.assign(node, { hideOutputImages: true, onDrawBackground() {} });
  node.dcaeShow = (comparison) => {
    const first = !node.dcaeCompare;
    node.dcaeCompare = comparison;
    if (!comparison.pictures.length) return;
    fill(picture, comparison.pictures.map((one) => one.name));
    fill(result, comparison.pictures[0].results.map((one) => one.name));
    picture.parentElement.style.display = comparison.pictures.length > 1 ? "" : "none";
    box.style.display = "flex";
    draw();
    if (first) node.setSize([Math.max(node.size[0], 420), Math.max(node.size[1], node.computeSize()[1])]);
    node.setDirtyCanvas?.(true, true);
  };
}

function fill(select, names) {
  const before = select.value;
  select.replaceChildren(...names.map((name, i) => new Option(name, i)));
  if (before in names) select.value = before;
}

function url(filename) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, type: "temp" })}`);
}
