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
