// Reads graphs saved by older packs that have the same nodes. Pure: a graph and the node
// definitions in, the graph changed in place.

const RENAMED_TYPES = new Map([["VideoConcatenator", "TLBVFI_VideoConcatenator"]]);
const WIDGET_TYPES = new Set(["INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"]);

/**
 * Brings every node of ours, in the graph and its subgraphs, to the form the page reads; beside
 * them ComfyUI's own nodes, too, whose values hand-written examples also hold by name, and nodes of
 * ours under a former type, unless another pack has one of that type.
 */
export function readSavedGraph(graph, definitions) {
  const parts = [graph, ...(graph.definitions?.subgraphs ?? [])];
  const nodes = parts.flatMap((part) => part.nodes ?? []);
  if (!nodes.some(isOurs)) return;
  for (const node of nodes) {
    if (!definitions[node.type]) node.type = RENAMED_TYPES.get(node.type) ?? node.type;
  }
  for (const node of nodes.filter((node) => node.widgets_values && definitions[node.type])) {
    const definition = definitions[node.type];
    if (isOurs(node) || (isCore(definition) && !Array.isArray(node.widgets_values))) {
      node.widgets_values = readValues(node.type, node.widgets_values, widgetInputs(definition));
    }
  }
}

const isOurs = (node) => node.type?.startsWith("TLBVFI_");
const isCore = ({ python_module: origin }) => origin === "nodes" || origin?.startsWith("comfy_extras");

/** [name, options] of the inputs that have a widget, in the order the page stores their values. */
export function widgetInputs(definition) {
  const inputs = { ...definition.input.required, ...definition.input.optional };
  return Object.entries(inputs)
    .map(([name, [type, options = {}]]) => [name, Array.isArray(type) ? "COMBO" : type, options])
    .filter(([, type, options]) => WIDGET_TYPES.has(options.widgetType ?? type) && !options.forceInput)
    .map(([name, , options]) => [name, options]);
}

function readValues(type, saved, widgets) {
  const names = widgets.map(([name]) => name);
  const values = Array.isArray(saved) ? byName(type, saved, names) : { ...saved };
  if (type === "TLBVFI_ChunkProcessor") moveCrf(values);
  return widgets.map(([name, options]) => values[name] ?? options.default ?? options.options?.[0]);
}

function byName(type, saved, names) {
  const values = [...saved];
  // the first release of this node had no tile_size: its sixth value was the boolean cpu_offload
  if (type === "TLBVFI_Interpolator_V2" && typeof values[5] === "boolean") values.splice(5, 0, 0);
  return Object.fromEntries(names.map((name, index) => [name, values[index]]));
}

/** Older chunk processors had a quality (crf, a number) where there is a bitrate (a text) now. */
function moveCrf(values) {
  if (typeof values.bitrate === "number") values.crf = values.bitrate;
  else if (values.bitrate !== undefined || values.crf === undefined) return;
  values.bitrate = "";
}
