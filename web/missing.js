// A graph made with ComfyUI_ExtraModels, which is not installed, can use these nodes: say so once per graph.
import { app } from "../../scripts/app.js";

const OURS = {
  ExtraVAELoader: "DC-AE Loader",
  EmptyDCAELatentImage: "DC-AE Empty Latent",
  EmptySanaLatentImage: "DC-AE Empty Latent",
};

export function sayWhatReplaces(graph) {
  const missing = new Set((graph?._nodes ?? []).map((node) => node.type).filter((type) => OURS[type]));
  const words = [...missing].filter((type) => !LiteGraph.registered_node_types[type]);
  if (!words.length) return;
  app.extensionManager.toast.add({
    severity: "info",
    summary: "DC-AE",
    detail: words.map((type) => `${type} is not installed: use ${OURS[type]} in its place.`).join("\n"),
    life: 15000,
  });
}
