// Each figure: a choice of autoencoder and of view, the cut between original and result, and one zoom for all its
// pictures. z is the zoom (1: the whole picture), x and y where the picture's corner is, in widths and heights of a pane.
const MOST = 32; // screen pixels along a pixel of the picture, at the largest zoom
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

for (const figure of document.querySelectorAll("figure")) {
  const stage = figure.querySelector(".stage"), cut = figure.querySelector("input");
  const [model, view] = figure.querySelectorAll("select"), [less, whole, more] = figure.querySelectorAll("button");
  const panes = [...stage.querySelectorAll(".pane")], fingers = new Map();
  let z = 1, x = 0, y = 0, cutting = false, tapping = false;

  const fit = () => Math.max(1, ...panes.map((pane) => pane.offsetWidth)) / figure.style.getPropertyValue("--width");
  const place = (zoom, left, top) => {
    z = zoom, x = clamp(left, 1 - z, 0), y = clamp(top, 1 - z, 0);
    for (const [name, value] of Object.entries({ x, y, z })) figure.style.setProperty(`--${name}`, value);
    stage.classList.toggle("zoomed", z > 1);
    stage.classList.toggle("coarse", z * fit() >= 2);
    figure.querySelector("output").value = `${Math.round(100 * z * fit())} %`;
  };
  const zoomTo = (zoom, from = [0.5, 0.5], to = from) => { // what is at `from` in a pane comes to `to`
    zoom = clamp(zoom, 1, Math.max(1, MOST / fit()));
    place(zoom, to[0] - (from[0] - x) * zoom / z, to[1] - (from[1] - y) * zoom / z);
  };
  // To the next power of two of screen pixels for a pixel, at which all have one size.
  more.onclick = () => zoomTo(2 ** Math.floor(Math.log2(z * fit()) + 1.001) / fit());
  less.onclick = () => zoomTo(2 ** Math.ceil(Math.log2(z * fit()) - 1.001) / fit());
  whole.onclick = () => zoomTo(1);

  const show = () => {
    figure.dataset.view = view.value;
    for (const cell of stage.children) cell.classList.toggle("chosen", cell.dataset.model === model.value);
    figure.querySelector(".says").textContent = stage.querySelector(".chosen.result small").textContent;
    place(z, x, y);
  };
  model.onchange = view.onchange = show;
  cut.oninput = () => figure.style.setProperty("--cut", `${cut.value}%`);

  const share = ([left, top], box) => [(left - box.left) / box.width, (top - box.top) / box.height];
  const cutAt = (point, box) => { cut.value = 100 * share(point, box)[0], cut.oninput(); };
  let box;
  stage.onpointerdown = (event) => {
    const pane = event.target.closest(".pane"), point = [event.clientX, event.clientY];
    if (!pane || event.button) return;
    box = pane.getBoundingClientRect();
    fingers.set(event.pointerId, point);
    stage.setPointerCapture(event.pointerId);
    const off = Math.abs(share(point, box)[0] - cut.value / 100) * box.width;
    cutting = view.value === "slider" && fingers.size === 1 && (z === 1 || off < 16);
    tapping = event.pointerType !== "mouse"; // and perhaps about to scroll the page
    if (cutting && !tapping) cutAt(point, box);
  };
  stage.onpointermove = (event) => {
    if (!fingers.has(event.pointerId)) return;
    const between = () => { // the middle of the fingers, and how far apart they are
      const [a, b = a] = fingers.values();
      return [share([(a[0] + b[0]) / 2, (a[1] + b[1]) / 2], box), Math.hypot(a[0] - b[0], a[1] - b[1])];
    };
    const [from, apart] = between(), [left, top] = fingers.get(event.pointerId);
    if (cutting && tapping && Math.abs(event.clientX - left) <= Math.abs(event.clientY - top)) return;
    tapping = false;
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (cutting) return cutAt([event.clientX, event.clientY], box);
    const [to, now] = between();
    zoomTo(apart ? z * now / apart : z, from, to);
  };
  stage.onpointercancel = (event) => fingers.delete(event.pointerId);
  stage.onpointerup = (event) => {
    if (fingers.delete(event.pointerId) && cutting && tapping) cutAt([event.clientX, event.clientY], box);
  };
  // Two fingers zoom the pictures, not the page.
  stage.addEventListener("touchstart", (event) => event.touches.length > 1 && event.preventDefault(), { passive: false });
  stage.addEventListener("wheel", (event) => {
    const pane = event.target.closest(".pane");
    if (!pane || !(event.ctrlKey || event.metaKey)) return; // else it scrolls the page
    event.preventDefault();
    const by = 2 ** (-event.deltaY * (event.deltaMode ? 30 : 1) / 200);
    zoomTo(z * by, share([event.clientX, event.clientY], pane.getBoundingClientRect()));
  }, { passive: false });

  figure.onkeydown = (event) => {
    const step = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    const button = { "+": more, "=": more, "-": less, 0: whole }[event.key];
    if (event.target === model || event.target === view || event.ctrlKey || event.metaKey || event.altKey) return;
    if (button) button.click();
    else if (step && z > 1 && event.target === stage) place(z, x + step[0] / 8, y + step[1] / 8);
    else return;
    event.preventDefault();
  };
  view.value = "slider";
  cut.oninput(); // Firefox keeps its value when the page is loaded again
  show();
  new ResizeObserver(() => place(z, x, y)).observe(stage);
}

const all = document.querySelector("#all");
if (all) all.onchange = () => {
  for (const view of document.querySelectorAll("figure select[aria-label=view]")) view.value = all.value, view.onchange();
};
