// What our nodes show inside the graph after a run: texts (answers, token counts, tables, settings that were used), and on
// Edit a slider between before and after. Both come back with their workflow's tab, as core's previews do. The loader
// shows its memory plan before it reads the weights.
// Gives the growing picture sockets their names in the language of the editor.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const TEXT = "g2tr_text";
const SLIDER = "g2tr_slider";
const LINE = 16; // pixels; so are all sizes below
const LETTER = 6.7; // of the widest monospaced font
const MARGIN = 6; // of the editor's frame around a widget
const MOST_LINES = 14; // what is longer scrolls
// Lines before the first run, none where the box comes with the first text; at most so many later; and the width of a
// new node: the tables have 65 letters a line.
const TEXTS = {
  G2TRLoadModel: { lines: 0, most: 7, width: 350 },
  G2TRLoadLoRA: { lines: 0, width: 380 },
  G2TRRead: { lines: 2, width: 340 },
  G2TRAsk: { lines: 3, width: 400 },
  G2TRCaptionFolder: { lines: 6, width: 460 },
  G2TRReport: { lines: 9, width: 480 },
  G2TRCompare: { lines: 9, width: 480 },
  G2TREdit: { lines: 0, width: 400 },
  G2TRImagine: { lines: 0, width: 400 },
};
const PROMPT_HEIGHT = 60; // more than core gives to boxes that are written in
const SLIDER_HEIGHT = 200;

const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

function element(kind, style, parent) {
  const made = document.createElement(kind);
  Object.assign(made.style, style);
  parent?.append(made);
  return made;
}

// A widget that is not saved with the workflow. In Nodes 2.0 the element's own least height counts, else `getMinHeight`.
function addBox(node, name, box, height) {
  box.style.minHeight = `${height}px`;
  const widget = node.addDOMWidget(name, name, box, {
    serialize: false,
    margin: MARGIN,
    getMinHeight: () => parseInt(box.style.minHeight) + 2 * MARGIN,
    getValue: () => "",
  });
  widget.serialize = false;
  return widget;
}

function addText(node, lines) {
  const box = element("pre", {
    boxSizing: "border-box",
    margin: "0",
    padding: "4px 8px",
    borderRadius: "6px",
    background: "var(--comfy-input-bg, #222)",
    color: "var(--input-text, #ddd)",
    font: `11px/${LINE}px monospace`,
    whiteSpace: "pre-wrap",
    overflow: "auto",
    userSelect: "text",
  });
  return addBox(node, TEXT, box, heightOf(lines));
}

// A new node has room for a sentence in its box and for the lines of its text; one from a file keeps its size.
function enlarge(node, width) {
  const written = node.widgets.filter(({ type }) => type === "customtext").length;
  node.setSize([Math.max(node.size[0], width), node.computeSize()[1] + written * PROMPT_HEIGHT]);
}

const heightOf = (lines) => 8 + LINE * lines;

function showText(node, text) {
  const { lines, most = MOST_LINES } = TEXTS[node.comfyClass];
  const { element: box } = widgetOf(node, TEXT) ?? addText(node, lines);
  const columns = Math.max(20, Math.floor((node.size[0] - 2 * MARGIN - 24) / LETTER));
  const wide = (line) => [...line].reduce((sum, letter) => sum + (letter > "\u2e80" ? 2 : 1), 0);
  if (most < MOST_LINES) box.style.contain = "size"; // Nodes 2.0 would make room for all of the text
  box.textContent = [text].flat().join("\n");
  const needed = box.textContent.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(wide(line) / columns)), 0);
  box.style.minHeight = `${heightOf(Math.min(most, Math.max(lines, needed)))}px`;
}

// Two pictures, one over the other; the upper one ends where the pointer is. A click shows the next pair of a batch.
function addSlider(node) {
  const frame = element("div", { position: "relative", overflow: "hidden", cursor: "ew-resize" });
  const whole = { position: "absolute", inset: "0", width: "100%", height: "100%", objectFit: "contain" };
  const after = element("img", whole, frame);
  const before = element("img", whole, frame);
  const edge = element("div", { position: "absolute", top: "0", bottom: "0", width: "2px", background: "#fffc" }, frame);
  const count = element("span", { position: "absolute", right: "6px", bottom: "4px", font: "11px monospace" }, frame);
  Object.assign(count.style, { color: "#fff", textShadow: "0 0 3px #000" });
  before.draggable = after.draggable = false;
  let pairs = [];
  let shown = 0;
  const cut = (share) => {
    before.style.clipPath = `inset(0 ${100 - 100 * share}% 0 0)`;
    edge.style.left = `calc(${100 * share}% - 1px)`;
  };
  const show = (index) => {
    shown = index % pairs.length;
    [before.src, after.src] = pairs[shown];
    count.textContent = pairs.length > 1 ? `${shown + 1}/${pairs.length}` : "";
  };
  frame.addEventListener("pointermove", ({ clientX }) => {
    const { left, width } = frame.getBoundingClientRect();
    cut(Math.min(1, Math.max(0, (clientX - left) / width)));
  });
  frame.addEventListener("click", () => show(shown + 1));
  frame.addEventListener("wheel", (event) => window.LiteGraph.vueNodesMode || app.canvas.processMouseWheel(event));
  cut(0.5);
  const widget = addBox(node, SLIDER, frame, SLIDER_HEIGHT);
  widget.showPairs = (given) => {
    pairs = given;
    show(0);
  };
  return widget;
}

function showPairs(node, befores, afters) {
  const url = (picture) => api.apiURL(`/view?${new URLSearchParams(picture)}&rand=${Math.random()}`);
  const widget = widgetOf(node, SLIDER) ?? addSlider(node);
  widget.showPairs(afters.map((after, index) => [url(befores[index] ?? befores[0]), url(after)]));
}

function show(node, output) {
  if (!TEXTS[node.comfyClass] || !output) return;
  const { text, g2tr_before: before, g2tr_after: after } = output;
  if (text) showText(node, text);
  if (before?.length && after?.length) showPairs(node, before, after);
}

// Outputs are kept by "number", inside of a subgraph by "subgraph:number".
function nodeAt(place) {
  const [number, subgraph] = place.split(":").reverse();
  const graph = subgraph ? app.graph.subgraphs?.get(subgraph) : app.graph;
  return graph?.getNodeById(number);
}

// The editor labels a growing socket with its English name, which hides the translated one.
function showTranslatedName(input) {
  if (input.name.startsWith("images.") && input.label === input.name.split(".")[1]) input.label = undefined;
}

app.registerExtension({
  name: "G2TR.Shown",
  setup() {
    api.addEventListener("g2tr_text", ({ detail: { node, text } }) => {
      const shown = nodeAt(node);
      if (shown) show(shown, { text });
    });
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("G2TR")) return;
    const { onInputAdded, onConfigure } = nodeType.prototype;
    nodeType.prototype.onInputAdded = function (input, ...rest) {
      onInputAdded?.call(this, input, ...rest);
      queueMicrotask(() => showTranslatedName(input)); // the label is set after this
    };
    nodeType.prototype.onConfigure = function (...args) {
      onConfigure?.apply(this, args);
      this.inputs?.forEach(showTranslatedName);
    };
  },
  nodeCreated(node) {
    const text = TEXTS[node.comfyClass];
    if (!text) return;
    if (text.lines) addText(node, text.lines);
    enlarge(node, text.width);
    const { onExecuted } = node;
    node.onExecuted = function (output, ...rest) {
      onExecuted?.call(this, output, ...rest);
      show(this, output);
    };
  },
  onNodeOutputsUpdated(outputs) {
    for (const [place, output] of Object.entries(outputs)) {
      const node = nodeAt(place);
      if (node) show(node, output);
    }
  },
});
