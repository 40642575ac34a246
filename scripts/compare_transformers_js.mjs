// Of compare_transformers_js.py: pixels and logits of the files that stdin names, one JSON object per line.
import { readFileSync } from "node:fs";
import { AutoImageProcessor, AutoModel, LogLevel, env, load_image } from "@huggingface/transformers";
import { pixelValues, place } from "./spot_vit.mjs";

const { directory, files, num_tokens } = JSON.parse(readFileSync(0, "utf8"));
env.allowRemoteModels = false;
env.logLevel = LogLevel.ERROR;
const model = await AutoModel.from_pretrained(directory, { dtype: "fp32" });
const processor = await AutoImageProcessor.from_pretrained(directory);

for (const file of files) {
  const image = await load_image(file);
  const pixels = { "transformers.js": (await processor(image)).pixel_values, pixelValues: pixelValues(image, processor) };
  const answer = {};
  for (const [name, pixel_values] of Object.entries(pixels)) {
    const { coordinates } = place("isotropic", num_tokens, pixel_values, model.config);
    const { logits } = await model({ pixel_values, coordinates });
    answer[name] = { pixel_values: Array.from(pixel_values.data), logits: Array.from(logits.data) };
  }
  console.log(JSON.stringify(answer));
}
