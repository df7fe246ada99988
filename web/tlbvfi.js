// Lets graphs open that were saved with widget values by name, or by older releases.
import { app } from "../../scripts/app.js";
import { readSavedGraph } from "./saved_graphs.js";

let definitions = {};

app.registerExtension({
  name: "TLBVFI.SavedGraphs",
  addCustomNodeDefs(nodeDefinitions) {
    definitions = nodeDefinitions;
  },
  beforeConfigureGraph(graph) {
    readSavedGraph(graph, definitions);
  },
});

// The page sends the player it puts on a node as one more input, from the first queue after a result
// on: ComfyUI's cache then takes the node for another one, and runs all that follows it again.
app.registerExtension({
  name: "TLBVFI.Player",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("TLBVFI_")) return;
    const add = node.addCustomWidget;
    node.addCustomWidget = function (widget) {
      const added = add.call(this, widget);
      if (added?.name === "video-preview") added.options = { ...added.options, serialize: false };
      return added;
    };
  },
});

// Placeholders such as %date:yyyy-MM-dd% are replaced by the page, which does so for core's nodes only.
const NAMES_OF_FILES = new Set(["output_filename", "output_dir"]);

app.registerExtension({
  name: "TLBVFI.Placeholders",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("TLBVFI_")) return;
    for (const widget of node.widgets ?? []) {
      if (!NAMES_OF_FILES.has(widget.name)) continue;
      widget.serializeValue = () =>
        window.comfyAPI?.utils?.applyTextReplacements?.(app, widget.value) ?? widget.value;
    }
  },
});
