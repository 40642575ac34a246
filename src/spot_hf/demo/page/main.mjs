/** The page: what is chosen, what the model is asked, what is shown. */

import { fromHash, toHash } from "./address.mjs";
import { costOf, likeliest, lookUntilSure, looksOf, softmax } from "./answers.mjs";
import { Engine, latestOnly } from "./engine.mjs";
import { PLACEMENTS } from "./placements.mjs";
import { frameOf, toModelFrame } from "./preprocess.mjs";
import { Stage } from "./stage.mjs";

const TOP = 5;
const COUNTS = [9, 25, 49];
const OFFERED = ["isotropic", "foveated_edge", "foveated_center", "center", "uniform"];
const MOVED = "moved"; // of tokens that were moved by hand, or found by a recorded search
const SETTLED_AFTER = 300; // milliseconds without a further change: then it is spoken, and in the address
const element = (id) => document.getElementById(id);

const [site, config, preprocessor] = await Promise.all(["site.json", "config.json", "preprocessor_config.json"].map(fetchJson));
const labels = config.id2label ?? {};
const looks = looksOf(config);

let engine = new Engine("wasm");
let frame = null; // of the present image in the model
let full = null; // of the full grid: {probabilities, milliseconds}
let numCells = 0;
/** What the address says. `image`: number of an example, null for a file of one's own; `tokens`: where they were moved. */
const state = { image: "0", placement: "isotropic", numTokens: 25, windows: "1", step: null, tokens: null };

const stage = new Stage(
  { picture: element("picture"), reading: element("reading"), overlay: element("overlay") },
  config.patch_size,
  { change: (tokens) => moved(tokens), select: () => showSelected() },
);

// ------------------------------------------------------------------------------------------------------------ the model

const fail = (error) => {
  element("message").textContent = `${error.message ?? error}`;
};

async function startEngine(device) {
  const started = device === "wasm" ? engine : new Engine(device);
  // Half of what a browser calls cores are hyperthreads, and one has the page to draw.
  const threads = crossOriginIsolated ? Math.max(1, Math.min(4, Math.floor(navigator.hardwareConcurrency / 2))) : 1;
  await started.load({ config, preprocessor, files: site.files, threads });
  started.onChange = () => {
    document.body.dataset.working = String(started.isBusy);
  };
  started.label = device === "wasm" ? `WebAssembly, ${threads} thread${threads > 1 ? "s" : ""}` : "WebGPU";
  return started;
}

function showEngine() {
  element("device").textContent = `Computed in this browser by ONNX Runtime (${engine.label}).`;
  document.body.dataset.device = engine.device;
}

/** Goes over to WebGPU where it gives the same answer in less time; by `?device=webgpu` also where it takes more, by `?device=wasm`
 * never. */
async function tryWebGpu() {
  const wanted = new URLSearchParams(location.search).get("device");
  if (wanted === "wasm" || !(await navigator.gpu?.requestAdapter())) return;
  const other = await startEngine("webgpu");
  const { blob } = shown;
  await other.setImage({ bitmap: await createImageBitmap(blob, AS_STORED) });
  const given = inputsOf(stage.tokens);
  const times = [[], []];
  let [own, theirs] = [null, null];
  for (let i = 0; i < 3; i++) {
    own = await engine.run(given);
    theirs = await other.run(given);
    times[0].push(own.milliseconds);
    times[1].push(theirs.milliseconds);
  }
  const [before, after] = [softmax(own.logits), softmax(theirs.logits)];
  const isSame = before.every((one, i) => Math.abs(one - after[i]) < 0.01);
  const isFaster = wanted === "webgpu" || Math.min(...times[1]) < Math.min(...times[0]);
  if (!isSame || !isFaster || shown.blob !== blob) {
    other.close();
    return;
  }
  engine.close();
  engine = other;
  showEngine();
  await answer();
}

function inputsOf(tokens) {
  return {
    coordinates: Float32Array.from(tokens.flatMap(({ x, y }) => [x, y])),
    windowScales: Float32Array.from(tokens, ({ scale }) => scale),
  };
}

function tokensOf({ coordinates, windowScales }) {
  return Array.from(windowScales, (scale, i) => ({ x: coordinates[2 * i], y: coordinates[2 * i + 1], scale }));
}

/** Classifies the image by the tokens that are shown, and shows the answer. */
const answer = latestOnly(async () => {
  try {
    showAnswer(await engine.run(inputsOf(stage.tokens)));
  } catch (error) {
    fail(error);
  }
});

/** Places tokens as the state says, and classifies. */
const place = latestOnly(async () => {
  try {
    const { placement, numTokens, windows } = state;
    const placed = await engine.place({ placement, numTokens, windows: windows === "cover" ? windows : Number(windows) });
    stage.setTokens(tokensOf(placed));
    showControls();
    await answer();
  } catch (error) {
    fail(error);
  }
});

// ------------------------------------------------------------------------------------------------------------ the image

const AS_STORED = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
/** The present image: its bytes, and the number of its example. */
let shown = { blob: null };

async function chooseExample(index) {
  const response = await fetch(site.examples[index].file);
  if (!response.ok) throw new Error(`${site.examples[index].file}: ${response.status} ${response.statusText}`);
  await showImage(await response.blob(), String(index));
}

async function showImage(blob, index) {
  let bitmaps;
  try {
    bitmaps = await Promise.all([createImageBitmap(blob, AS_STORED), createImageBitmap(blob, AS_STORED)]);
  } catch {
    fail(`${blob.name ?? "the file"} is no image that this browser can read`);
    return;
  }
  element("message").textContent = "";
  element("answers").setAttribute("aria-busy", "true");
  [shown, full, state.image] = [{ blob }, null, index];
  frame = frameOf(bitmaps[0].width, bitmaps[0].height, preprocessor);
  stage.setImage(bitmaps[0], frame);
  await loading;
  await engine.setImage({ bitmap: bitmaps[1] });
  numCells = Math.floor(frame.width / config.patch_size) * Math.floor(frame.height / config.patch_size);
  if (recording() === null) state.step = null;
  if (state.step !== null) await showStep();
  else if (state.tokens) {
    stage.setTokens(state.tokens);
    showControls();
    await answer();
  } else {
    state.numTokens = Math.min(state.numTokens, numCells);
    await place();
  }
  await compare();
}

/** What the full grid says of the image. Its time is that of a second run, as the first one is slower; likewise the tokens'. */
async function compare() {
  const placed = await engine.place({ placement: "grid", numTokens: numCells, windows: 1 });
  await engine.run(placed);
  const { logits, milliseconds } = await engine.run(placed);
  full = { probabilities: softmax(logits), milliseconds };
  await answer();
}

/** The recorded search of the present example, or null. */
function recording() {
  return (state.image !== null && site.examples[state.image].recording) || null;
}

async function showStep() {
  const { steps, windowScales } = recording();
  state.step = Math.min(state.step, steps.length - 1);
  state.tokens = steps[state.step].map(([x, y], i) => {
    const [across, down] = toModelFrame(frame, x, y);
    return { x: across, y: down, scale: windowScales?.[i] ?? 1 };
  });
  state.placement = MOVED;
  stage.setTokens(state.tokens, stage.selected < 0 ? 0 : stage.selected);
  showControls();
  await answer();
}

function moved(tokens) {
  [state.tokens, state.placement, state.step] = [tokens, MOVED, null];
  showControls();
  answer();
}

/** By a prior again. */
function placeAnew(changes) {
  Object.assign(state, { tokens: null, step: null }, changes);
  if (state.placement === MOVED) state.placement = defaults.placement;
  place();
}

// ------------------------------------------------------------------------------------------------------------ what shows

let settling = null;

function showAnswer(found) {
  const probabilities = softmax(found.logits);
  const numTokens = stage.tokens.length;
  const rows = likeliest(probabilities, TOP);
  if (full) {
    const [first] = likeliest(full.probabilities, 1);
    if (!rows.includes(first)) rows.splice(-1, 1, first);
  }
  element("classes").replaceChildren(...rows.flatMap((index) => classRows(index, probabilities[index], full?.probabilities[index])));
  element("tokens-head").textContent = counted(numTokens);
  element("grid-head").textContent = `full grid, ${numCells}`;
  const isLearned = state.placement === "learned";
  const share = (costOf(site.cost, numTokens) + (isLearned ? site.placer_cost : 0)) / costOf(site.cost, numCells);
  showFigure("cost", `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`, `of the full grid's`);
  showFigure("time", inMilliseconds(found.milliseconds), full ? `the full grid: ${inMilliseconds(full.milliseconds)}` : "");
  const [best] = likeliest(probabilities, 1);
  if (full) {
    const [gridBest] = likeliest(full.probabilities, 1);
    showFigure("agreement", best === gridBest ? "same class" : "another class", `the full grid's: ${nameOf(gridBest)}`);
  }
  if (full) element("answers").setAttribute("aria-busy", "false");
  document.body.dataset.answered = String(Number(document.body.dataset.answered ?? 0) + 1);
  document.body.dataset.milliseconds = found.milliseconds.toFixed(1);
  document.body.dataset.settled = "false";
  clearTimeout(settling);
  settling = setTimeout(() => {
    history.replaceState(null, "", toHash(state)); // which browsers do not like often
    document.body.dataset.settled = "true";
    element("spoken").textContent =
      `${counted(numTokens)}: ${nameOf(best)}, ${percent(probabilities[best])}. ` +
      `${element("agreement").textContent}.`;
  }, SETTLED_AFTER);
}

/** A figure, and in small type what it is to be held against. */
function showFigure(id, figure, beside) {
  const small = document.createElement("small");
  small.textContent = beside;
  element(id).replaceChildren(`${figure} `, small);
}

function classRows(index, byTokens, byGrid) {
  const row = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = nameOf(index);
  row.append(head);
  row.dataset.label = index;
  for (const value of [byTokens, byGrid]) {
    const cell = document.createElement("td");
    cell.textContent = value === undefined ? "…" : percent(value);
    if (value !== undefined) cell.dataset.probability = value;
    row.append(cell);
  }
  const bars = document.createElement("tr");
  bars.className = "bars";
  bars.setAttribute("aria-hidden", "true");
  const cell = document.createElement("td");
  cell.colSpan = 3;
  for (const [kind, value] of [["tokens", byTokens], ["grid", byGrid ?? 0]]) {
    const bar = document.createElement("span");
    bar.className = `bar ${kind}`;
    bar.style.width = `${100 * value}%`;
    cell.append(bar);
  }
  bars.append(cell);
  return [row, bars];
}

const nameOf = (index) => (labels[index] ?? `class ${index}`).split(",")[0];
const percent = (value) => `${(100 * value).toFixed(1)} %`;
const counted = (number) => `${number} token${number === 1 ? "" : "s"}`;
const inMilliseconds = (value) => `${value.toFixed(value < 10 ? 1 : 0)} ms`;

/** Sets the controls by the state. */
function showControls() {
  const numTokens = stage.tokens.length;
  element("count").max = numCells;
  element("count").value = numTokens;
  element("count-shown").textContent = numTokens;
  const placement = element("placement");
  placement.querySelector(`[value=${MOVED}]`).hidden = state.placement !== MOVED;
  placement.querySelector(`[value=${MOVED}]`).textContent = state.step === null ? "Moved by hand" : "Found by a search";
  placement.value = state.placement;
  const isScaled = state.placement === MOVED || state.placement === "learned" || PLACEMENTS[state.placement].scaled;
  element("windows").disabled = isScaled;
  element("windows").querySelector("[value='']").hidden = !isScaled;
  element("windows").value = isScaled ? "" : state.windows;
  element("remove").disabled = numTokens < 2;
  for (const node of document.querySelectorAll(".cells")) node.textContent = numCells;
  for (const node of element("examples").children) node.setAttribute("aria-pressed", String(node.dataset.index === state.image));
  const found = recording();
  element("search").hidden = found === null;
  if (found) {
    element("step").max = found.steps.length - 1;
    element("step").value = state.step ?? 0;
    const loss = state.step !== null && found.losses ? `, loss ${found.losses[state.step].toFixed(3)}` : "";
    element("step-shown").textContent = state.step === null ? "not shown" : `step ${state.step} of ${found.steps.length - 1}${loss}`;
  }
  showSelected();
}

function showSelected() {
  const token = stage.tokens[stage.selected];
  if (!token) return;
  element("size").value = token.scale;
  element("size-shown").textContent = `${token.scale.toFixed(2)} patches`;
}

// --------------------------------------------------------------------------------------------------------- the controls

const defaults = {
  placement: "isotropic",
  numTokens: [preprocessor.num_tokens, config.num_tokens].find((one) => Number.isInteger(one)) ?? 25,
  windows: String(preprocessor.window_scales ?? "cover"),
};

function buildControls() {
  if (site.files.placer) defaults.placement = "learned";
  const wanted = preprocessor.placement ?? config.placement;
  const names = [...(site.files.placer ? ["learned"] : []), ...OFFERED];
  if (names.includes(wanted)) defaults.placement = wanted;
  const options = names.map((name) => new Option(name === "learned" ? "Where the model itself looks" : PLACEMENTS[name].label, name));
  element("placement").replaceChildren(...options, new Option("Moved by hand", MOVED));
  const sizes = [["cover", "Covering the image"], ["1", "One patch, with gaps"]];
  if (!sizes.some(([value]) => value === defaults.windows)) sizes.push([defaults.windows, `${defaults.windows} patches wide`]);
  const ownSize = new Option("Each of its own size", "");
  element("windows").replaceChildren(...sizes.map(([value, label]) => new Option(label, value)), ownSize);
  element("examples").replaceChildren(...site.examples.map(exampleButton));
  element("counts").replaceChildren(...COUNTS.map(countButton), countButton(Infinity));
  element("sure-field").hidden = looks === null;
  for (const node of document.querySelectorAll(".samples")) node.textContent = `${config.patch_size} × ${config.patch_size}`;
  element("model").textContent = site.title;
  if (site.url) element("model").href = site.url;
  document.title = `${site.title}: few tokens, well placed`;
}

function exampleButton({ file, name }, index) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.index = index;
  const picture = document.createElement("img");
  [picture.src, picture.alt] = [file, name];
  button.append(picture);
  button.addEventListener("click", () => {
    const isRecorded = Boolean(site.examples[index].recording);
    Object.assign(state, { tokens: null, step: isRecorded ? 0 : null });
    if (state.placement === MOVED) state.placement = defaults.placement;
    chooseExample(index).catch(fail);
  });
  return button;
}

function countButton(number) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = number === Infinity ? "all" : number;
  button.addEventListener("click", () => placeAnew({ numTokens: Math.min(number, numCells) }));
  return button;
}

function listen() {
  element("count").addEventListener("input", ({ target }) => placeAnew({ numTokens: Number(target.value) }));
  element("placement").addEventListener("change", ({ target }) => placeAnew({ placement: target.value, numTokens: stage.tokens.length }));
  element("windows").addEventListener("change", ({ target }) => placeAnew({ windows: target.value }));
  element("size").addEventListener("input", ({ target }) => stage.resize(Number(target.value)));
  element("add").addEventListener("click", () => stage.add());
  element("remove").addEventListener("click", () => stage.remove());
  element("sure").addEventListener("click", () => lookAll().catch(fail));
  element("step").addEventListener("input", ({ target }) => {
    state.step = Number(target.value);
    showStep().catch(fail);
  });
  element("play").addEventListener("click", () => play().catch(fail));
  element("file").addEventListener("change", ({ target }) => {
    if (target.files[0]) takeFile(target.files[0]);
    target.value = "";
  });
  element("share").addEventListener("click", share);
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    const file = event.dataTransfer.files[0];
    if (file) takeFile(file);
  });
  window.addEventListener("hashchange", () => restore().catch(fail));
}

function takeFile(file) {
  Object.assign(state, { tokens: null, step: null });
  if (state.placement === MOVED) state.placement = defaults.placement;
  showImage(file, null).catch(fail);
}

async function lookAll() {
  const placement = state.placement === MOVED ? defaults.placement : state.placement;
  let tokens = null;
  const found = await lookUntilSure(looks, async (numTokens) => {
    const { windows } = state;
    tokens = await engine.place({ placement, numTokens, windows: windows === "cover" ? windows : Number(windows) });
    return engine.run(tokens);
  });
  const said = found.looks.map(({ numTokens, confidence }) => `${counted(numTokens)}: ${percent(confidence)} sure`);
  element("looks").textContent = `${said.join(", then ")}.`;
  placeAnew({ placement, numTokens: found.looks.at(-1).numTokens });
}

async function play() {
  for (let step = 0; step < recording().steps.length; step++) {
    state.step = step;
    await showStep();
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}

async function share() {
  const said = state.image === null ? "Copied: your photograph is not part of the link." : "Copied.";
  try {
    await navigator.clipboard.writeText(location.href);
    element("shared").textContent = said;
  } catch {
    element("shared").textContent = "Copy this page's address: it holds all of it.";
  }
}

/** As the address says, or else the model's own defaults. */
async function restore() {
  const said = fromHash(location.hash);
  const known = [...element("placement").options].map((one) => one.value).filter((one) => one !== MOVED);
  state.placement = known.includes(said.placement) ? said.placement : defaults.placement;
  state.windows = ["1", "cover", defaults.windows].includes(said.windows) ? said.windows : defaults.windows;
  state.numTokens = Math.max(1, said.numTokens ?? defaults.numTokens);
  state.tokens = said.tokens ?? null;
  if (state.tokens) state.placement = MOVED;
  const image = site.examples[said.image] ? said.image : "0";
  state.step = site.examples[image].recording ? (said.step ?? null) : null;
  await chooseExample(image);
}

async function fetchJson(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  return response.json();
}

buildControls();
listen();
const loading = startEngine("wasm");
try {
  await restore();
  showEngine();
  await tryWebGpu();
} catch (error) {
  fail(error);
}
