// Suggest nodes of this pack in place of those of ComfyUI_ExtraModels that are not installed, once per graph.
import { app } from "../../scripts/app.js";

const REPLACEMENTS = {
  ExtraVAELoader: "DC-AE Loader",
  EmptyDCAELatentImage: "DC-AE Empty Latent",
  EmptySanaLatentImage: "DC-AE Empty Latent",
};

export function suggestReplacements(graph) {
  const replaceable = new Set((graph?._nodes ?? []).map((node) => node.type).filter((type) => REPLACEMENTS[type]));
  const missing = [...replaceable].filter((type) => !LiteGraph.registered_node_types[type]);
  if (!missing.length) return;
  app.extensionManager.toast.add({
    severity: "info",
    summary: "DC-AE",
    detail: missing.map((type) => `${type} is not installed: use ${REPLACEMENTS[type]} in its place.`).join("\n"),
    life: 15000,
  });
}
