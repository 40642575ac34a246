/**
 * The model, in a worker: it holds the image as the model sees it, places tokens on it, and runs ONNX Runtime.
 *
 * Messages are `{id, method, arguments}`; answers `{id, value}` or `{id, error}`. The worker's own address says by what it
 * computes: `worker.mjs?device=wasm` (WebAssembly) or `?device=webgpu`.
 */

import { PLACEMENTS, coveringScale, foveate } from "./placements.mjs";
import { preprocess } from "./preprocess.mjs";

const DEVICE = new URL(self.location.href).searchParams.get("device") ?? "wasm";
const RUNTIMES = { wasm: "./ort/ort.wasm.min.mjs", webgpu: "./ort/ort.webgpu.min.mjs" };

let ort, session, placer, config, preprocessor;
/** The present image: {data: Float32Array, channels, height, width, patchSize}. */
let image;

const methods = {
  /** Opens the model. `files`: addresses of `model` and, where there is one, `placer`. */
  async load({ config: modelConfig, preprocessor: processorConfig, files, threads }) {
    [config, preprocessor] = [modelConfig, processorConfig];
    const modelBytes = fetchBytes(files.model); // while ONNX Runtime is being fetched
    const placerBytes = files.placer && fetchBytes(files.placer);
    ort = await import(RUNTIMES[DEVICE]);
    ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
    ort.env.wasm.numThreads = threads;
    const options = {
      executionProviders: DEVICE === "webgpu" ? ["webgpu", "wasm"] : ["wasm"],
      // To optimise the graph takes a third of the time until the first answer, and makes none of the later ones faster.
      graphOptimizationLevel: "disabled",
      logSeverityLevel: 3, // errors
    };
    session = await ort.InferenceSession.create(await modelBytes, options);
    if (placerBytes) {
      placer = await ort.InferenceSession.create(await placerBytes, { ...options, executionProviders: ["wasm"] });
    }
    return { inputs: session.inputNames, hasPlacer: Boolean(placer) };
  },

  /** Takes an image: an `ImageBitmap` of its own size, upright. */
  setImage({ bitmap }) {
    const { width, height } = bitmap;
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    const seen = preprocess(context.getImageData(0, 0, width, height).data, width, height, preprocessor);
    image = { ...seen, patchSize: config.patch_size };
    return { height: seen.height, width: seen.width };
  },

  /**
   * Places tokens by a prior.
   * @returns {{coordinates: Float32Array, windowScales: Float32Array, milliseconds: number}} `(x, y)` of each token in [0, 1],
   *   its size in patches, and how long it took
   */
  async place({ placement, numTokens, windows }) {
    const start = performance.now();
    const placed = placement === "learned" ? await learned(numTokens) : PLACEMENTS[placement].place(numTokens, image);
    if (placement !== "learned" && !PLACEMENTS[placement].scaled) {
      const { height, width, patchSize } = image;
      const covering = coveringScale(placed.windowScales.length, height, width, patchSize);
      placed.windowScales.fill(windows === "cover" ? covering : windows);
    }
    return { ...placed, milliseconds: performance.now() - start };
  },

  /** Classifies the image by its tokens: `{logits: Float32Array, milliseconds}`. */
  async run({ coordinates, windowScales }) {
    const numTokens = windowScales.length;
    const feeds = {
      pixel_values: pixelValues(),
      coordinates: new ort.Tensor("float32", coordinates, [1, numTokens, 2]),
      window_scales: new ort.Tensor("float32", windowScales, [1, numTokens]),
    };
    const start = performance.now();
    const { logits } = await session.run(feeds);
    const values = await logits.getData();
    return { logits: Float32Array.from(values), milliseconds: performance.now() - start };
  },
};

async function learned(numTokens) {
  const { densities } = await placer.run({ pixel_values: pixelValues() });
  const [, rows, columns] = densities.dims;
  const density = { data: Float64Array.from(densities.data), rows, columns };
  return foveate(density, numTokens, image.height, image.width, image.patchSize);
}

function pixelValues() {
  return new ort.Tensor("float32", image.data, [1, image.channels, image.height, image.width]);
}

async function fetchBytes(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address}: ${response.status} ${response.statusText}`);
  return new Uint8Array(await response.arrayBuffer());
}

async function serve({ id, method, arguments: given }) {
  try {
    self.postMessage({ id, value: await methods[method](given) });
  } catch (error) {
    self.postMessage({ id, error: String(error.message ?? error) });
  }
}

// One after the other: ONNX Runtime's sessions do not take two calls at once, and an answer is about the image before it.
let last = Promise.resolve();
self.addEventListener("message", ({ data }) => {
  last = last.then(() => serve(data));
});
