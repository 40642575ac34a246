/**
 * From a photograph to the pixels that the model reads, as the image processor does it in Python
 * (`SpotViTImageProcessorPil`): 8-bit pixels equal Pillow's to the last bit, so the page computes what PyTorch computes.
 *
 * Two frames of relative coordinates `(x, y)`, 0 and 1 being an image's edges: the *image frame* is relative to the original
 * image, the *model frame* to the model's input, which resize and centre crop make of it.
 */

/**
 * @typedef {Object} Frame  Sizes in whole pixels.
 * @property {number} resizedWidth  of the image after the resize
 * @property {number} resizedHeight
 * @property {number} left  where the crop begins in the resized image; below 0 where it pads
 * @property {number} top
 * @property {number} width  of the model's input
 * @property {number} height
 */

/** What `preprocessor_config.json` does not say: the image processor's own defaults. */
const DEFAULTS = {
  do_resize: true,
  size: { height: 224, width: 224 },
  resample: 3,
  do_center_crop: false,
  crop_size: { height: 224, width: 224 },
  do_rescale: true,
  rescale_factor: 1 / 255,
  do_normalize: true,
  image_mean: [0.5, 0.5, 0.5],
  image_std: [0.5, 0.5, 0.5],
  do_pad: false,
};
const CHANNELS = 3;

// ------------------------------------------------------------------------------------------------------------- frames

/**
 * Sizes of an image on its way to the model.
 *
 * @param {number} width  of the original image, upright, in pixels
 * @param {number} height
 * @param {Object} config  the content of `preprocessor_config.json`
 * @returns {Frame}
 * @throws {Error} `do_pad`, `size` or `crop_size` that cannot be followed here
 */
export function frameOf(width, height, config) {
  const recipe = { ...DEFAULTS, ...config };
  if (recipe.do_pad) {
    throw new Error("`do_pad` must be false: a padded image has no frame of its own; got true");
  }
  let [resizedWidth, resizedHeight] = [width, height];
  if (recipe.do_resize) {
    [resizedWidth, resizedHeight] = resizedSize(width, height, recipe.size);
    if (!(resizedWidth >= 1 && resizedHeight >= 1)) {
      throw new Error(
        `\`size\` must leave at least one pixel of an image of ${width} × ${height}; got ${JSON.stringify(recipe.size)}`,
      );
    }
  }
  const frame = { resizedWidth, resizedHeight, left: 0, top: 0, width: resizedWidth, height: resizedHeight };
  if (recipe.do_center_crop) {
    const crop = asSquare(recipe.crop_size);
    if (!(crop?.height >= 1 && crop?.width >= 1)) {
      throw new Error(`\`crop_size\` must have height and width; got ${JSON.stringify(recipe.crop_size)}`);
    }
    frame.width = crop.width;
    frame.height = crop.height;
    frame.left = Math.floor((resizedWidth - crop.width) / 2);
    frame.top = Math.floor((resizedHeight - crop.height) / 2);
  }
  return frame;
}

function asSquare(size) {
  return typeof size === "number" ? { height: size, width: size } : size;
}

/** `[width, height]` after the resize, by transformers' rules of rounding. */
function resizedSize(width, height, size) {
  const given = asSquare(size) ?? {};
  const { shortest_edge: shortest, longest_edge: longest } = given;
  const [short, long] = [Math.min(width, height), Math.max(width, height)];
  if (shortest) {
    let [newShort, exactShort] = [shortest, shortest];
    if (longest && (long / short) * shortest > longest) {
      exactShort = (longest * short) / long;
      newShort = roundToEven(exactShort);
    }
    if (longest && short === newShort) return [width, height];
    const newLong = Math.trunc((exactShort * long) / short);
    return width <= height ? [newShort, newLong] : [newLong, newShort];
  }
  if (given.max_height && given.max_width) {
    const scale = Math.min(given.max_height / height, given.max_width / width);
    return [Math.trunc(width * scale), Math.trunc(height * scale)];
  }
  if (given.height && given.width) return [given.width, given.height];
  throw new Error(
    "`size` must have height and width, shortest_edge (with or without longest_edge), or max_height and max_width; got " +
      JSON.stringify(size),
  );
}

/** As Python's `round`: halves go to the even neighbour. Not for numbers below 0. */
export function roundToEven(value) {
  const below = Math.floor(value);
  const rest = value - below;
  return below + (rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? 1 : 0);
}

/**
 * From the model frame to the image frame.
 *
 * @param {Frame} frame
 * @param {number} x  relative to the model's input
 * @param {number} y
 * @returns {[number, number]} `[x, y]` relative to the original image; outside of [0, 1] where the crop pads
 */
export function toImageFrame(frame, x, y) {
  return [(x * frame.width + frame.left) / frame.resizedWidth, (y * frame.height + frame.top) / frame.resizedHeight];
}

/**
 * From the image frame to the model frame: the inverse of `toImageFrame`.
 *
 * @param {Frame} frame
 * @param {number} x  relative to the original image
 * @param {number} y
 * @returns {[number, number]} `[x, y]` relative to the model's input; outside of [0, 1] for what the crop removes
 */
export function toModelFrame(frame, x, y) {
  return [(x * frame.resizedWidth - frame.left) / frame.width, (y * frame.resizedHeight - frame.top) / frame.height];
}

// ------------------------------------------------------------------------------------------------------------- pixels

/**
 * The model's input for an image: resized, cropped, rescaled and normalized. Alpha is dropped, as `convert("RGB")` does:
 * whatever `do_convert_rgb` says, what a browser decodes is RGBA. `decode` is always "exact" here.
 *
 * @param {Uint8ClampedArray|Uint8Array} rgba  of all of the image, row by row; length `4 * width * height`, in [0, 255]
 * @param {number} width  of the image, in pixels
 * @param {number} height
 * @param {Object} config  the content of `preprocessor_config.json`
 * @returns {{data: Float32Array, channels: number, height: number, width: number}} `data` in CHW order, 3 channels
 * @throws {Error} an array of another length, or a value of `config` that cannot be followed here, by its key
 */
export function preprocess(rgba, width, height, config) {
  if (rgba.length !== 4 * width * height) {
    throw new Error(`\`rgba\` must hold 4 × ${width} × ${height} values; got ${rgba.length}`);
  }
  const recipe = { ...DEFAULTS, ...config };
  const frame = frameOf(width, height, recipe);
  const tables = valueTables(recipe);
  // Of the crop, what lies in the image; the rest is black.
  const left = Math.max(frame.left, 0);
  const top = Math.max(frame.top, 0);
  const region = {
    left,
    top,
    width: Math.min(frame.left + frame.width, frame.resizedWidth) - left,
    height: Math.min(frame.top + frame.height, frame.resizedHeight) - top,
  };
  const filter = recipe.do_resize ? recipe.resample : NEAREST;
  const seen = resample(rgba, width, height, frame.resizedWidth, frame.resizedHeight, filter, region);

  const size = frame.width * frame.height;
  const data = new Float32Array(CHANNELS * size);
  for (let c = 0; c < CHANNELS; c++) {
    const table = tables[c];
    if (region.width * region.height < size) data.fill(table[0], c * size, (c + 1) * size);
    let from = c * region.width * region.height;
    for (let y = 0; y < region.height; y++) {
      let to = c * size + (y + top - frame.top) * frame.width + left - frame.left;
      for (let x = 0; x < region.width; x++) data[to++] = table[seen[from++]];
    }
  }
  return { data, channels: CHANNELS, height: frame.height, width: frame.width };
}

/** For each channel what becomes of the values 0 to 255, each step rounded to float32 as NumPy does. */
function valueTables(recipe) {
  const ofChannel = (key, c) => {
    const values = typeof recipe[key] === "number" ? Array(CHANNELS).fill(recipe[key]) : recipe[key];
    if (values?.length !== CHANNELS) {
      throw new Error(`\`${key}\` must be a number or ${CHANNELS} of them; got ${JSON.stringify(recipe[key])}`);
    }
    return Math.fround(values[c]);
  };
  return Array.from({ length: CHANNELS }, (_, c) =>
    Float32Array.from({ length: 256 }, (_, value) => {
      const rescaled = Math.fround(recipe.do_rescale ? value * recipe.rescale_factor : value);
      if (!recipe.do_normalize) return rescaled;
      return Math.fround(rescaled - ofChannel("image_mean", c)) / ofChannel("image_std", c);
    }),
  );
}

// --------------------------------------------------------------------------------------------------------- resampling

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

/** Weight by distance, in pixels of the coarser image; and the distance from which on it is 0. Numbered as in Pillow. */
const FILTERS = {
  1: { reach: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) }, // Lanczos
  2: { reach: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) }, // bilinear
  3: { reach: 2, weight: (x) => cubic(Math.abs(x)) }, // bicubic
  4: { reach: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) }, // box
  5: { reach: 1, weight: (x) => (Math.abs(x) < 1 ? sinc(x) * hamming(x) : 0) }, // Hamming
};
const NEAREST = 0;

/** Keys' cubic with the slope -1/2, of distances from 0 on; the order of operations is Pillow's. */
function cubic(x) {
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

function hamming(x) {
  return Math.fround(0.54) + Math.fround(0.46) * Math.cos(Math.PI * x); // Pillow's constants are of single precision
}

const BITS = 22; // of a weight's fraction
const HALF = 1 << (BITS - 1);

function toByte(sum) {
  const value = sum >> BITS;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

/**
 * For each of `count` places of a resized axis, beyond the `skipped` first ones, which pixels it averages and with what
 * weights.
 *
 * @returns {{first: Int32Array, starts: Int32Array, weights: Int32Array, begin: number, end: number}} of output `i`, the
 *   weights are those from `starts[i]` to `starts[i + 1]`, in units of 2**-22, of the input from `first[i]` on; all of them
 *   read the input from `begin` to `end`
 */
function axisWeights(size, resizedSize, filter, skipped, count) {
  const { reach, weight } = FILTERS[filter];
  const scale = size / resizedSize;
  const stretch = Math.max(scale, 1);
  const support = reach * stretch;
  const perPixel = 1 / stretch;
  const first = new Int32Array(count);
  const starts = new Int32Array(count + 1);
  const weights = [];
  for (let i = 0; i < count; i++) {
    const center = (skipped + i + 0.5) * scale;
    const from = Math.max(0, Math.trunc(center - support + 0.5));
    const to = Math.min(size, Math.trunc(center + support + 0.5));
    const row = [];
    let sum = 0;
    for (let x = 0; x < to - from; x++) {
      row.push(weight((x + from - center + 0.5) * perPixel));
      sum += row[x];
    }
    for (const value of row) {
      const share = (sum === 0 ? value : value / sum) * (1 << BITS);
      weights.push(Math.trunc(share < 0 ? share - 0.5 : share + 0.5));
    }
    first[i] = from;
    starts[i + 1] = weights.length;
  }
  const last = count - 1;
  const end = first[last] + starts[count] - starts[last];
  return { first, starts, weights: Int32Array.from(weights), begin: first[0], end };
}

/**
 * Part of a resized image, without the rest: equal to `Image.resize` and `crop` of Pillow 13 to the last bit. As there, one
 * axis is resampled and rounded to 8 bits before the other. Earlier versions always begin with the rows.
 *
 * @param {Uint8ClampedArray|Uint8Array} rgba  of the image, row by row; length `4 * width * height`
 * @param {number} width  of the image, in pixels
 * @param {number} height
 * @param {number} resizedWidth  of the resized image, in pixels
 * @param {number} resizedHeight
 * @param {number} filter  Pillow's number: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming
 * @param {{left: number, top: number, width: number, height: number}} [region]  of the resized image, in its pixels
 * @returns {Uint8Array} red, green and blue of the region, CHW: length `3 * region.width * region.height`
 * @throws {Error} another `filter`
 */
export function resample(
  rgba,
  width,
  height,
  resizedWidth,
  resizedHeight,
  filter,
  region = { left: 0, top: 0, width: resizedWidth, height: resizedHeight },
) {
  if (filter !== NEAREST && !(filter in FILTERS)) {
    throw new Error(
      "`resample` must be 0 (nearest), 1 (Lanczos), 2 (bilinear), 3 (bicubic), 4 (box) or 5 (Hamming); got " +
        JSON.stringify(filter),
    );
  }
  const isSameSize = width === resizedWidth && height === resizedHeight;
  if (filter === NEAREST || isSameSize) return pick(rgba, width, height, resizedWidth, resizedHeight, region);

  const across = axisWeights(width, resizedWidth, filter, region.left, region.width);
  const down = axisWeights(height, resizedHeight, filter, region.top, region.height);
  const read = { left: across.begin, top: down.begin, width: across.end - across.begin, height: down.end - down.begin };
  const image = { data: rgba, step: 4, width, left: 0, top: 0 };
  const isShrunkMoreInHeight = height - resizedHeight > Math.max(0, 2 * (width - resizedWidth));
  if (isShrunkMoreInHeight) {
    const columns = resampleColumns(image, read.left, read.width, down);
    return channelsFirst(resampleRows({ ...columns, top: 0 }, 0, region.height, across));
  }
  const rows = resampleRows(image, read.top, read.height, across);
  return channelsFirst(resampleColumns({ ...rows, left: 0 }, 0, region.width, down));
}

/**
 * @typedef {Object} Pixels  A rectangle of an image.
 * @property {Uint8ClampedArray|Uint8Array} data  row by row, `step` bytes a pixel, red, green and blue first
 * @property {number} step
 * @property {number} width  in pixels
 * @property {number} left  of its first pixel, in the image
 * @property {number} top
 */

/** `numRows` rows from `firstRow` of the image on, with their columns resampled. */
function resampleRows({ data, step, width, left, top }, firstRow, numRows, { first, starts, weights }) {
  const columns = first.length;
  const out = new Uint8Array(CHANNELS * columns * numRows);
  let to = 0;
  for (let y = 0; y < numRows; y++) {
    const row = (firstRow - top + y) * width - left;
    for (let x = 0; x < columns; x++) {
      let red = HALF;
      let green = HALF;
      let blue = HALF;
      let from = step * (row + first[x]);
      const end = starts[x + 1];
      for (let i = starts[x]; i < end; i++) {
        const weight = weights[i];
        red = (red + Math.imul(data[from], weight)) | 0;
        green = (green + Math.imul(data[from + 1], weight)) | 0;
        blue = (blue + Math.imul(data[from + 2], weight)) | 0;
        from += step;
      }
      out[to++] = toByte(red);
      out[to++] = toByte(green);
      out[to++] = toByte(blue);
    }
  }
  return { data: out, step: CHANNELS, width: columns, left: 0, top: firstRow };
}

/** `numColumns` columns from `firstColumn` of the image on, with their rows resampled: whole rows are added up, which lie
 * together in memory. */
function resampleColumns({ data, step, width, left, top }, firstColumn, numColumns, { first, starts, weights }) {
  const stride = CHANNELS * numColumns;
  const out = new Uint8Array(stride * first.length);
  const sums = new Int32Array(stride);
  for (let y = 0; y < first.length; y++) {
    sums.fill(HALF);
    for (let i = starts[y]; i < starts[y + 1]; i++) {
      const weight = weights[i];
      let from = step * ((first[y] - top + i - starts[y]) * width + firstColumn - left);
      for (let to = 0; to < stride; to += CHANNELS) {
        sums[to] += Math.imul(data[from], weight);
        sums[to + 1] += Math.imul(data[from + 1], weight);
        sums[to + 2] += Math.imul(data[from + 2], weight);
        from += step;
      }
    }
    for (let to = 0; to < stride; to++) out[y * stride + to] = toByte(sums[to]);
  }
  return { data: out, step: CHANNELS, width: numColumns, left: firstColumn, top: 0 };
}

function channelsFirst({ data }) {
  const size = data.length / CHANNELS;
  const out = new Uint8Array(data.length);
  for (let i = 0; i < size; i++) for (let c = 0; c < CHANNELS; c++) out[c * size + i] = data[CHANNELS * i + c];
  return out;
}

/** The nearest pixels, unchanged: CHW. */
function pick(rgba, width, height, resizedWidth, resizedHeight, region) {
  const columns = nearest(width, resizedWidth);
  const rows = nearest(height, resizedHeight);
  const size = region.width * region.height;
  const out = new Uint8Array(CHANNELS * size);
  for (let y = 0; y < region.height; y++) {
    for (let x = 0; x < region.width; x++) {
      const from = 4 * (width * rows[region.top + y] + columns[region.left + x]);
      for (let c = 0; c < CHANNELS; c++) out[c * size + y * region.width + x] = rgba[from + c];
    }
  }
  return out;
}

/** Positions are added up, one step after another, as Pillow adds them: their rounding decides between neighbours. */
function nearest(size, resizedSize) {
  const step = size / resizedSize;
  const found = new Int32Array(resizedSize);
  let position = step * 0.5;
  for (let i = 0; i < resizedSize; i++) {
    found[i] = Math.min(Math.trunc(position), size - 1);
    position += step;
  }
  return found;
}
