// Calls functions of address.mjs, answers.mjs and engine.mjs.
import { readFileSync } from "node:fs";

const folder = process.argv[2];
const modules = Object.fromEntries(
  await Promise.all(["address", "answers", "engine"].map(async (name) => [name, await import(`${folder}/${name}.mjs`)])),
);

/** A look that answers with given logits, by the number of tokens. */
const looker = (logits) => async (numTokens) => ({ logits: logits[numTokens], milliseconds: 1 });

/** What a function that takes the latest only has run for, of calls that come at once, and of one after these. */
async function latest(calls) {
  const ran = [];
  let release;
  const run = modules.engine.latestOnly(async (value) => {
    ran.push(value);
    if (ran.length === 1) await new Promise((resolve) => (release = resolve));
  });
  const first = run(calls[0]);
  for (const value of calls.slice(1)) run(value);
  release();
  await first;
  await run("after");
  return ran;
}

const cases = JSON.parse(readFileSync("cases.json"));
const answers = [];
for (const { module, name, given, logits, calls } of cases) {
  if (calls) answers.push(await latest(calls));
  else if (logits) answers.push(await modules.answers.lookUntilSure(given, looker(logits)));
  else answers.push((await modules[module][name](...given)) ?? null);
}
process.stdout.write(JSON.stringify(answers));
