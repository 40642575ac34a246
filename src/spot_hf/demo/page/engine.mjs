/** The model's worker, called like functions: `await engine.run({...})`. */
export class Engine {
  #worker;
  #waiting = new Map();
  #count = 0;
  #reason = null; // why there is no worker any more
  /** Called when work begins or ends. */
  onChange = () => {};

  /** @param {"wasm" | "webgpu"} device by what it computes */
  constructor(device) {
    this.device = device;
    this.#worker = new Worker(new URL(`./worker.mjs?device=${device}`, import.meta.url), { type: "module" });
    this.#worker.addEventListener("message", ({ data: { id, value, error } }) => {
      if (!this.#waiting.has(id)) return;
      const { resolve, reject } = this.#waiting.get(id);
      this.#waiting.delete(id);
      this.onChange();
      if (error === undefined) resolve(value);
      else reject(new Error(error));
    });
    this.#worker.addEventListener("error", (event) => {
      this.#end(event.message ?? "the model's worker has failed");
    });
  }

  load = (given) => this.#call("load", given);
  setImage = (given) => this.#call("setImage", given, [given.bitmap]);
  place = (given) => this.#call("place", given);
  run = (given) => this.#call("run", given);

  /** Ends the worker. What is under way fails. */
  close() {
    this.#worker.terminate();
    this.#end("the model is no longer there");
  }

  #end(reason) {
    this.#reason = reason;
    for (const { reject } of this.#waiting.values()) reject(new Error(reason));
    this.#waiting.clear();
    this.onChange();
  }

  /** Whether anything is under way. */
  get isBusy() {
    return this.#waiting.size > 0;
  }

  #call(method, given, transfer = []) {
    if (this.#reason !== null) return Promise.reject(new Error(this.#reason));
    const id = this.#count++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.onChange();
      this.#worker.postMessage({ id, method, arguments: given }, transfer);
    });
  }
}

/** Runs a function again and again with the latest arguments only: what comes while one is under way replaces what waits. */
export function latestOnly(run) {
  let next = null;
  let busy = false;
  return async (...given) => {
    next = given;
    if (busy) return;
    busy = true;
    try {
      while (next) {
        const own = next;
        next = null;
        await run(...own);
      }
    } finally {
      busy = false;
    }
  };
}
