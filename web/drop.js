// Add the nodes that decode a DC-AE latent file when it is dropped on the graph.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const CHANNELS = [32, 128, 512];
const MAX_HEADER = 4 << 20;

// ComfyUI has no hook for drops: this handler runs before ComfyUI's and passes other files on to it.
export function takeDrop(event) {
  const files = [...(event.dataTransfer?.files ?? [])];
  if (!files.length || !files.every((file) => /\.(latent|safetensors)$/i.test(file.name))) return;
  if (app.dragOverNode?.onDragDrop || event.target.closest?.("input, textarea, .p-dialog")) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  app.dragOverNode = null;
  const [x, y] = app.canvas.convertEventToCanvasOffset(event);
  files.forEach(async (file, i) => {
    try {
      const latent = await readHeader(file);
      if (latent) await addNodes(file, latent, x, y + i * 320);
      else await app.handleFile(file, "file_drop");
    } catch (error) {
      app.extensionManager.toast.add({ severity: "error", summary: file.name, detail: error.message, life: 8000 });
    }
  });
}

// Return {variant} of a DC-AE latent file (undefined if the file does not name it), null for any other file.
async function readHeader(file) {
  if (file.size < 8) return null;
  const length = Number(new DataView(await file.slice(0, 8).arrayBuffer()).getBigUint64(0, true));
  if (length > Math.min(MAX_HEADER, file.size - 8)) return null;
  let header;
  try {
    header = JSON.parse(await file.slice(8, 8 + length).text());
  } catch {
    return null;
  }
  const metadata = header?.__metadata__ ?? {}; // untrusted: values of any type
  if (header?.latents && String(metadata.format).startsWith("dcae-latents")) return { variant: metadata.variant };
  const channels = header?.latent_tensor?.shape?.[1];
  const isDCAE = metadata.prompt ? String(metadata.prompt).includes('"DCAE_') : channels !== 128; // Flux 2 has 128 as well
  return CHANNELS.includes(channels) && isDCAE ? {} : null;
}

async function addNodes(file, { variant }, x, y) {
  const name = await upload(file);
  const graph = app.canvas.graph;
  const add = (type, dx, dy) => {
    const node = LiteGraph.createNode(type);
    node.pos = [x + dx, y + dy];
    graph.add(node);
    return node;
  };
  graph.beforeChange?.();
  const load = add("DCAE_LoadLatent", 0, 0);
  set(load, "latent", name, true);
  const loader = graph._nodes.find((node) => node.comfyClass === "DCAE_Loader") ?? add("DCAE_Loader", 0, 130);
  const model = loader.widgets.find((widget) => widget.name === "model");
  const choice = variant && !model.value.startsWith(variant) && model.options.values.find((v) => v.startsWith(variant));
  if (choice) set(loader, "model", choice);
  const decode = add("DCAE_Decode", 420, 0);
  const preview = add("PreviewImage", 740, 0);
  load.connect(0, decode, "samples");
  loader.connect(0, decode, "vae");
  decode.connect(0, preview, "images");
  graph.afterChange?.();
  app.canvas.setDirty(true, true);
}

async function upload(file) {
  const form = new FormData();
  form.append("image", file);
  form.append("type", "input");
  const answer = await api.fetchApi("/upload/image", { method: "POST", body: form, timeoutMs: null });
  if (!answer.ok) throw new Error(`ComfyUI did not take the file (${answer.status} ${answer.statusText}).`);
  const { name, subfolder } = await answer.json();
  return subfolder ? `${subfolder}/${name}` : name;
}

function set(node, name, value, addOption = false) {
  const widget = node.widgets.find((one) => one.name === name);
  if (addOption && !widget.options.values.includes(value)) widget.options.values.push(value);
  widget.value = value;
  widget.callback?.(value);
}
