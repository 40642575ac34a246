// What test_transformers_js.py asks of transformers.js: a question a line from stdin, an answer a line to stdout, in JSON.
// Tensors are `{type, dims, data}`, their bytes in base64.
import { createInterface } from "node:readline";
import * as transformers from "@huggingface/transformers";
import { coordinates, frameOf, pixelValues, place, placeByDensities, toModelFrame } from "./spot_vit.mjs";

const { AutoImageProcessor, AutoModel, ImageClassificationPipeline, Tensor, cat, env, load_image } = transformers;
const ARRAYS = { float32: Float32Array, bool: Uint8Array };

env.allowRemoteModels = false;
let warnings;
console.warn = (...words) => warnings.push(words.join(" "));

const toTensor = ({ type, dims, data }) => {
  const bytes = Uint8Array.from(Buffer.from(data, "base64"));
  return new Tensor(type, new ARRAYS[type](bytes.buffer), dims);
};
const toJson = ({ type, dims, data }) => {
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  return { type, dims, data: bytes.toString("base64") };
};
const mapValues = (object, change) => Object.fromEntries(Object.entries(object).map(([key, value]) => [key, change(value)]));

const TASKS = {
  /** Images as pixels, by spot_vit.mjs and by transformers.js alone. */
  async pixels({ directory, images }) {
    const processor = await AutoImageProcessor.from_pretrained(directory);
    const loaded = await Promise.all(images.map((image) => load_image(image)));
    const theirs = await Promise.all(loaded.map(async (image) => toJson((await processor(image)).pixel_values)));
    return { ours: loaded.map((image) => toJson(pixelValues(image, processor))), theirs };
  },

  /** Points in the frame of each image to the model frame. */
  async frames({ directory, images, points }) {
    const processor = await AutoImageProcessor.from_pretrained(directory);
    const loaded = await Promise.all(images.map((image) => load_image(image)));
    return loaded.map((image) => toModelFrame(points, frameOf(image, processor)));
  },

  /** Logits at what placements place on pixels, and by the placer of the model as "learned". */
  async placements({ directory, pixel_values, num_tokens, placements }) {
    const model = await AutoModel.from_pretrained(directory, { dtype: "fp32" });
    const placer = await AutoModel.from_pretrained(directory, { dtype: "fp32", model_file_name: "placer" });
    const pixels = toTensor(pixel_values);
    const answers = {};
    for (const name of placements) {
      const placed =
        name === "learned"
          ? placeByDensities((await placer({ pixel_values: pixels })).densities, num_tokens, pixels, model.config)
          : place(name, num_tokens, pixels, model.config);
      answers[name] = mapValues({ ...placed, ...(await model({ pixel_values: pixels, ...placed })) }, toJson);
    }
    return answers;
  },

  /** What a model gives for inputs, one after another. */
  async outputs({ directory, dtype, calls }) {
    const model = await AutoModel.from_pretrained(directory, { dtype });
    const answers = [];
    for (const inputs of calls) answers.push(mapValues(await model(mapValues(inputs, toTensor)), toJson));
    await model.dispose();
    return { answers, dtype: model.sessions.model.config.dtype };
  },

  /** Files of images, as one batch, at points in their own frames. */
  async logits({ directory, images, points }) {
    const [model, processor] = await Promise.all([AutoModel, AutoImageProcessor].map((one) => one.from_pretrained(directory)));
    const loaded = await Promise.all(images.map((image) => load_image(image)));
    const pixel_values = cat(loaded.map((image) => pixelValues(image, processor)), 0);
    const sets = loaded.map((image) => toModelFrame(points, frameOf(image, processor)));
    return toJson((await model({ pixel_values, coordinates: coordinates(...sets) })).logits);
  },

  /** The class of a pipeline, around a model that gets its coordinates from us. */
  async pipeline({ directory, image, points }) {
    const [model, processor] = await Promise.all([AutoModel, AutoImageProcessor].map((one) => one.from_pretrained(directory)));
    const placed = Object.assign((inputs) => model({ ...inputs, coordinates: coordinates(points) }), { config: model.config });
    const classifier = new ImageClassificationPipeline({ task: "image-classification", model: placed, processor });
    const { pixel_values } = await processor(await load_image(image));
    return { predictions: await classifier(image), pixel_values: toJson(pixel_values) };
  },

  /** What transformers.js, or spot_vit.mjs, says of what it cannot do. */
  async error({ call, directory, inputs, options }) {
    try {
      if (call === "pipeline") await transformers.pipeline("image-classification", directory);
      else if (call === "place") place(options.name, 9, toTensor(inputs.pixel_values), { patch_size: 8 });
      else if (call === "model") await (await AutoModel.from_pretrained(directory, options))(mapValues(inputs, toTensor));
      else await transformers[call].from_pretrained(directory);
    } catch (error) {
      return error.message;
    }
    return null;
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { task, ...given } = JSON.parse(line);
  warnings = [];
  const answer = await TASKS[task](given);
  process.stdout.write(`${JSON.stringify({ answer, warnings })}\n`);
}
