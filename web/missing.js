// Nodes of this pack in place of those of ComfyUI_ExtraModels that are not installed.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const LOADER = "ExtraVAELoader";
const REPLACEMENTS = {
  [LOADER]: "DC-AE Loader",
  EmptyDCAELatentImage: "DC-AE Empty Latent",
  EmptySanaLatentImage: "DC-AE Empty Latent",
};

// Once per graph. `missing` is the page's list of missing nodes. With node replacement it has a Replace button for the
// empty latents, of which the server told it (nodes/replace.py), and gets one for the loader here if that loads a
// DC-AE. What has no button is suggested in a toast.
export function suggestReplacements(graph, missing) {
  const absent = everyNode(graph).filter(({ type }) => REPLACEMENTS[type] && !LiteGraph.registered_node_types[type]);
  const loaders = absent.filter(({ type }) => type === LOADER).map(loaderInputs);
  const toSuggest = new Set(absent.map(({ type }) => type));
  if (!loaders.some(Boolean)) toSuggest.delete(LOADER);
  const enabled = () => app.extensionManager.setting.get("Comfy.NodeReplacement.Enabled");
  if (api.getServerFeature?.("node_replacements") && enabled()) {
    for (const type of toSuggest) if (type !== LOADER) toSuggest.delete(type);
    // The page replaces all nodes of a type, and in the same way.
    if (toSuggest.size && new Set(loaders.map((inputs) => JSON.stringify(inputs))).size === 1) {
      for (const entry of missing) if (entry.type === LOADER) Object.assign(entry, loaderReplacement(loaders[0]));
      toSuggest.clear();
    }
  }
  if (!toSuggest.size) return;
  app.extensionManager.toast.add({
    severity: "info",
    summary: "DC-AE",
    detail: [...toSuggest].map((one) => `${one} is not installed: use ${REPLACEMENTS[one]} in its place.`).join("\n"),
    life: 15000,
  });
}

function everyNode(graph) {
  return (graph?._nodes ?? []).flatMap((node) => [node, ...everyNode(node.subgraph)]);
}

// The inputs of the DC-AE Loader for an ExtraVAELoader, as in nodes/replace.py; null for another kind of VAE.
function loaderInputs(node) {
  const saved = node.last_serialization; // of a node that is not installed
  const names = ["vae_name", "vae_type", "dtype"];
  const values = names.map((name, i) => saved?.widgets_values_named?.[name] ?? saved?.widgets_values?.[i]);
  const [file, kind, dtype] = values.map(String);
  const repository = file.match(/^mit-han-lab\/(dc-ae-.*?)(-diffusers)?$/);
  if (!repository && !kind.startsWith("dcae-")) return null;
  const model = repository ? `${repository[1]} (download)` : file;
  const known = /^(bf16|fp16|fp32)$/i.test(dtype);
  return { model, variant: "auto", dtype: known ? dtype.toLowerCase() : "auto", allow_download: false };
}

// The fields of an entry of the page's list that say how a node is replaced.
function loaderReplacement(inputs) {
  return {
    isReplaceable: true,
    replacement: {
      old_node_id: LOADER,
      new_node_id: "DCAE_Loader",
      old_widget_ids: null,
      input_mapping: Object.entries(inputs).map(([new_id, set_value]) => ({ new_id, set_value })),
      output_mapping: [{ old_idx: 0, new_idx: 0 }],
    },
  };
}
