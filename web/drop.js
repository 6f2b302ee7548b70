// A latent file of a DC-AE that is dropped on the graph becomes the nodes that decode it.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const CHANNELS = [32, 128, 512];
const MOST_HEADER = 4 << 20;

// ComfyUI gives extensions no say in drops, so this sees them first, and gives back what is not for it.
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
      const latent = await describe(file);
      if (latent) await addNodes(file, latent, x, y + i * 320);
      else await app.handleFile(file, "file_drop");
    } catch (error) {
      app.extensionManager.toast.add({ severity: "error", summary: file.name, detail: error.message, life: 8000 });
    }
  });
}

// {variant} of a latent file that a DC-AE made (the variant where the file says it), else null.
async function describe(file) {
  if (file.size < 8) return null;
  const length = Number(new DataView(await file.slice(0, 8).arrayBuffer()).getBigUint64(0, true));
  if (length > Math.min(MOST_HEADER, file.size - 8)) return null;
  let header;
  try {
    header = JSON.parse(await file.slice(8, 8 + length).text());
  } catch {
    return null;
  }
  const told = header?.__metadata__ ?? {}; // of any type: files come from anywhere
  if (header?.latents && String(told.format).startsWith("dcae-latents")) return { variant: told.variant };
  const channels = header?.latent_tensor?.shape?.[1];
  const ours = told.prompt ? String(told.prompt).includes('"DCAE_') : channels !== 128; // Flux 2 has 128 as well
  return CHANNELS.includes(channels) && ours ? {} : null;
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
  const fitting = variant && !model.value.startsWith(variant) && model.options.values.find((v) => v.startsWith(variant));
  if (fitting) set(loader, "model", fitting);
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

function set(node, name, value, offer = false) {
  const widget = node.widgets.find((one) => one.name === name);
  if (offer && !widget.options.values.includes(value)) widget.options.values.push(value);
  widget.value = value;
  widget.callback?.(value);
}
