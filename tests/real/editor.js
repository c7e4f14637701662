// ComfyUI's editor in a headless Chromium. Reads a job from standard input, prints one JSON answer.
// job: {url, templates: [{name, run, screenshot}], nodes: {folder} | null, locale}
// Needs playwright-core (found by NODE_PATH) and a Chromium (CHROMIUM, or /usr/bin/chromium).
const { chromium } = require("playwright-core");
const { mkdtempSync, readFileSync, rmSync } = require("fs");
const { tmpdir } = require("os");
const { join } = require("path");

const MARGIN = { left: 70, top: 120, right: 20, bottom: 20 }; // of the editor's own menus
const VIEW = { width: 1900, height: 1300 };
const SWITCHES = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"];
SWITCHES.push("--disable-background-networking", "--disable-component-update");

async function openEditor(page, url) {
  await page.goto(url, { timeout: 120000, waitUntil: "domcontentloaded" });
  await page.waitForFunction(
    () => window.app?.extensionManager && document.querySelector("#graph-canvas") &&
      window.LiteGraph?.registered_node_types?.G2TRRead,
    null,
    { timeout: 120000 },
  );
  await page.waitForTimeout(2500);
  await page.keyboard.press("Escape");
}

// What a person would notice about the graph that is open.
const describe = () => {
  const nodes = window.app.graph._nodes;
  const shown = (node) => `${node.type} ${node.id}`;
  const title = window.LiteGraph.NODE_TITLE_HEIGHT;
  const box = ({ pos, size }) => [pos[0], pos[1] - title, pos[0] + size[0], pos[1] + size[1]];
  const meet = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
  const overlaps = nodes.flatMap((a, i) =>
    nodes.slice(i + 1).filter((b) => meet(box(a), box(b))).map((b) => `${shown(a)} over ${shown(b)}`));
  return {
    types: nodes.map((node) => node.type),
    missing: nodes.filter((node) => !window.LiteGraph.registered_node_types[node.type]).map(shown),
    tooSmall: nodes.filter((node) => node.computeSize()[0] > node.size[0] + 1 || node.computeSize()[1] > node.size[1] + 1)
      .map(shown),
    overlaps,
    dialogs: [...document.querySelectorAll("[role=dialog]")].map((dialog) => dialog.innerText.slice(0, 200)),
    pictures: Object.fromEntries(nodes.filter((node) => node.imgs?.length).map((node) => [node.title, node.imgs.length])),
    texts: nodes.flatMap((node) => (node.widgets ?? []).filter(({ name }) => name === "g2tr_text"))
      .map((widget) => widget.element.textContent),
  };
};

async function run(page) {
  await page.evaluate(() => {
    window.ended = null;
    for (const event of ["execution_success", "execution_error", "execution_interrupted"])
      window.app.api.addEventListener(event, () => (window.ended = event), { once: true });
    return window.app.queuePrompt(0, 1);
  });
  await page.waitForFunction(() => window.ended, null, { timeout: 300000 });
  await page.waitForTimeout(7000); // until pictures are loaded and the notice that the job is done has gone
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

async function template(page, url, { name, run: runs, screenshot }) {
  await page.evaluate(async ({ url, name }) => {
    const answer = await fetch(`${url}/api/workflow_templates/g2tr/${encodeURIComponent(name)}.json`);
    await window.app.loadGraphData(await answer.json(), true, true, name);
  }, { url, name });
  await page.waitForTimeout(1500);
  const prompt = await page.evaluate(async () => (await window.app.graphToPrompt()).output);
  const opened = await page.evaluate(describe);
  const ended = runs ? await run(page) : null;
  const seen = runs ? await page.evaluate(describe) : opened;
  if (screenshot) await page.screenshot({ path: screenshot, type: "jpeg", quality: 98, clip: await frame(page) });
  return { name, ...opened, pictures: seen.pictures, texts: seen.texts, afterwards: seen.overlaps, prompt, ended };
}

// A picture of every node of ours by itself, for the help pages.
async function portraits(page, folder, kinds) {
  for (const kind of kinds) {
    await page.evaluate(async (kind) => {
      await window.app.loadGraphData({ nodes: [], links: [], groups: [], config: {}, extra: {}, version: 0.4 });
      const node = window.LiteGraph.createNode(kind);
      window.app.graph.add(node);
      node.setSize([Math.max(360, node.computeSize()[0]), node.computeSize()[1] + (node.widgets?.some((w) => w.options?.multiline || w.type === "customtext") ? 40 : 0)]);
    }, kind);
    await page.waitForTimeout(600);
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
    if (job.nodes) await portraits(page, job.nodes.folder, job.nodes.kinds);
    console.log(JSON.stringify({ templates, errors }));
  } finally {
    await context.close();
    rmSync(profile, { recursive: true, force: true });
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
