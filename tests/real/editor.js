// ComfyUI's editor in a headless Chromium. Reads a job from standard input, prints one JSON answer.
// job: {url, templates: [{name, run, back, details, screenshot}], scratch, nodes: {folder, kinds}}
// Needs playwright-core (found by NODE_PATH) and a Chromium (CHROMIUM, or /usr/bin/chromium).
const { chromium } = require("playwright-core");
const { mkdtempSync, readFileSync, rmSync } = require("fs");
const { tmpdir } = require("os");
const { join } = require("path");

const MARGIN = { left: 70, top: 120, right: 20, bottom: 20 }; // of the editor's own menus
const VIEW = { width: 1920, height: 1080 };
const SWITCHES = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"];
SWITCHES.push("--disable-background-networking", "--disable-component-update");
const EMPTY = { nodes: [], links: [], groups: [], config: {}, extra: {}, version: 0.4 };

async function openEditor(page, url) {
  await page.goto(url, { timeout: 120000, waitUntil: "domcontentloaded" });
  await page.waitForFunction(
    () => window.app?.extensionManager && document.querySelector("#graph-canvas") &&
      window.LiteGraph?.registered_node_types?.G2TRRead,
    null,
    { timeout: 120000 },
  );
  await page.waitForTimeout(2000);
  await page.keyboard.press("Escape");
}

// What a person would notice about the graph that is open.
const describe = () => {
  const nodes = window.app.graph._nodes;
  const canvas = window.app.canvas;
  const shown = (node) => `${node.type} ${node.id}`;
  const title = window.LiteGraph.NODE_TITLE_HEIGHT;
  const box = ({ pos, size }) => [pos[0], pos[1] - title, pos[0] + size[0], pos[1] + size[1]];
  const meet = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
  const overlaps = nodes.flatMap((a, i) =>
    nodes.slice(i + 1).filter((b) => meet(box(a), box(b))).map((b) => `${shown(a)} over ${shown(b)}`));
  const elements = nodes.flatMap((node) => (node.widgets ?? []).filter(({ element }) => element).map((widget) => {
    const own = `[data-node-id="${node.id}"] textarea`; // Nodes 2.0 draw texts that one writes themselves
    const element = widget.element.isConnected ? widget.element : document.querySelector(own) ?? widget.element;
    const rect = element.getBoundingClientRect();
    return {
      node: node.type,
      widget: widget.name,
      text: element.value ?? element.textContent,
      height: rect.height / canvas.ds.scale,
      hidden: element.scrollHeight - element.clientHeight, // pixels of text that one must scroll to
      pictures: [...element.querySelectorAll("img")].filter((image) => image.naturalWidth).length,
    };
  }));
  return {
    zoom: canvas.ds.scale,
    textDrawn: !canvas.low_quality,
    types: nodes.map((node) => node.type),
    missing: nodes.filter((node) => !window.LiteGraph.registered_node_types[node.type]).map(shown),
    tooSmall: nodes.filter((node) => node.computeSize()[0] > node.size[0] + 1 || node.computeSize()[1] > node.size[1] + 1)
      .map(shown),
    overlaps,
    sockets: Object.fromEntries(nodes.map((node) =>
      [node.type, node.inputs?.map((input) => input.label ?? input.localized_name ?? input.name)])),
    dialogs: [...document.querySelectorAll("[role=dialog]")].map((dialog) => dialog.innerText.slice(0, 200)),
    pictures: nodes.filter((node) => node.imgs?.length || window.app.nodeOutputs[node.id]?.images?.length)
      .map((node) => node.type),
    elements,
  };
};

async function run(page) {
  await page.evaluate(() => {
    window.ended = null;
    window.ran = [];
    window.app.api.addEventListener("executing", ({ detail }) => detail && window.ran.push(detail));
    for (const event of ["execution_success", "execution_error", "execution_interrupted"])
      window.app.api.addEventListener(event, () => (window.ended = event), { once: true });
    return window.app.queuePrompt(0, 1);
  });
  await page.waitForFunction(() => window.ended, null, { timeout: 300000 });
  await page.waitForTimeout(1500); // until pictures are loaded
  return page.evaluate(() => window.ended);
}

// Fit these nodes (or all) into the view; returns what they cover on the screen.
async function frame(page, ids) {
  const clip = await page.evaluate(({ ids, margin, view }) => {
    const nodes = window.app.graph._nodes.filter((node) => !ids || ids.includes(node.id));
    const title = window.LiteGraph.NODE_TITLE_HEIGHT;
    const left = Math.min(...nodes.map((node) => node.pos[0])) - 20;
    const top = Math.min(...nodes.map((node) => node.pos[1])) - title - 20;
    const wide = Math.max(...nodes.map((node) => node.pos[0] + node.size[0])) + 20 - left;
    const high = Math.max(...nodes.map((node) => node.pos[1] + node.size[1])) + 20 - top;
    const room = [view.width - margin.left - margin.right, view.height - margin.top - margin.bottom];
    const scale = Math.min(room[0] / wide, room[1] / high, 1);
    const canvas = window.app.canvas;
    const bounds = canvas.canvas.getBoundingClientRect();
    canvas.deselectAll?.();
    canvas.ds.scale = scale;
    canvas.ds.offset = [(margin.left - bounds.left) / scale - left, (margin.top - bounds.top) / scale - top];
    canvas.setDirty(true, true);
    return { x: margin.left, y: margin.top, width: wide * scale, height: high * scale };
  }, { ids, margin: MARGIN, view: VIEW });
  await page.mouse.move(5, VIEW.height - 5);
  await page.waitForTimeout(1500);
  return clip;
}

const open = async (page, graph, name) => {
  await page.evaluate(({ graph, name }) => window.app.loadGraphData(graph, true, true, name), { graph, name });
  await page.waitForTimeout(800);
};

// What ComfyUI says of files that are not there, in the panel behind its notice.
async function notice(page) {
  const details = page.getByText("View details");
  if (!(await details.count())) return [];
  await details.first().click();
  await page.waitForTimeout(800);
  const said = await page.locator("[data-testid=missing-model-importable-rows]").innerText();
  await page.evaluate(() => window.app.extensionManager.setting.set("Comfy.RightSidePanel.IsOpen", false));
  return said.split("\n");
}

async function template(page, url, { name, run: runs, back, details, screenshot }) {
  const answer = await fetch(`${url}/api/workflow_templates/g2tr/${encodeURIComponent(name)}.json`);
  await open(page, await answer.json(), name);
  const prompt = await page.evaluate(async () => (await window.app.graphToPrompt()).output);
  const opened = await page.evaluate(describe);
  const missing = details ? await notice(page) : [];
  const ended = runs ? await run(page) : null;
  const afterwards = runs ? await page.evaluate(describe) : null;
  let returned = null;
  if (back) {
    await open(page, EMPTY, "elsewhere");
    await page.locator(".workflow-tab").filter({ hasText: name.slice(0, 12) }).first().click();
    await page.mouse.move(5, VIEW.height - 5); // a tab shows a picture of itself below the pointer
    await page.waitForTimeout(1500);
    returned = await page.evaluate(describe);
  }
  if (screenshot) {
    await page.waitForTimeout(6000); // until the notice that the job is done has gone
    await page.screenshot({ path: screenshot, type: "jpeg", quality: 98, clip: await frame(page) });
  }
  return { name, opened, prompt, notice: missing, ended, afterwards, returned };
}

// A graph of new nodes at their own sizes: what they show after two runs, and which of them ran the second time.
async function scratch(page) {
  await open(page, EMPTY, "scratch");
  await page.evaluate(async () => {
    const made = {};
    const add = (kind, x, y) => {
      made[kind] = window.LiteGraph.createNode(kind);
      made[kind].pos = [x, y];
      window.app.graph.add(made[kind]);
    };
    const link = (from, type, to) => {
      const output = made[from].outputs.findIndex((slot) => slot.type === type);
      made[from].connect(output, made[to], made[to].inputs.findIndex((slot) => slot.type === type));
    };
    const places = { G2TRLoadModel: [0, 0], G2TRSampleScene: [0, 300], G2TRRead: [420, 0], G2TRAsk: [420, 350] };
    Object.assign(places, { G2TREdit: [900, 0], G2TRReport: [1400, 0], G2TRCompare: [1400, 450], G2TRTokenMap: [0, 750] });
    places.G2TRReduction = [420, 850];
    for (const [kind, [x, y]] of Object.entries(places)) add(kind, x, y);
    for (const reader of ["G2TRRead", "G2TRCompare"]) {
      link("G2TRLoadModel", "G2TR_MODEL", reader);
      link("G2TRSampleScene", "IMAGE", reader);
    }
    await new Promise((resolve) => setTimeout(resolve, 300));
    link("G2TRReduction", "G2TR_REDUCTION", "G2TRRead");
    made.G2TRReduction.widgets.find(({ name }) => name === "keep_ratio").value = 0.1; // of 64 tokens: min_tokens warns
    for (const shown of ["G2TRAsk", "G2TREdit", "G2TRTokenMap"]) link("G2TRRead", "G2TR_READING", shown);
    link("G2TREdit", "G2TR_REPORT", "G2TRReport");
  });
  await frame(page);
  const sizes = await page.evaluate(describe);
  const early = await page.evaluate(() => { // as the server says it before the node has ended
    const loader = window.app.graph.nodes.find(({ type }) => type === "G2TRLoadModel");
    window.app.api.dispatchCustomEvent("g2tr_text", { node: String(loader.id), text: "a plan" });
    return loader.widgets.filter(({ name }) => name === "g2tr_text").map(({ element }) => element.textContent);
  });
  const ended = await run(page);
  const afterwards = await page.evaluate(describe);
  const again = await run(page);
  const ran = await page.evaluate(() => window.ran.map((id) => window.app.graph.getNodeById(id)?.type ?? id));
  const clicked = await oneStepUp(page); // then a run: a click must not lead to what is refused
  const stepped = await run(page);
  const refused = await page.evaluate(async () => {
    const edit = window.app.graph.nodes.find(({ type }) => type === "G2TREdit");
    edit.widgets.find(({ name }) => name === "instruction").value = " ";
    await window.app.queuePrompt(0, 1).catch(() => null);
    const told = Object.entries(window.app.lastNodeErrors ?? {});
    return told.flatMap(([id, { errors }]) =>
      errors.map(({ details, extra_info }) => ({
        node: window.app.graph.getNodeById(id)?.type,
        input: extra_info?.input_name,
        said: details,
      })),
    );
  });
  return { opened: sizes, early, ended, afterwards, again, ran, clicked, stepped, refused };
}

// Every number of Edit as one click on its arrow leaves it, from 0.
async function oneStepUp(page) {
  return page.evaluate(() => {
    const edit = window.app.graph.nodes.find(({ type }) => type === "G2TREdit");
    return edit.widgets.filter(({ name }) => ["steps", "text_scale", "image_scale"].includes(name)).map((widget) => {
      widget.value = Math.min(widget.options.max, widget.value + (widget.options.step2 ?? widget.options.step / 10));
      return [widget.name, widget.value];
    });
  });
}

// A picture of every node of ours by itself, for the help pages.
async function portraits(page, folder, kinds) {
  for (const kind of kinds) {
    await open(page, EMPTY, kind);
    await page.evaluate((kind) => {
      const node = window.LiteGraph.createNode(kind);
      window.app.graph.add(node);
      node.setSize([Math.max(360, node.size[0]), node.size[1]]);
    }, kind);
    await page.screenshot({ path: join(folder, kind, "node.png"), clip: await frame(page) });
  }
}

async function main() {
  const job = JSON.parse(readFileSync(0, "utf8"));
  const profile = mkdtempSync(join(tmpdir(), "g2tr-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    headless: true,
    viewport: VIEW,
    args: SWITCHES,
  });
  try {
    const page = context.pages()[0] ?? (await context.newPage());
    const errors = [];
    page.on("pageerror", (error) => errors.push(error.message));
    await openEditor(page, job.url);
    const templates = [];
    for (const one of job.templates ?? []) templates.push(await template(page, job.url, one));
    const made = job.scratch ? await scratch(page) : null;
    if (job.nodes) await portraits(page, job.nodes.folder, job.nodes.kinds);
    console.log(JSON.stringify({ templates, scratch: made, errors }));
  } finally {
    await context.close();
    rmSync(profile, { recursive: true, force: true });
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
