/** The page: what is chosen, what the model is asked, what is shown. */

import { fromHash, toHash } from "./address.mjs";
import { costOf, likeliest, lookUntilSure, looksOf, shortNames, softmax } from "./answers.mjs";
import { Engine, latestOnly } from "./engine.mjs";
import { PLACEMENTS } from "./placements.mjs";
import { frameOf, toModelFrame } from "./preprocess.mjs";
import { Stage } from "./stage.mjs";

const TOP = 5;
const COUNTS = [9, 25, 49];
const OFFERED = ["isotropic", "foveated_edge", "foveated_center", "center", "uniform"];
const MOVED = "moved"; // of tokens that were moved by hand, or found by a recorded search
const SETTLED_AFTER = 300; // milliseconds without a further change: then it is spoken, and in the address
const STEP_TAKES = 500; // milliseconds, of a recorded search
const AS_STORED = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
const element = (id) => document.getElementById(id);

let site, config, preprocessor, names, looks, defaults, stage;
let engine = new Engine("wasm");
let loading; // of the engine
let asked = 0; // how many images were asked for
let shown = { number: 0, blob: null }; // the present image: which of these, and its bytes
let frame = null; // of it in the model
let full = null; // what the full grid says of it: {probabilities, milliseconds}
let numCells = 0;
let placing = 0; // milliseconds that the model's own placement took
let playing = 0; // how often a search was played, or stopped
/** What the address says. `image`: number of an example, null for a file of one's own; `tokens`: where they were moved. */
const state = { image: "0", placement: "isotropic", numTokens: 25, windows: "cover", step: null, tokens: null };

// ------------------------------------------------------------------------------------------------------------ the model

function fail(error) {
  element("message").textContent = `${error.message ?? error}`;
}

async function startEngine(started) {
  // Half of what a browser calls cores are hyperthreads, and one has the page to draw.
  const threads = crossOriginIsolated ? Math.max(1, Math.min(4, Math.floor(navigator.hardwareConcurrency / 2))) : 1;
  started.onChange = () => {
    document.body.dataset.working = String(started.isBusy);
  };
  await started.load({ config, preprocessor, files: site.files, threads });
  started.label = started.device === "wasm" ? `WebAssembly, ${threads} thread${threads > 1 ? "s" : ""}` : "WebGPU";
  return started;
}

function showEngine() {
  element("device").textContent = `Computed in this browser by ONNX Runtime (${engine.label}).`;
  document.body.dataset.device = engine.device;
}

/** Goes over to WebGPU where it gives the same answer in less time; by `?device=webgpu` also where it takes more, by
 * `?device=wasm` never. */
async function tryWebGpu() {
  const wanted = new URLSearchParams(location.search).get("device");
  if (wanted === "wasm" || !(await navigator.gpu?.requestAdapter())) return;
  const other = new Engine("webgpu");
  try {
    await startEngine(other);
    const { number, blob } = shown;
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
    if (!isSame || !isFaster || shown.number !== number || asked !== number) return other.close();
    const old = engine;
    engine = other;
    showEngine();
    while (old.isBusy) await new Promise((resolve) => setTimeout(resolve, 20)); // it answers what it was asked
    old.close();
    await answer();
  } catch (error) {
    other.close();
    if (wanted === "webgpu") fail(error);
  }
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

const windowsOf = () => (state.windows === "cover" ? "cover" : Number(state.windows));

/** Classifies the image by the tokens that are shown, and shows the answer. */
const answer = latestOnly(async () => {
  const { number } = shown;
  const { tokens } = stage;
  try {
    const found = await engine.run(inputsOf(tokens));
    if (number === shown.number) showAnswer({ ...found, numTokens: [tokens.length] });
  } catch (error) {
    fail(error);
  }
});

/** Places tokens as the state says, and classifies. */
const place = latestOnly(async () => {
  const { number } = shown;
  const { placement, numTokens } = state;
  try {
    const placed = await engine.place({ placement, numTokens, windows: windowsOf() });
    if (number !== shown.number || state.tokens) return; // meanwhile, another image, or moved by hand
    placing = placed.milliseconds;
    stage.setTokens(tokensOf(placed));
    showControls();
    await answer();
  } catch (error) {
    fail(error);
  }
});

// ------------------------------------------------------------------------------------------------------------ the image

/** Of an example. `wanted`: what of the state is another with it. */
function chooseExample(index, wanted) {
  const { file } = site.examples[index];
  const read = async () => {
    const response = await fetch(file);
    if (!response.ok) throw new Error(`${file}: ${response.status} ${response.statusText}`);
    return response.blob();
  };
  return showImage(read, file, { image: String(index), ...wanted });
}

/** Of a person's own. */
function takeFile(file) {
  return showImage(async () => file, file.name, { image: null, step: null, tokens: null, placement: placedBy() });
}

/** The placement, or the default one of tokens that have none. */
const placedBy = () => (state.placement === MOVED ? defaults.placement : state.placement);

/** Reads an image, and when it is known to be one that the model can see, shows it and asks the model. */
async function showImage(read, name, wanted) {
  const own = ++asked;
  stopPlaying();
  element("answers").setAttribute("aria-busy", "true");
  try {
    const blob = await read();
    let bitmaps;
    try {
      bitmaps = await Promise.all([createImageBitmap(blob, AS_STORED), createImageBitmap(blob, AS_STORED)]);
    } catch {
      throw new Error(`${name} is no image that this browser can read`);
    }
    const seen = frameOf(bitmaps[0].width, bitmaps[0].height, preprocessor);
    if (own !== asked) return;
    if (frame === null) stage.setImage(bitmaps[0], seen); // while the model is loading
    const bitmap = frame === null ? null : bitmaps[0];
    await loading;
    if (own !== asked) return;
    await engine.setImage({ bitmap: bitmaps[1] });
    [shown, frame, full] = [{ number: own, blob }, seen, null]; // what the worker has: also where another was asked for since
    if (bitmap) stage.setImage(bitmap, seen);
    Object.assign(state, wanted);
  } catch (error) {
    if (own !== asked) return;
    if (frame !== null) element("answers").setAttribute("aria-busy", String(full === null));
    fail(error);
    return;
  }
  numCells = Math.floor(frame.width / config.patch_size) * Math.floor(frame.height / config.patch_size);
  for (const part of document.querySelectorAll("[inert]")) part.inert = false;
  clearRemarks();
  if (recording() === null) state.step = null;
  if (state.step !== null) {
    await showStep();
  } else if (state.tokens) {
    stage.setTokens(state.tokens);
    showControls();
    await answer();
  } else {
    state.numTokens = Math.min(state.numTokens, numCells);
    await place();
  }
  await compare(own);
}

/** What the full grid says. Its time is that of a second run, as the first one is slower; likewise the tokens'. */
async function compare(number) {
  const placed = await engine.place({ placement: "grid", numTokens: numCells, windows: 1 });
  await engine.run(placed);
  const { logits, milliseconds } = await engine.run(placed);
  if (number !== shown.number) return;
  full = { probabilities: softmax(logits), milliseconds };
  await answer();
}

/** The recorded search of the present example, or null. */
function recording() {
  return (state.image !== null && site.examples[state.image].recording) || null;
}

/** Shows the tokens of a step of it. One that the model's crop removes is at the edge. */
async function showStep() {
  const { steps, windowScales } = recording();
  state.step = Math.min(state.step, steps.length - 1);
  state.tokens = steps[state.step].map(([x, y], i) => {
    const [across, down] = toModelFrame(frame, x, y).map((one) => Math.min(Math.max(one, 0), 1));
    return { x: across, y: down, scale: windowScales?.[i] ?? 1 };
  });
  state.placement = MOVED;
  stage.setTokens(state.tokens, Math.max(stage.selected, 0));
  showControls();
  await answer();
}

async function play() {
  if (element("play").textContent === "Stop") return stopPlaying();
  const own = ++playing;
  element("play").textContent = "Stop";
  for (let step = 0; step < recording().steps.length; step++) {
    state.step = step;
    await showStep();
    await new Promise((resolve) => setTimeout(resolve, STEP_TAKES));
    if (own !== playing) return;
  }
  stopPlaying();
}

function stopPlaying() {
  playing++;
  element("play").textContent = "Play";
}

/** By hand. */
function moved(tokens) {
  stopPlaying();
  clearRemarks();
  Object.assign(state, { tokens, placement: MOVED, step: null });
  showControls();
  answer();
}

/** By a prior again. */
function placeAnew(changes) {
  stopPlaying();
  clearRemarks();
  Object.assign(state, { tokens: null, step: null, placement: placedBy() }, changes);
  state.numTokens = Math.max(1, Math.min(state.numTokens, numCells));
  place();
}

/** Several looks, as the model's config has them. */
async function lookAll() {
  stopPlaying();
  clearRemarks();
  Object.assign(state, { tokens: null, step: null, placement: placedBy() });
  const { number } = shown;
  let tokens = null;
  placing = 0;
  const found = await lookUntilSure(looks, async (numTokens) => {
    const placed = await engine.place({ placement: state.placement, numTokens, windows: windowsOf() });
    placing += placed.milliseconds;
    tokens = tokensOf(placed);
    return engine.run(inputsOf(tokens));
  });
  if (number !== shown.number || state.tokens) return;
  state.numTokens = tokens.length;
  stage.setTokens(tokens);
  showControls();
  showAnswer({ ...found, numTokens: found.looks.map((look) => look.numTokens) });
  const said = found.looks.map(({ numTokens, confidence }) => `${counted(numTokens)}: ${percent(confidence)} sure`);
  element("looks").textContent = `${said.join(", then ")}.`;
}

function clearRemarks() {
  for (const id of ["message", "looks", "shared"]) element(id).textContent = "";
}

// ------------------------------------------------------------------------------------------------------------ what shows

let settling = null;

/** Of `{logits, milliseconds}`, or with `probabilities` of its own; `numTokens` of each look that was taken. */
function showAnswer({ logits, milliseconds, numTokens, probabilities = softmax(logits) }) {
  const rows = likeliest(probabilities, TOP);
  const [best] = rows;
  const gridBest = full ? likeliest(full.probabilities, 1)[0] : null;
  if (full && !rows.includes(gridBest)) rows.splice(-1, 1, gridBest);
  element("classes").replaceChildren(
    ...rows.flatMap((index) => classRows(index, probabilities[index], full?.probabilities[index])),
  );
  const shownTokens = counted(numTokens.at(-1));
  element("tokens-head").textContent = shownTokens;
  element("grid-head").textContent = `full grid, ${numCells}`;
  const isLearned = state.placement === "learned";
  const ownCost = numTokens.reduce((sum, one) => sum + costOf(site.cost, one) + (isLearned ? site.placer_cost : 0), 0);
  const share = ownCost / costOf(site.cost, numCells);
  showFigure("cost", `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`, "of the full grid's");
  const ownTime = inMilliseconds(milliseconds + (isLearned ? placing : 0));
  showFigure("time", ownTime, full ? `the full grid: ${inMilliseconds(full.milliseconds)}` : "");
  if (full) {
    showFigure("agreement", best === gridBest ? "same class" : "another class", `the full grid's: ${names[gridBest].short}`);
    element("answers").setAttribute("aria-busy", "false");
  } else {
    showFigure("agreement", "…", "");
  }
  document.body.dataset.answered = String(Number(document.body.dataset.answered ?? 0) + 1);
  document.body.dataset.settled = "false";
  clearTimeout(settling);
  settling = setTimeout(() => {
    history.replaceState(null, "", toHash(state)); // which browsers do not like often
    document.body.dataset.settled = "true";
    if (gridBest === null) return;
    const grid = best === gridBest ? "so does the full grid" : `the full grid says ${names[gridBest].short}`;
    element("spoken").textContent = `${shownTokens} say ${names[best].short}, ${percent(probabilities[best])}; ${grid}.`;
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
  [head.textContent, head.title] = [names[index].short, names[index].whole];
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

const percent = (value) => `${(100 * value).toFixed(1)} %`;
const counted = (number) => `${number} token${number === 1 ? "" : "s"}`;
const inMilliseconds = (value) => `${value.toFixed(value < 10 ? 1 : 0)} ms`;

/** Sets the controls by the state. */
function showControls() {
  const numTokens = stage.tokens.length;
  element("count").max = Math.max(numCells, numTokens);
  element("count").value = numTokens;
  element("count-shown").textContent = numTokens;
  for (const node of element("counts").children) node.hidden = Number(node.dataset.count) >= numCells;
  const placement = element("placement");
  placement.querySelector(`[value=${MOVED}]`).hidden = state.placement !== MOVED;
  placement.querySelector(`[value=${MOVED}]`).textContent = state.step === null ? "Moved by hand" : "Found by a search";
  placement.value = state.placement;
  const isScaled = state.placement === MOVED || state.placement === "learned" || PLACEMENTS[state.placement].scaled;
  element("windows").disabled = isScaled;
  element("windows").querySelector("[value='']").hidden = !isScaled;
  element("windows").value = isScaled ? "" : state.windows;
  if (numTokens < 2 && document.activeElement === element("remove")) element("add").focus();
  element("remove").disabled = numTokens < 2;
  for (const node of document.querySelectorAll(".cells")) node.textContent = numCells;
  for (const node of element("examples").children) node.setAttribute("aria-pressed", String(node.dataset.index === state.image));
  const found = recording();
  element("search").hidden = found === null;
  if (found) {
    const last = found.steps.length - 1;
    element("step").max = last;
    element("step").value = state.step ?? 0;
    const loss = found.losses?.[state.step];
    const said = loss == null ? "" : `, loss ${loss.toFixed(3)} (less is better)`;
    element("step-shown").textContent = state.step === null ? "not shown" : `step ${state.step} of ${last}${said}`;
  }
  showSelected();
}

function showSelected() {
  const token = stage.tokens[stage.selected];
  if (!token) return;
  const said = `${token.scale.toFixed(2)} patches`;
  element("size").max = stage.largest;
  element("size").value = token.scale;
  element("size").setAttribute("aria-valuetext", said);
  element("size-shown").textContent = said;
}

// --------------------------------------------------------------------------------------------------------- the controls

function buildControls() {
  const wanted = preprocessor.placement ?? config.placement;
  const offered = [...(site.files.placer ? ["learned"] : []), ...OFFERED];
  const scales = preprocessor.window_scales;
  defaults = {
    placement: offered.includes(wanted) ? wanted : offered[0],
    numTokens: [preprocessor.num_tokens, config.num_tokens].find((one) => Number.isInteger(one)) ?? 25,
    windows: typeof scales === "number" ? String(scales) : "cover",
  };
  const label = (name) => (name === "learned" ? "Where the model itself looks" : PLACEMENTS[name].label);
  const options = offered.map((name) => new Option(label(name), name));
  element("placement").replaceChildren(...options, new Option("Moved by hand", MOVED));
  const sizes = [["cover", "Covering the image"], ["1", "One patch, with gaps"]];
  if (!sizes.some(([value]) => value === defaults.windows)) sizes.push([defaults.windows, `${defaults.windows} patches wide`]);
  const ownSize = new Option("Each of its own size", "");
  element("windows").replaceChildren(...sizes.map(([value, text]) => new Option(text, value)), ownSize);
  element("examples").replaceChildren(...site.examples.map(exampleButton));
  element("counts").replaceChildren(...COUNTS.map(countButton), countButton("all"));
  element("sure-field").hidden = looks === null;
  for (const node of document.querySelectorAll(".samples")) node.textContent = `${config.patch_size} × ${config.patch_size}`;
  element("model").textContent = site.title;
  if (site.url) element("model").href = site.url;
  document.title = `${site.title}: few tokens, well placed`;
}

function exampleButton({ file, name, recording: recorded }, index) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.index = index;
  const picture = document.createElement("img");
  [picture.loading, picture.src, picture.alt] = ["lazy", file, name];
  button.append(picture);
  button.addEventListener("click", () => {
    chooseExample(index, { tokens: null, step: recorded ? 0 : null, placement: placedBy() });
  });
  return button;
}

function countButton(number) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = number;
  if (number !== "all") button.dataset.count = number;
  button.addEventListener("click", () => placeAnew({ numTokens: number === "all" ? numCells : number }));
  return button;
}

function listen() {
  element("count").addEventListener("input", ({ target }) => placeAnew({ numTokens: Number(target.value) }));
  element("placement").addEventListener("change", ({ target }) => {
    placeAnew({ placement: target.value, numTokens: stage.tokens.length });
  });
  element("windows").addEventListener("change", ({ target }) => placeAnew({ windows: target.value || defaults.windows }));
  element("size").addEventListener("input", ({ target }) => stage.resize(Number(target.value)));
  element("add").addEventListener("click", () => stage.add());
  element("remove").addEventListener("click", () => stage.remove());
  element("sure").addEventListener("click", () => lookAll().catch(fail));
  element("step").addEventListener("input", ({ target }) => {
    stopPlaying();
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
  window.addEventListener("hashchange", restore);
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
function restore() {
  const said = fromHash(location.hash);
  const known = [...element("placement").options].map((one) => one.value).filter((one) => one !== MOVED);
  const image = site.examples[said.image] ? said.image : "0";
  const step = site.examples[image].recording ? (said.step ?? null) : null;
  return chooseExample(image, {
    placement: said.tokens ? MOVED : known.includes(said.placement) ? said.placement : defaults.placement,
    windows: ["1", "cover", defaults.windows].includes(said.windows) ? said.windows : defaults.windows,
    numTokens: Math.max(1, said.numTokens ?? defaults.numTokens),
    tokens: said.tokens ?? null,
    step,
  });
}

async function fetchJson(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  return response.json();
}

async function start() {
  const files = ["site.json", "config.json", "preprocessor_config.json"];
  [site, config, preprocessor] = await Promise.all(files.map(fetchJson));
  [names, looks] = [shortNames(config.id2label ?? {}), looksOf(config)];
  stage = new Stage(
    { picture: element("picture"), reading: element("reading"), overlay: element("overlay") },
    config.patch_size,
    { change: moved, select: showSelected },
  );
  loading = startEngine(engine);
  loading.catch(() => {}); // whoever waits for it says why
  buildControls();
  listen();
  await restore();
  await loading;
  showEngine();
  await tryWebGpu();
}

start().catch((error) => {
  element("device").textContent = "The model could not be loaded.";
  fail(error);
});
