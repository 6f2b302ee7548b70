// Show the plan of a node's run before it runs. The server makes a new plan when an input changes.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { show } from "./line.js";

// Nodes whose latent output has the size of their latent input.
const SAME_SIZE = ["KSampler", "KSamplerAdvanced", "SamplerCustom", "SetLatentNoiseMask", "DCAE_ScaleLatent"];
const pictures = new Map(); // URL of a picture in ComfyUI's folders: its size, null while it loads

export async function updatePlan(node) {
  const query = planQuery(node);
  let error = app.lastNodeErrors?.[node.id]?.errors?.[0];
  if (error && error !== node.dcae.error) Object.assign(node.dcae, { error, errorQuery: query });
  if (query !== node.dcae.errorQuery) error = null; // ComfyUI keeps an error until the next run
  const key = error ? JSON.stringify(error) : query;
  if (key === null || key === node.dcae.key) return;
  const first = node.dcae.key === "";
  const request = {};
  Object.assign(node.dcae, { key, request });
  if (error) return show(node, error.details || error.message, "error");
  if (first && node.dcae.state) return; // the line shows the result of a run
  const answer = await (await api.fetchApi(`/dcae/${query}`)).json();
  if (node.dcae.request === request && node.dcae.state !== "busy") {
    show(node, answer.text ?? answer.problem, answer.text ? "plan" : "error");
  }
}

// Show the result of a run. It stays until the node's query changes.
export function showResult(node, text, state) {
  if (!node?.dcae) return;
  Object.assign(node.dcae, { key: planQuery(node) ?? "", request: null }); // a pending answer must not replace it
  show(node, text, state);
}

// Clear a busy line when any node starts or the run ends, and an error when its node starts again.
export function clearResult(node, starting) {
  if (node.dcae.state === "busy" || (starting && node.dcae.state === "error")) node.dcae.state = node.dcae.key = null;
}

// Return the route and query of the node's plan; null if the graph does not determine them.
function planQuery(node) {
  if (node.comfyClass === "DCAE_Loader") return `model?${new URLSearchParams({ choice: value(node, "model") })}`;
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
  if (encoding) query.size_mode = value(node, "size_mode");
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

// Return {width, height, batch} of an input's picture, or of its latent's picture.
function inputSize(node, name) {
  const from = source(node, name);
  if (!from || from.mode === 2 || from.mode === 4) return null;
  if (SAME_SIZE.includes(from.comfyClass)) {
    return inputSize(from, from.inputs.find((input) => input.type === "LATENT")?.name);
  }
  switch (from.comfyClass) {
    case "DCAE_EmptyLatent":
    case "EmptyImage":
      return numbers(value(from, "width"), value(from, "height"), value(from, "batch_size"));
    case "ImageScale":
      return numbers(value(from, "width"), value(from, "height"), inputSize(from, "image")?.batch);
    case "LoadImage":
      return pictureSize(value(from, "image"));
    case "DCAE_Encode":
    case "VAEEncode":
      return inputSize(from, "pixels");
    case "DCAE_Decode":
    case "VAEDecode":
      return inputSize(from, "samples");
  }
  return null;
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
