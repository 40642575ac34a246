/** From logits to what is shown: probabilities, the likeliest classes, looks until the model is sure. */

/** Probabilities of logits, divided by a temperature first. */
export function softmax(logits, temperature = 1) {
  const highest = Math.max(...logits);
  const powers = Array.from(logits, (one) => Math.exp((one - highest) / temperature));
  const sum = powers.reduce((total, one) => total + one, 0);
  return powers.map((one) => one / sum);
}

/** Numbers of the `count` likeliest classes, the likeliest first. */
export function likeliest(probabilities, count) {
  return [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, count);
}

/**
 * Of each class its name: `whole`, and `short`, of several synonyms the first, where no other class has the same.
 * @param id2label of a config, by the class's number
 */
export function shortNames(id2label) {
  const firstOf = (name) => String(name).split(",")[0].trim() || String(name);
  const count = {};
  for (const name of Object.values(id2label)) count[firstOf(name)] = (count[firstOf(name)] ?? 0) + 1;
  const named = (name) => ({ whole: String(name), short: count[firstOf(name)] > 1 ? String(name) : firstOf(name) });
  return Object.fromEntries(Object.entries(id2label).map(([index, name]) => [index, named(name)]));
}

/** The cost of a forward pass with so many tokens, by the coefficients of a polynomial in their number. */
export function costOf(coefficients, numTokens) {
  return coefficients.reduce((total, one, power) => total + one * numTokens ** power, 0);
}

/**
 * The looks that a model's config asks for where it is given several numbers of tokens, or nothing:
 * `[{numTokens, confidence, temperature}]`, from the cheapest; the last has no confidence, as nothing comes after it.
 */
export function looksOf(config) {
  const counts = config.num_tokens;
  if (!Array.isArray(counts) || counts.length < 2 || config.confidence == null) return null;
  const calibrated = String(config.calibration?.num_tokens) === String(counts);
  return counts.map((numTokens, i) => ({
    numTokens,
    confidence: i === counts.length - 1 ? null : Array.isArray(config.confidence) ? config.confidence[i] : config.confidence,
    temperature: calibrated ? config.calibration.temperature[i] : 1,
  }));
}

/**
 * Looks with more and more tokens until the likeliest class is likely enough, as `spot_hf` does it.
 * @param look gives, of a number of tokens, `{tokens, logits, milliseconds}`
 * @returns the last look's, with `probabilities`, and `looks`, `[{numTokens, confidence}]`, of all of them
 */
export async function lookUntilSure(looks, look) {
  const taken = [];
  let milliseconds = 0;
  for (const { numTokens, confidence, temperature } of looks) {
    const found = await look(numTokens);
    const probabilities = softmax(found.logits, temperature);
    const highest = Math.max(...probabilities);
    milliseconds += found.milliseconds;
    taken.push({ numTokens, confidence: highest });
    if (confidence === null || highest >= confidence) return { ...found, probabilities, milliseconds, looks: taken };
  }
}
