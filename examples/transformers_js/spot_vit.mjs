/**
 * What a SpotViT needs beside transformers.js, in Node and in browsers: pixels as in Python, and positions for its tokens.
 *
 * Points are `[x, y]`. In the image frame, 0 and 1 are the edges of the original image; in the model frame, those of
 * `pixel_values`, which a recipe with a centre crop makes of a part of it.
 */
import { Tensor } from "@huggingface/transformers";

// By Pillow's number: how far a filter reaches, and its weight at a distance from 0 to there; in pixels of the smaller image.
const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const FILTERS = {
  1: [3, (x) => sinc(x) * sinc(x / 3)],
  2: [1, (x) => 1 - x],
  3: [2, (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : ((-0.5 * x + 2.5) * x - 4) * x + 2)],
};
const UNIT = 2 ** 22; // Pillow's weights are whole numbers of this fraction

/** For each of `newLength` pixels: the first of the `length` pixels that it is made of, and their weights. */
function weightsOf(length, newLength, [reach, weight]) {
  const scale = length / newLength;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: newLength }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - reach * stretch + 0.5));
    const last = Math.min(length, Math.trunc(center + reach * stretch + 0.5));
    const weights = [];
    for (let j = first; j < last; ++j) {
      const distance = Math.abs(j - center + 0.5) / stretch;
      weights.push(distance < reach ? weight(distance) : 0);
    }
    const total = weights.reduce((sum, one) => sum + one, 0);
    const whole = (value) => Math.sign(value) * Math.trunc(Math.abs(value) * UNIT + 0.5);
    return [first, weights.map((one) => whole(one / total))];
  });
}

/** Resizes rows of pixels, and returns them as columns: twice is an image. */
function resizeRows(data, width, height, newWidth, filter) {
  const result = new Uint8ClampedArray(newWidth * height * 3);
  weightsOf(width, newWidth, filter).forEach(([first, weights], x) => {
    for (let y = 0; y < height; ++y) {
      for (let channel = 0; channel < 3; ++channel) {
        let sum = UNIT / 2;
        for (let j = 0; j < weights.length; ++j) sum += weights[j] * data[(y * width + first + j) * 3 + channel];
        result[(x * height + y) * 3 + channel] = Math.floor(sum / UNIT);
      }
    }
  });
  return result;
}

/** How an image is resized and cropped: `[width, height]` after each, and `[left, top]` of the crop, in pixels. */
export function frameOf(image, processor) {
  const { size, crop_size: crop, do_resize, do_center_crop } = processor;
  let resized = [image.width, image.height];
  if (do_resize && size.shortest_edge && !size.longest_edge) {
    const short = Math.min(...resized);
    resized = resized.map((side) => (side === short ? size.shortest_edge : Math.floor((size.shortest_edge * side) / short)));
  } else if (do_resize) {
    resized = processor.get_resize_output_image_size(image, size);
  }
  const model = do_center_crop ? [crop.width, crop.height] : resized;
  const offset = model.map((side, axis) => Math.floor((resized[axis] - side) / 2));
  if (Math.min(...offset) < 0) throw new Error(`the crop of ${model} pixels must lie in the resized image; got ${resized}`);
  return { resized, model, offset };
}

/** Points in the image frame to the model frame. */
export function toModelFrame(points, { resized, model, offset }) {
  return points.map((point) => point.map((value, axis) => (value * resized[axis] - offset[axis]) / model[axis]));
}

/**
 * An image as the model takes it, as SpotViT's image processor makes it in Python: with a filter that averages over all pixels
 * of which it makes one, where transformers.js leaves most of them out. Widths are resized first.
 *
 * @param {RawImage} image: of `load_image`.
 * @param {ImageProcessor} processor: of `AutoImageProcessor`: its recipe alone is read.
 * @returns {Tensor} float32, `(1, 3, height, width)`: of several images, `cat([...], 0)` makes a batch.
 */
export function pixelValues(image, processor) {
  const filter = FILTERS[processor.resample];
  if (!filter) throw new Error(`\`resample\` must be 1 (lanczos), 2 (bilinear) or 3 (bicubic); got ${processor.resample}`);
  const { resized, model, offset } = frameOf(image, processor);
  const [[width, height], [left, top]] = [model, offset];
  let { data } = image.clone().rgb();
  if (resized[0] !== image.width || resized[1] !== image.height) {
    const columns = resizeRows(data, image.width, image.height, resized[0], filter);
    data = resizeRows(columns, image.height, resized[0], resized[1], filter);
  }
  const values = new Float32Array(3 * height * width);
  const { do_rescale, rescale_factor, do_normalize, image_mean, image_std } = processor;
  for (let i = 0, channel = 0; channel < 3; ++channel) {
    const [mean, std] = do_normalize ? [image_mean[channel], image_std[channel]] : [0, 1];
    for (let y = top; y < top + height; ++y) {
      for (let x = left; x < left + width; ++x) {
        values[i++] = (data[(y * resized[0] + x) * 3 + channel] * (do_rescale ? rescale_factor : 1) - mean) / std;
      }
    }
  }
  return new Tensor("float32", values, [1, 3, height, width]);
}

/** Any number of points, evenly over what the model sees: the placement "isotropic". `aspectRatio` is its width / height. */
export function isotropic(numTokens, aspectRatio = 1) {
  const exact = Math.sqrt(numTokens / aspectRatio);
  const rounded = Math.round(exact) - (Math.round(exact) - exact === 0.5 && Math.round(exact) % 2); // half to even
  const numRows = Math.min(numTokens, Math.max(1, rounded));
  const points = [];
  for (let row = 0, done = 0; row < numRows; ++row) {
    const count = Math.floor((numTokens * (row + 1)) / numRows) - done;
    for (let j = 0; j < count; ++j) points.push([(j + 0.5) / count, (done + count / 2) / numTokens]);
    done += count;
  }
  return points;
}

/** `coordinates` of one image, or of a batch: one list of points for each image, equally long. Float32, `(batch_size, num_tokens, 2)`. */
export function coordinates(...sets) {
  return new Tensor("float32", Float32Array.from(sets.flat(2)), [sets.length, sets[0].length, 2]);
}
