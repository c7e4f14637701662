// Shows inside a node the text that its last run reported: an answer, token counts, tables of costs.
// Gives the growing picture sockets their names in the language of the editor.
import { app } from "../../../scripts/app.js";

const WIDGET = "g2tr_text";
const LINE = 16; // pixels
const LINES = { G2TRRead: 1, G2TRAsk: 3, G2TRReport: 7, G2TRCompare: 7 }; // at least so much room; what is longer scrolls

function addText(node, lines) {
  const box = document.createElement("pre");
  Object.assign(box.style, {
    boxSizing: "border-box",
    margin: "0",
    padding: "4px 8px",
    borderRadius: "6px",
    background: "var(--comfy-input-bg, #222)",
    color: "var(--input-text, #ddd)",
    font: `11px/${LINE}px monospace`,
    whiteSpace: lines < 7 ? "pre-wrap" : "pre", // a table keeps its lines
    overflow: "auto",
    userSelect: "text",
  });
  const widget = node.addDOMWidget(WIDGET, WIDGET, box, {
    serialize: false,
    getMinHeight: () => 10 + LINE * lines,
    getValue: () => box.textContent,
    setValue: (text) => {
      box.textContent = text ?? "";
    },
  });
  widget.serialize = false;
}

function showText(node, output) {
  const widget = node.widgets?.find(({ name }) => name === WIDGET);
  if (!widget || !output?.text) return;
  widget.element.textContent = [output.text].flat().join("\n");
}

// The editor labels a growing socket with its English name, which hides the translated one.
function showTranslatedName(input) {
  if (input.name.startsWith("images.") && input.label === input.name.split(".")[1]) input.label = undefined;
}

app.registerExtension({
  name: "G2TR.Text",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name.startsWith("G2TR")) {
      const { onInputAdded, onConfigure } = nodeType.prototype;
      nodeType.prototype.onInputAdded = function (input, ...rest) {
        onInputAdded?.call(this, input, ...rest);
        queueMicrotask(() => showTranslatedName(input)); // the label is set after this
      };
      nodeType.prototype.onConfigure = function (...args) {
        onConfigure?.apply(this, args);
        this.inputs?.forEach(showTranslatedName);
      };
    }
    const lines = LINES[nodeData.name];
    if (!lines) return;
    const { onNodeCreated, onExecuted } = nodeType.prototype;
    nodeType.prototype.onNodeCreated = function (...args) {
      const result = onNodeCreated?.apply(this, args);
      addText(this, lines);
      return result;
    };
    nodeType.prototype.onExecuted = function (output, ...rest) {
      onExecuted?.call(this, output, ...rest);
      showText(this, output);
    };
  },
});
