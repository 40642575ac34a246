// What `preprocess.js` makes of the images and configs in cases.json: `node node_preprocess.mjs FOLDER_OF_THE_MODULES`.
// `pixels` of a case names a file of RGBA bytes; `out`, where given, the file for the float32 result.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const { frameOf, preprocess, toImageFrame, toModelFrame } = await import(
  pathToFileURL(join(process.argv[2], "preprocess.mjs"))
);

function answer({ pixels, width, height, config, out, points = [] }) {
  try {
    const frame = frameOf(width, height, config);
    const toImage = points.map(([x, y]) => toImageFrame(frame, x, y));
    const toModel = points.map(([x, y]) => toModelFrame(frame, x, y));
    if (pixels === undefined) return { frame, toImage, toModel };
    const rgba = new Uint8ClampedArray(readFileSync(pixels));
    const begin = performance.now();
    const { data, ...sizes } = preprocess(rgba, width, height, config);
    const milliseconds = performance.now() - begin;
    writeFileSync(out, new Uint8Array(data.buffer));
    return { frame, toImage, toModel, milliseconds, ...sizes };
  } catch (error) {
    return { error: error.message };
  }
}

console.log(JSON.stringify(JSON.parse(readFileSync("cases.json", "utf8")).map(answer)));
