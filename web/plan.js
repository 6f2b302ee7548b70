// Show the plan of a node's run before it runs. The server makes a new plan when an input changes.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { show } from "./line.js";

// Nodes whose latent output has the size of their latent input.
const SAME_SIZE = ["KSampler", "KSamplerAdvanced", "SamplerCustom", "SetLatentNoiseMask", "DCAE_ScaleLatent"];
const pictures = new Map(); // URL of a picture in ComfyUI's folders: its size, null while it loads
const queued = new Map(); // id of a prompt: WeakMap of a node: its query when the prompt was queued

export async function updatePlan(node) {
  const key = planQuery(node);
  if (key === null || key === node.dcae.key) return;
  const first = node.dcae.key === "";
  const request = {};
  Object.assign(node.dcae, { key, request });
  if (first && node.dcae.state) return; // the line shows the result of a run
  const answer = await (await api.fetchApi(`/dcae/${key}`)).json();
  if (!node.graph || node.dcae.request !== request || node.dcae.state === "busy") return; // or it was removed meanwhile
  if (planQuery(node) === key) show(node, answer.text ?? answer.problem, answer.text ? "plan" : "error");
  else node.dcae.key = null; // the change may be taken back before the next look
}

export function rememberQueries(prompt, queries) {
  queued.set(prompt, queries);
  if (queued.size > 1000) queued.delete(queued.keys().next().value);
}

// Show the result of a run, until the node's query changes; nothing if it has changed since the prompt was queued.
// prompt: its id, or the queries of the nodes when it was queued.
export function showResult(node, text, state, prompt) {
  if (!node?.dcae) return;
  const now = planQuery(node);
  const before = (queued.get(prompt) ?? prompt)?.get?.(node) ?? now; // unknown after the page was loaded anew
  if (now !== null && now !== before) return clearResult(node, true);
  Object.assign(node.dcae, { key: now ?? "", request: null }); // a pending answer must not replace it
  show(node, text, state);
}

// Clear a busy line when any node starts or the run ends, and an error when its node starts again.
export function clearResult(node, starting) {
  if (node.dcae.state === "busy" || (starting && node.dcae.state === "error")) node.dcae.state = node.dcae.key = null;
}

// Return the route and query of the node's plan; null if the graph does not determine them.
export function planQuery(node) {
  if (node.comfyClass === "DCAE_Loader") {
    const query = { choice: value(node, "model") };
    for (const name of ["variant", "dtype", "allow_download"]) query[name] = value(node, name); // that it changed
    return `model?${new URLSearchParams(query)}`;
  }
  const encoding = node.comfyClass === "DCAE_Encode";
  const loader = source(node, "vae");
  const size = encoding ? inputSize(node, "pixels") : inputSize(node, "samples");
  if (loader?.comfyClass !== "DCAE_Loader" || !size) return null;
  const query = {
    choice: value(loader, "model"),
    variant: value(loader, "variant"),
    dtype: value(loader, "dtype"),
    direction: encoding ? "encode" : "decode",
    ...size,
    budget_gib: value(node, "budget_gib"),
  };
  if (encoding) {
    Object.assign(query, { size_mode: value(node, "size_mode"), latent_channels: value(node, "latent_channels") ?? 0 });
  } else Object.assign(query, { true_width: value(node, "width"), true_height: value(node, "height") });
  return Object.values(query).includes(undefined) ? null : `plan?${new URLSearchParams(query)}`;
}

// Return a widget's value; undefined if there is no such widget or its input is linked.
function value(node, name) {
  const slot = node.inputs?.find((input) => input.widget?.name === name || input.name === name);
  if (slot?.link != null) return undefined;
  return node.widgets?.find((widget) => widget.name === name)?.value;
}

// Return the node linked to an input, through reroutes; undefined if there is none.
function source(node, name) {
  const index = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  const from = index < 0 ? null : node.getInputNode(index);
  if (!from) return undefined;
  if (from.comfyClass === "Reroute" || from.type === "Reroute") return source(from, from.inputs[0].name);
  return from;
}

// Return {width, height, batch} of an input's picture; of a latent's picture before it was encoded, with the size_mode
// that it was encoded with: "forgotten" is padded by a node that does not remember the size. Null if it is not known.
function inputSize(node, name) {
  const from = source(node, name);
  if (!from || from.mode === 2 || from.mode === 4) return null;
  if (SAME_SIZE.includes(from.comfyClass)) {
    return inputSize(from, from.inputs.find((input) => input.type === "LATENT")?.name);
  }
  switch (from.comfyClass) {
    case "DCAE_EmptyLatent":
      return latent(numbers(value(from, "width"), value(from, "height"), value(from, "batch_size")), "pad");
    case "EmptyImage":
      return numbers(value(from, "width"), value(from, "height"), value(from, "batch_size"));
    case "ImageScale":
      return numbers(value(from, "width"), value(from, "height"), inputSize(from, "image")?.batch);
    case "LoadImage":
      return pictureSize(value(from, "image"));
    case "DCAE_Encode":
      return latent(inputSize(from, "pixels"), value(from, "size_mode"));
    case "VAEEncode":
      return latent(inputSize(from, "pixels"), "forgotten");
    case "DCAE_Decode":
      return decodedSize(from);
  }
  return null;
}

function latent(size, mode) {
  return size && mode && { ...size, size_mode: mode };
}

// Return the size of a decoded picture; null where it depends on the ratio.
function decodedSize(node) {
  const size = inputSize(node, "samples");
  const [width, height] = [value(node, "width"), value(node, "height")];
  if (!size || width === undefined || height === undefined) return null;
  if (size.size_mode !== "pad" && !(width && height)) return null;
  return numbers(width || size.width, height || size.height, size.batch);
}

function numbers(width, height, batch) {
  return width > 0 && height > 0 && batch > 0 ? { width, height, batch } : null;
}

function pictureSize(name) {
  if (typeof name !== "string" || !name) return null;
  const [, path, type] = name.match(/^(.*?)(?: \[(input|output|temp)\])?$/);
  const cut = path.lastIndexOf("/");
  const query = { filename: path.slice(cut + 1), subfolder: path.slice(0, Math.max(cut, 0)), type: type ?? "input" };
  const url = api.apiURL(`/view?${new URLSearchParams(query)}`);
  if (!pictures.has(url)) {
    pictures.set(url, null);
    const picture = new Image();
    picture.onload = () => pictures.set(url, numbers(picture.naturalWidth, picture.naturalHeight, 1));
    picture.src = url;
  }
  return pictures.get(url);
}
