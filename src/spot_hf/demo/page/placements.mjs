/**
 * Where tokens sit: the priors of `placement.py` and `foveation.py`, for the page. Positions and window scales equal Python's
 * to rounding; those of random priors follow the same law, from a small generator of this page's own: not torch's numbers.
 *
 * @typedef {Object} Placed
 * @property {Float32Array} coordinates  length `2 * numTokens`: x and y of each token by turns, in [0, 1], relative to the
 *   model's input
 * @property {Float32Array} windowScales  length `numTokens`: sides of the windows, in patches; 1 where a prior has none
 *
 * @typedef {Object} Density  How much of the looking each part of an image deserves; only its proportions count.
 * @property {Float64Array} data  length `rows * columns`, row by row, above 0
 * @property {number} rows
 * @property {number} columns
 *
 * @typedef {Object} Image  as the model sees it
 * @property {Float32Array} data  pixel values in CHW order
 * @property {number} channels
 * @property {number} height  in pixels
 * @property {number} width
 * @property {number} patchSize  of the model, in pixels
 */
import { roundToEven } from "./preprocess.mjs";

/** The logarithm of how much more is looked at what is most salient than at what is not salient. */
const STRENGTH = 2.2;

/** Positions `[[x, y], ...]` whose windows have a patch's size. */
function unscaled(points) {
  return { coordinates: Float32Array.from(points.flat()), windowScales: new Float32Array(points.length).fill(1) };
}

// ------------------------------------------------------------------------------------------------------ deterministic

/** Tokens in each row of the isotropic lattice: rows that make its cells nearly square. */
function rowCounts(numTokens, aspectRatio) {
  const numRows = Math.min(numTokens, Math.max(1, roundToEven(Math.sqrt(numTokens / aspectRatio))));
  const before = (row) => Math.floor((numTokens * row) / numRows);
  return Array.from({ length: numRows }, (_, row) => before(row + 1) - before(row));
}

/**
 * Even coverage by any number of tokens: centres of cells of equal area, in rows.
 *
 * @param {number} numTokens  at least 1
 * @param {number} aspectRatio  width / height of the model's input
 * @returns {Placed}
 */
export function isotropic(numTokens, aspectRatio) {
  const points = [];
  for (const count of rowCounts(numTokens, aspectRatio)) {
    const y = (points.length + count / 2) / numTokens;
    for (let i = 0; i < count; i++) points.push([(i + 0.5) / count, y]);
  }
  return unscaled(points);
}

/**
 * Isotropic, contracted towards the centre.
 *
 * @param {number} numTokens  at least 1
 * @param {number} aspectRatio  width / height of the model's input
 * @returns {Placed}
 */
export function center(numTokens, aspectRatio) {
  const placed = isotropic(numTokens, aspectRatio);
  placed.coordinates = placed.coordinates.map((value) => {
    const offset = value - 0.5;
    return 0.5 + offset * (1 - Math.exp(-((offset / 0.2) ** 2)));
  });
  return placed;
}

/**
 * Centres of all cells of the grid, row by row: the tokens of an ordinary ViT.
 *
 * @param {number} height  of the model's input, in pixels
 * @param {number} width
 * @param {number} patchSize  in pixels
 * @returns {Placed}
 */
export function grid(height, width, patchSize) {
  const points = [];
  for (let row = 0; row < Math.floor(height / patchSize); row++) {
    for (let column = 0; column < Math.floor(width / patchSize); column++) {
      points.push([((column + 0.5) * patchSize) / width, ((row + 0.5) * patchSize) / height]);
    }
  }
  return unscaled(points);
}

/**
 * The window scale with which `numTokens` windows have the area of the whole image.
 *
 * @returns {number} in patches
 */
export function coveringScale(numTokens, height, width, patchSize) {
  return Math.sqrt((height * width) / numTokens) / patchSize;
}

// ------------------------------------------------------------------------------------------------------------- random

/** Numbers in [0, 1), a function of the seed: a 32-bit counter, mixed. */
function randomNumbers(seed) {
  let state = Math.imul(seed, 0x85ebca6b) >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 16), 0x21f0aaad);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
    return ((mixed ^ (mixed >>> 15)) >>> 0) / 2 ** 32;
  };
}

/**
 * Independent and uniform over the image.
 *
 * @param {number} numTokens
 * @param {number} seed  a whole number
 * @returns {Placed}
 */
export function uniform(numTokens, seed) {
  const next = randomNumbers(seed);
  return unscaled(Array.from({ length: numTokens }, () => [next(), next()]));
}

/**
 * Independent and normal around the centre, standard deviation 1/π of the image, clamped to it.
 *
 * @param {number} numTokens
 * @param {number} seed  a whole number
 * @returns {Placed}
 */
export function gaussian(numTokens, seed) {
  const next = randomNumbers(seed);
  const inside = (step) => Math.min(Math.max(0.5 + step / Math.PI, 0), 1);
  return unscaled(
    Array.from({ length: numTokens }, () => {
      const length = Math.sqrt(-2 * Math.log(1 - next())); // Box and Muller: a pair at a time
      const angle = 2 * Math.PI * next();
      return [inside(length * Math.cos(angle)), inside(length * Math.sin(angle))];
    }),
  );
}

// ----------------------------------------------------------------------------------------------------------- foveated

/**
 * The isotropic lattice, warped by a density: each token's cell has the same share of it, and its window the cell's area. So
 * windows are small where the density is high, large elsewhere, and always tile the image.
 *
 * @param {Density} density  over the model's input, piecewise constant, of any size
 * @param {number} numTokens  at least 1
 * @param {number} height  of the model's input, in pixels
 * @param {number} width
 * @param {number} patchSize  in pixels
 * @returns {Placed}
 */
export function foveate(density, numTokens, height, width, patchSize) {
  const { data, rows, columns } = density;
  const coordinates = new Float32Array(2 * numTokens);
  const windowScales = new Float32Array(numTokens);
  const ofRows = Array.from({ length: rows }, (_, row) => sumOf(data.subarray(row * columns, (row + 1) * columns)));
  const downwards = inverseCdf(ofRows);
  let token = 0;
  for (const count of rowCounts(numTokens, width / height)) {
    const [top, y, bottom] = [0, count / 2, count].map((done) => downwards((token + done) / numTokens));
    const across = inverseCdf(bandOf(density, top, bottom));
    for (let i = 0; i < count; i++, token++) {
      const [left, x, right] = [2 * i, 2 * i + 1, 2 * i + 2].map((half) => across(half / (2 * count)));
      coordinates[2 * token] = x;
      coordinates[2 * token + 1] = y;
      windowScales[token] = Math.sqrt((right - left) * (bottom - top) * height * width) / patchSize;
    }
  }
  return { coordinates, windowScales };
}

function sumOf(values) {
  return values.reduce((sum, value) => sum + value, 0);
}

/** Of a piecewise constant density over [0, 1], the function from a share of its mass to the place that has it before it. */
function inverseCdf(masses) {
  const total = sumOf(masses);
  const shares = Array.from(masses, (mass) => mass / total);
  const before = [0];
  for (const share of shares) before.push(before.at(-1) + share);
  return (wanted) => {
    let cell = 0;
    while (cell + 1 < shares.length && before[cell + 1] <= wanted) cell++;
    const within = (wanted - before[cell]) / shares[cell];
    return Math.min((cell + Math.min(Math.max(within, 0), 1)) / shares.length, 1);
  };
}

/** The mass of each column between two heights, relative to the image. */
function bandOf({ data, rows, columns }, top, bottom) {
  const masses = new Float64Array(columns);
  for (let row = 0; row < rows; row++) {
    const overlap = Math.min(bottom, (row + 1) / rows) - Math.max(top, row / rows);
    if (overlap <= 0) continue;
    for (let column = 0; column < columns; column++) masses[column] += overlap * data[row * columns + column];
  }
  return masses;
}

/**
 * A density from a saliency map: `exp(strength * saliency / its maximum)`.
 *
 * @param {{data: Float64Array, rows: number, columns: number}} saliency  not negative, of any unit; all zero counts as flat
 * @param {number} [strength]  logarithm of the density where saliency is highest
 * @returns {Density}
 */
export function densityOf({ data, rows, columns }, strength = STRENGTH) {
  const highest = data.reduce((most, value) => Math.max(most, value), 0);
  return { data: data.map((value) => Math.exp(highest > 0 ? (strength * value) / highest : 0)), rows, columns };
}

/**
 * A density with one Gaussian peak: `exp(height * exp(-distance² / (2 width²)))`.
 *
 * @param {number} rows  of the density
 * @param {number} columns
 * @param {{x: number, y: number}} middle  of the peak, relative to the model's input
 * @param {number} width  standard deviation, in widths and heights of the image
 * @param {number} height  logarithm of the density at the peak; far away it is 0
 * @returns {Density}
 */
export function bump(rows, columns, middle, width, height) {
  const data = new Float64Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const across = (column + 0.5) / columns - middle.x;
      const down = (row + 0.5) / rows - middle.y;
      data[row * columns + column] = Math.exp(height * Math.exp(-(across ** 2 + down ** 2) / (2 * width ** 2)));
    }
  }
  return { data, rows, columns };
}

/**
 * The strength of an image's edges, averaged over patches, as a density.
 *
 * @param {Float32Array} pixels  as the model sees them, CHW
 * @param {number} channels
 * @param {number} height  in pixels, at least 2
 * @param {number} width
 * @param {number} patchSize  in pixels
 * @returns {Density}
 */
export function edgeDensity(pixels, channels, height, width, patchSize) {
  const strength = edgeStrength(pixels, channels, height, width);
  const rows = Math.max(1, Math.floor(height / patchSize));
  const columns = Math.max(1, Math.floor(width / patchSize));
  const data = new Float64Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    const [top, bottom] = bin(row, rows, height);
    for (let column = 0; column < columns; column++) {
      const [left, right] = bin(column, columns, width);
      let sum = 0;
      for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) sum += strength[y * width + x];
      data[row * columns + column] = sum / ((bottom - top) * (right - left));
    }
  }
  return densityOf({ data, rows, columns });
}

/** First pixel, and the one after the last, of the `index`-th of `count` bins of an axis, which overlap by at most one. */
function bin(index, count, size) {
  return [Math.floor((index * size) / count), Math.ceil(((index + 1) * size) / count)];
}

/** Magnitude of the brightness gradient `height * width`, from central differences, one-sided at the borders; all ones where
 * an image is flat. */
function edgeStrength(pixels, channels, height, width) {
  const size = height * width;
  const brightness = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    let sum = 0;
    for (let c = 0; c < channels; c++) sum += pixels[c * size + i];
    brightness[i] = sum / channels;
  }
  const strength = new Float64Array(size);
  let isFlat = true;
  for (let y = 0; y < height; y++) {
    const [above, below] = [Math.max(y - 1, 0), Math.min(y + 1, height - 1)];
    for (let x = 0; x < width; x++) {
      const [before, after] = [Math.max(x - 1, 0), Math.min(x + 1, width - 1)];
      const across = (brightness[y * width + after] - brightness[y * width + before]) / (after - before);
      const down = (brightness[below * width + x] - brightness[above * width + x]) / (below - above);
      strength[y * width + x] = Math.hypot(across, down);
      isFlat &&= across === 0 && down === 0;
    }
  }
  return isFlat ? strength.fill(1) : strength;
}

/**
 * Looks closely where an image's edges are strong, coarsely elsewhere.
 *
 * @param {number} numTokens  at least 1
 * @param {Image} image
 * @returns {Placed}
 */
export function foveatedEdge(numTokens, { data, channels, height, width, patchSize }) {
  return foveate(edgeDensity(data, channels, height, width, patchSize), numTokens, height, width, patchSize);
}

/**
 * Looks closely at the centre, coarsely elsewhere.
 *
 * @param {number} numTokens  at least 1
 * @param {Image} image  of which only the sizes are read
 * @returns {Placed}
 */
export function foveatedCenter(numTokens, { height, width, patchSize }) {
  return foveate(bump(56, 56, { x: 0.5, y: 0.5 }, 0.25, STRENGTH), numTokens, height, width, patchSize);
}

// -------------------------------------------------------------------------------------------------------------- table

/**
 * The priors by their names in Python, in the order in which to offer them.
 *
 * @typedef {Object} Placement
 * @property {string} label  for people
 * @property {boolean} scaled  whether its windows have sizes of their own
 * @property {boolean} random  whether it reads the seed
 * @property {(numTokens: number, image: Image, seed?: number) => Placed} place  `grid` alone places another number: all cells
 *
 * @type {Object<string, Placement>}
 */
export const PLACEMENTS = {
  isotropic: {
    label: "Evenly spread",
    scaled: false,
    random: false,
    place: (numTokens, { width, height }) => isotropic(numTokens, width / height),
  },
  foveated_edge: {
    label: "Fine where edges are strong, coarse elsewhere",
    scaled: true,
    random: false,
    place: foveatedEdge,
  },
  foveated_center: {
    label: "Fine at the centre, coarse elsewhere",
    scaled: true,
    random: false,
    place: foveatedCenter,
  },
  center: {
    label: "Crowded at the centre",
    scaled: false,
    random: false,
    place: (numTokens, { width, height }) => center(numTokens, width / height),
  },
  uniform: {
    label: "Random, anywhere",
    scaled: false,
    random: true,
    place: (numTokens, _, seed = 0) => uniform(numTokens, seed),
  },
  gaussian: {
    label: "Random, around the centre",
    scaled: false,
    random: true,
    place: (numTokens, _, seed = 0) => gaussian(numTokens, seed),
  },
  grid: {
    label: "Full grid: every patch",
    scaled: false,
    random: false,
    place: (_, { height, width, patchSize }) => grid(height, width, patchSize),
  },
};
