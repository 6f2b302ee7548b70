// The extension of ComfyUI's page: a line of text on the nodes, a slider, and nodes for a dropped latent file.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { addLine, ensureAdded, show } from "./line.js";
import { addSlider } from "./compare.js";
import { clearResult, planQuery, rememberQueries, showResult, updatePlan } from "./plan.js";
import { takeDrop } from "./drop.js";
import { suggestReplacements } from "./missing.js";

const NODES = ["DCAE_Loader", "DCAE_Encode", "DCAE_Decode"];

app.registerExtension({
  name: "dcae",

  nodeCreated(node) {
    if (NODES.includes(node.comfyClass)) addLine(node);
    if (node.comfyClass !== "DCAE_Compare") return;
    addSlider(node);
    const before = node.onExecuted;
    node.onExecuted = function (output) {
      before?.apply(this, arguments);
      if (!output?.dcae_compare) return;
      delete output.images; // which older pages with Nodes 2.0 would show below the slider
      node.dcaeShow(output.dcae_compare[0]);
    };
  },

  afterConfigureGraph(missing) {
    suggestReplacements(app.graph, missing);
  },

  setup() {
    watchQueue();
    api.addEventListener("dcae.line", ({ detail }) => {
      const node = find(detail.node);
      if (detail.state === "busy") show(node, detail.text, "busy");
      else showResult(node, detail.text, detail.state, detail.prompt_id);
    });
    api.addEventListener("execution_error", ({ detail }) => {
      showResult(find(detail.node_id), detail.exception_message, "error", detail.prompt_id);
    });
    api.addEventListener("execution_interrupted", ({ detail }) => {
      showResult(find(detail.node_id), "stopped", "done", detail.prompt_id);
    });
    api.addEventListener("executing", ({ detail }) => {
      const starting = find(detail);
      everyNode(app.graph, (node) => clearResult(node, node === starting));
    });
    api.addEventListener("execution_cached", ({ detail }) => {
      for (const node of detail.nodes.map(find)) if (node?.dcae) clearResult(node, true); // which send no "executing"
    });
    window.addEventListener("drop", takeDrop, true);
    setInterval(() => document.hidden || everyNode(app.graph, update), 700);
  },
});

function update(node) {
  ensureAdded(node);
  updatePlan(node);
}

// Each node's query is remembered when a prompt is queued: what the server says of the prompt comes later, and may come
// after the next change. ComfyUI has no event with a prompt's id before it runs, and keeps errors by node alone.
function watchQueue() {
  const { queuePrompt } = api;
  api.queuePrompt = function () {
    const queries = new WeakMap();
    everyNode(app.graph, (node) => queries.set(node, planQuery(node)));
    const refuse = (errors) => {
      for (const [id, { errors: [error] = [] }] of Object.entries(errors ?? {})) {
        if (error) showResult(find(id), error.details || error.message, "error", queries);
      }
    };
    const answer = queuePrompt.apply(this, arguments);
    // Beside the caller, not between: ComfyUI blames the scripts that it finds in an error's trace.
    answer.then(
      (made) => {
        rememberQueries(made.prompt_id, queries);
        refuse(made.node_errors);
      },
      (error) => refuse(error.response?.node_errors),
    );
    return answer;
  };
}

// Return the node of an id in a run's messages: an id, or ids of subgraphs and a node in them, as in "5:3".
function find(id) {
  let graph = app.graph, node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part));
    graph = node?.subgraph;
  }
  return node;
}

function everyNode(graph, visit) {
  for (const node of graph?._nodes ?? []) {
    if (NODES.includes(node.comfyClass)) visit(node);
    if (node.subgraph) everyNode(node.subgraph, visit);
  }
}
