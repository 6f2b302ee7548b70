// What a node will do, as far as the graph tells, asked of the server when something changed that it depends on.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { show } from "./line.js";

// Nodes whose output is as large as their input of the same kind.
const SAME_SIZE = ["KSampler", "KSamplerAdvanced", "SamplerCustom", "SetLatentNoiseMask", "DCAE_ScaleLatent"];
const pictures = new Map(); // URL of a picture in ComfyUI's folders: its size, or null while that is not known

export async function foresee(node) {
  const question = ask(node);
  let wrong = app.lastNodeErrors?.[node.id]?.errors?.[0];
  if (wrong && wrong !== node.dcae.wrong) Object.assign(node.dcae, { wrong, about: question });
  if (question !== node.dcae.about) wrong = null; // ComfyUI keeps what it said until the next run
  const key = wrong ? JSON.stringify(wrong) : question;
  if (key === null || key === node.dcae.key) return;
  const first = node.dcae.key === "";
  const turn = {};
  Object.assign(node.dcae, { key, turn });
  if (wrong) return show(node, wrong.details || wrong.message, "error");
  if (first && node.dcae.state) return; // shown already: a run that ended before
  const answer = await (await api.fetchApi(`/dcae/${question}`)).json();
  if (node.dcae.turn === turn && node.dcae.state !== "busy") {
    show(node, answer.text ?? answer.problem, answer.text ? "plan" : "error");
  }
}

// Shows what became of a run, which stays until the node would do something else.
export function settle(node, text, state) {
  if (!node?.dcae) return;
  Object.assign(node.dcae, { key: ask(node) ?? "", turn: null }); // no answer that is under way replaces it
  show(node, text, state);
}

// Another node's turn, this one's, or the end of a run: what a node told at its work is over, and so is an old error.
export function release(node, starts) {
  if (node.dcae.state === "busy" || (starts && node.dcae.state === "error")) node.dcae.state = node.dcae.key = null;
}

// The route and its query that tell what `node` will do; null where the graph does not say.
function ask(node) {
  if (node.comfyClass === "DCAE_Loader") return `model?${new URLSearchParams({ choice: value(node, "model") })}`;
  const encoding = node.comfyClass === "DCAE_Encode";
  const loader = source(node, "vae");
  const size = encoding ? inputSize(node, "pixels") : inputSize(node, "samples");
  if (loader?.comfyClass !== "DCAE_Loader" || !size) return null;
  const asked = {
    choice: value(loader, "model"),
    variant: value(loader, "variant"),
    dtype: value(loader, "dtype"),
    direction: encoding ? "encode" : "decode",
    ...size,
    budget_gib: value(node, "budget_gib"),
  };
  if (encoding) asked.size_mode = value(node, "size_mode");
  return Object.values(asked).includes(undefined) ? null : `plan?${new URLSearchParams(asked)}`;
}

// A widget's value; undefined where there is none or a link gives it.
function value(node, name) {
  const slot = node.inputs?.find((input) => input.widget?.name === name || input.name === name);
  if (slot?.link != null) return undefined;
  return node.widgets?.find((widget) => widget.name === name)?.value;
}

// The node that feeds an input, through reroutes; undefined if nothing does.
function source(node, name) {
  const at = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  const from = at < 0 ? null : node.getInputNode(at);
  if (!from) return undefined;
  if (from.comfyClass === "Reroute" || from.type === "Reroute") return source(from, from.inputs[0].name);
  return from;
}

// {width, height, batch} of the picture that an input is, or is the latent of.
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
