// What the functions of `placements.js` return: `node node_placements.mjs FOLDER_OF_THE_MODULES`. A case of cases.json has a
// `call`, `{function, arguments}` or `{placement, numTokens, image, seed}`; `{file, type}` in place of an array is a file of
// raw numbers.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const placements = await import(pathToFileURL(join(process.argv[2], "placements.mjs")));
const TYPES = { float32: Float32Array, float64: Float64Array };

function filled(value) {
  if (Array.isArray(value)) return value.map(filled);
  if (value === null || typeof value !== "object") return value;
  if (value.file) return new TYPES[value.type](new Uint8Array(readFileSync(value.file)).buffer);
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, filled(one)]));
}

function plain(value) {
  if (ArrayBuffer.isView(value)) return Array.from(value);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, plain(one)]));
}

function answer(given) {
  const call = filled(given);
  if (call.function) return plain(placements[call.function](...call.arguments));
  if (call.table) return plain(placements.PLACEMENTS);
  return plain(placements.PLACEMENTS[call.placement].place(call.numTokens, call.image, call.seed));
}

console.log(JSON.stringify(JSON.parse(readFileSync("cases.json", "utf8")).map(answer)));
