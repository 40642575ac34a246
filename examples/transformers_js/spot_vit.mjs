/**
 * SpotViT's pixels and positions as tensors of transformers.js, in Node and in browsers. What is computed is in
 * `preprocess.mjs` and `placements.mjs` of `src/spot_hf/demo/page/`: copy them beside this file.
 *
 * Points are `[x, y]`. In the image frame, 0 and 1 are the edges of the original image; in the model frame, those of
 * `pixel_values`, which a recipe with a centre crop makes of a part of it.
 */
import { Tensor } from "@huggingface/transformers";
import { PLACEMENTS, foveate } from "./placements.mjs";
import { frameOf as frame, preprocess, toModelFrame as pointToModelFrame } from "./preprocess.mjs";

/** A `RawImage` as the model takes it, by the recipe of an `AutoImageProcessor`: float32, `(1, 3, height, width)`. */
export function pixelValues(image, processor) {
  const seen = preprocess(image.clone().rgba().data, image.width, image.height, processor.config);
  return new Tensor("float32", seen.data, [1, seen.channels, seen.height, seen.width]);
}

/** How a `RawImage` is resized and cropped: see `Frame` in preprocess.mjs. */
export const frameOf = (image, processor) => frame(image.width, image.height, processor.config);

/** Points in the image frame to the model frame. */
export const toModelFrame = (points, of) => points.map(([x, y]) => pointToModelFrame(of, x, y));

/** `coordinates`, float32, `(batch_size, num_tokens, 2)`: of a list of points in the model frame for each image. */
export const coordinates = (...sets) => tensor(sets.map((points) => points.flat()), sets[0].length, 2);

/**
 * `{coordinates, window_scales}` by the name of a placement, as in Python: a key of `PLACEMENTS`. Of a model's `config`,
 * `patch_size` is read. Random ones read `seed`; "grid" places all patches, whatever `numTokens` is.
 */
export function place(name, numTokens, pixel_values, { patch_size: patchSize }, seed = 0) {
  if (!Object.hasOwn(PLACEMENTS, name)) {
    throw new Error(`\`name\` must be one of ${Object.keys(PLACEMENTS).join(", ")}; got ${JSON.stringify(name)}`);
  }
  const [channels, height, width] = pixel_values.dims.slice(1);
  const placeOne = ({ data }, i) => PLACEMENTS[name].place(numTokens, { data, channels, height, width, patchSize }, seed + i);
  return inputs(Array.from(pixel_values, placeOne));
}

/** The same by a placer's `densities`, `(batch_size, rows, columns)`. */
export function placeByDensities(densities, numTokens, pixel_values, { patch_size: patchSize }) {
  const [[, rows, columns], [height, width]] = [densities.dims, pixel_values.dims.slice(2)];
  const all = Array.from(densities, ({ data }) => ({ data: Float64Array.from(data), rows, columns }));
  return inputs(all.map((density) => foveate(density, numTokens, height, width, patchSize)));
}

const inputs = (placed) => ({
  coordinates: tensor(placed.map((one) => one.coordinates), placed[0].windowScales.length, 2),
  window_scales: tensor(placed.map((one) => one.windowScales), placed[0].windowScales.length),
});

/** Float32, `(rows.length, ...dims)`. */
function tensor(rows, ...dims) {
  return new Tensor("float32", Float32Array.from(rows.flatMap((row) => [...row])), [rows.length, ...dims]);
}
