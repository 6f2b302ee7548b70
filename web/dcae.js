// What DC-AE adds to ComfyUI's page: a line on its nodes, and nodes for a latent file that is dropped on the graph.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { addLine, show } from "./line.js";
import { addSlider } from "./compare.js";
import { foresee, release, settle } from "./plan.js";
import { takeDrop } from "./drop.js";
import { sayWhatReplaces } from "./missing.js";

const NODES = ["DCAE_Loader", "DCAE_Encode", "DCAE_Decode"];

app.registerExtension({
  name: "dcae",

  nodeCreated(node) {
    if (NODES.includes(node.comfyClass)) addLine(node);
    else if (node.comfyClass === "DCAE_Compare") addSlider(node);
    else return;
    const before = node.onExecuted;
    node.onExecuted = function (output) {
      before?.apply(this, arguments);
      if (output?.dcae) settle(node, output.dcae[0], "done");
      if (output?.dcae_compare) node.dcaeShow(output.dcae_compare[0]);
    };
  },

  afterConfigureGraph() {
    sayWhatReplaces(app.graph);
  },

  setup() {
    api.addEventListener("dcae.line", ({ detail }) => show(find(detail.node), detail.text, "busy"));
    api.addEventListener("execution_error", ({ detail }) => {
      settle(find(detail.node_id), detail.exception_message, "error");
    });
    api.addEventListener("execution_interrupted", ({ detail }) => settle(find(detail.node_id), "stopped", "done"));
    api.addEventListener("executing", ({ detail }) => {
      const starts = find(detail);
      everyNode(app.graph, (node) => release(node, node === starts));
    });
    api.addEventListener("execution_cached", ({ detail }) => {
      for (const node of detail.nodes.map(find)) if (node?.dcae) release(node, true); // never "executing"
    });
    window.addEventListener("drop", takeDrop, true);
    setInterval(() => document.hidden || everyNode(app.graph, foresee), 700);
  },
});

// The node that a run names: an id, or ids of subgraphs and a node in them, as in "5:3".
function find(id) {
  let graph = app.graph, node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part));
    graph = node?.subgraph;
  }
  return node;
}

function everyNode(graph, work) {
  for (const node of graph?._nodes ?? []) {
    if (NODES.includes(node.comfyClass)) work(node);
    if (node.subgraph) everyNode(node.subgraph, work);
  }
}
