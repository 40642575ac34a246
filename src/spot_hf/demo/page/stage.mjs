/**
 * The image with the windows of the tokens, which can be dragged, and beside it what the model reads of it.
 *
 * A token is `{x, y, scale}`: its centre in [0, 1] of the model's input, and the side of its window in patches.
 */

import { MOST_TOKENS } from "./address.mjs";

const SVG = "http://www.w3.org/2000/svg";
const DIMMED = 0.62; // how dark the image is where no token looks
const LONGER_SIDE = 640; // pixels of the pictures
const IS_TOUCHED = matchMedia("(pointer: coarse)").matches; // by fingers, which need more room
const SMALLEST = 0.25; // patches

export class Stage {
  #picture;
  #reading;
  #overlay;
  #listener;
  #seen = document.createElement("canvas"); // the image at the model's own size
  #bright = document.createElement("canvas"); // the image at the picture's size
  #dimmed = document.createElement("canvas"); // the same, where no token looks
  #samples = new WeakMap(); // of each token, a canvas
  #frame = null;
  #patchSize;
  #tokens = [];
  #drag = null; // what ends with the tokens that it moves
  #selected = 0;
  #isDrawn = true;

  /**
   * @param elements `picture` and `reading`, canvases, and `overlay`, an SVG element over the first
   * @param patchSize of the model, in pixels
   * @param listener of what a person does: `change(tokens, selected)`, `select(selected)`
   */
  constructor({ picture, reading, overlay }, patchSize, listener) {
    [this.#picture, this.#reading, this.#overlay] = [picture, reading, overlay];
    [this.#patchSize, this.#listener] = [patchSize, listener];
    overlay.addEventListener("keydown", (event) => this.#onKey(event));
    overlay.addEventListener("pointerdown", (event) => this.#onPointer(event));
    overlay.addEventListener("dblclick", (event) => {
      const place = this.#place(event);
      if (this.#frame && this.#tokenAt(place) === -1) this.add(place, true);
    });
    overlay.addEventListener("focusin", ({ target }) => {
      const node = target.closest(".token");
      if (node) this.select(Number(node.dataset.index));
    });
  }

  get tokens() {
    return this.#tokens;
  }

  get selected() {
    return this.#selected;
  }

  /** Of a window that is the whole image, in patches. */
  get largest() {
    return Math.max(this.#frame.width, this.#frame.height) / this.#patchSize;
  }

  /** Shows an image: an `ImageBitmap`, and the `frame` by which the model sees a part of it. */
  setImage(bitmap, frame) {
    [this.#frame, this.#samples] = [frame, new WeakMap()];
    const factor = LONGER_SIDE / Math.max(frame.width, frame.height);
    for (const canvas of [this.#picture, this.#reading, this.#bright, this.#dimmed]) {
      canvas.width = Math.round(frame.width * factor);
      canvas.height = Math.round(frame.height * factor);
    }
    [this.#seen.width, this.#seen.height] = [frame.width, frame.height];
    for (const canvas of [this.#seen, this.#bright, this.#dimmed]) this.#drawImage(bitmap, canvas);
    bitmap.close();
    const dark = this.#dimmed.getContext("2d");
    dark.fillStyle = `rgb(0 0 0 / ${DIMMED})`;
    dark.fillRect(0, 0, this.#dimmed.width, this.#dimmed.height);
    this.#overlay.setAttribute("viewBox", `0 0 ${frame.width} ${frame.height}`);
    this.#redraw();
  }

  /** Shows tokens. */
  setTokens(tokens, selected = 0) {
    this.#drag = null;
    this.#tokens = tokens;
    this.#selected = Math.min(selected, tokens.length - 1);
    this.#redraw();
  }

  select(index) {
    if (index === this.#selected) return;
    this.#selected = index;
    this.#redraw();
    this.#listener.select(index);
  }

  /** Gives the selected token another size, in patches. */
  resize(scale) {
    this.#changeSelected({ scale: clamp(scale, SMALLEST, this.largest) });
  }

  /** Adds a token; where no place is said, where the image is least looked at. */
  add(place = this.#emptiestPlace(), focus = false) {
    if (this.#tokens.length === MOST_TOKENS) return;
    const scale = this.#tokens[this.#selected]?.scale ?? 1;
    this.#change([...this.#tokens, { ...place, scale }], this.#tokens.length, focus);
  }

  /** Removes the selected token; the last one stays. */
  remove() {
    if (this.#tokens.length < 2) return;
    const rest = this.#tokens.filter((_, i) => i !== this.#selected);
    this.#change(rest, Math.min(this.#selected, rest.length - 1), document.activeElement?.closest?.(".token") != null);
  }

  #changeSelected(values) {
    const tokens = [...this.#tokens];
    tokens[this.#selected] = { ...tokens[this.#selected], ...values };
    this.#change(tokens, this.#selected);
  }

  #change(tokens, selected, focus = false) {
    [this.#tokens, this.#selected] = [tokens, selected];
    this.#redraw();
    if (focus) {
      this.#drawTokens();
      this.#overlay.children[selected].focus();
    }
    this.#listener.change(tokens, selected);
  }

  /** Of a 12 × 12 lattice, the point that is farthest from all tokens. */
  #emptiestPlace() {
    let [best, farthest] = [null, -1];
    for (let row = 0; row < 12; row++) {
      for (let column = 0; column < 12; column++) {
        const place = { x: (column + 0.5) / 12, y: (row + 0.5) / 12 };
        const distance = Math.min(...this.#tokens.map((token) => Math.hypot(token.x - place.x, token.y - place.y)));
        if (distance > farthest) [best, farthest] = [place, distance];
      }
    }
    return best;
  }

  // ---------------------------------------------------------------------------------------------------------- input

  #place(event) {
    const box = this.#overlay.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  }

  /** The token whose window holds a place, and of several the one with the nearest centre; -1 where there is none. */
  #tokenAt(place) {
    const { width, height } = this.#frame;
    let [found, nearest] = [-1, Infinity];
    this.#tokens.forEach(({ x, y, scale }, i) => {
      const [across, down] = [Math.abs(x - place.x) * width, Math.abs(y - place.y) * height];
      const distance = Math.hypot(across, down);
      if (Math.max(across, down) <= (scale * this.#patchSize) / 2 && distance < nearest) [found, nearest] = [i, distance];
    });
    return found;
  }

  #onPointer(event) {
    if (!this.#frame || event.button !== 0 || !event.isPrimary) return;
    const isHandle = event.target.classList.contains("handle");
    const index = isHandle ? this.#selected : this.#tokenAt(this.#place(event));
    if (index === -1) return;
    event.preventDefault(); // no selection of text; focus is set by hand
    this.select(index);
    this.#drawTokens();
    this.#overlay.children[index].focus({ preventScroll: true });
    const start = this.#place(event);
    const token = this.#tokens[index];
    const own = (this.#drag = {});
    const move = (moved) => {
      if (moved.pointerId !== event.pointerId || this.#drag !== own) return;
      const now = this.#place(moved);
      if (isHandle) {
        const { width, height } = this.#frame;
        const half = Math.max(Math.abs(now.x - token.x) * width, Math.abs(now.y - token.y) * height);
        this.resize((2 * half) / this.#patchSize);
      } else {
        this.#changeSelected({ x: clamp(token.x + now.x - start.x, 0, 1), y: clamp(token.y + now.y - start.y, 0, 1) });
      }
    };
    const end = (ended) => {
      if (ended.pointerId !== event.pointerId) return;
      this.#overlay.removeEventListener("pointermove", move);
      this.#overlay.removeEventListener("pointerup", end);
      this.#overlay.removeEventListener("pointercancel", end);
    };
    this.#overlay.setPointerCapture(event.pointerId);
    this.#overlay.addEventListener("pointermove", move);
    this.#overlay.addEventListener("pointerup", end);
    this.#overlay.addEventListener("pointercancel", end);
  }

  #onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { width, height } = this.#frame;
    const pixels = event.shiftKey ? this.#patchSize : 1;
    const token = this.#tokens[this.#selected];
    const move = (x, y) =>
      this.#changeSelected({ x: clamp(token.x + x / width, 0, 1), y: clamp(token.y + y / height, 0, 1) });
    const step = (by) => {
      const index = (this.#selected + by + this.#tokens.length) % this.#tokens.length;
      this.select(index);
      this.#drawTokens();
      this.#overlay.children[index].focus();
    };
    const actions = {
      ArrowLeft: () => move(-pixels, 0),
      ArrowRight: () => move(pixels, 0),
      ArrowUp: () => move(0, -pixels),
      ArrowDown: () => move(0, pixels),
      PageUp: () => step(-1),
      PageDown: () => step(1),
      "+": () => this.resize(token.scale * 1.1),
      "=": () => this.resize(token.scale * 1.1),
      "-": () => this.resize(token.scale / 1.1),
      Delete: () => this.remove(),
      Backspace: () => this.remove(),
      Insert: () => this.add(undefined, true),
      a: () => this.add(undefined, true),
    };
    if (!token || !actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }

  // -------------------------------------------------------------------------------------------------------- drawing

  #redraw() {
    if (!this.#isDrawn) return;
    this.#isDrawn = false;
    requestAnimationFrame(() => {
      this.#isDrawn = true;
      if (!this.#frame) return;
      this.#drawTokens();
      this.#drawPicture();
      this.#drawReading();
    });
  }

  /** The part of the image that the model sees, over a whole canvas. */
  #drawImage(bitmap, canvas) {
    const { resizedWidth, resizedHeight, left, top, width, height } = this.#frame;
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.fillRect(0, 0, canvas.width, canvas.height);
    const [across, down] = [canvas.width / width, canvas.height / height];
    context.drawImage(bitmap, -left * across, -top * down, resizedWidth * across, resizedHeight * down);
  }

  /** Left, top and side of each window, in pixels of a canvas. */
  #windows(canvas) {
    const factor = canvas.width / this.#frame.width;
    return this.#tokens.map(({ x, y, scale }) => {
      const side = scale * this.#patchSize * factor;
      return [x * canvas.width - side / 2, y * canvas.height - side / 2, side];
    });
  }

  #drawPicture() {
    const canvas = this.#picture;
    const context = canvas.getContext("2d");
    context.drawImage(this.#dimmed, 0, 0);
    for (const [left, top, side] of this.#windows(canvas)) {
      context.drawImage(this.#bright, left, top, side, side, left, top, side, side);
    }
  }

  /** Each window as the model has it: as many samples a side as a patch has pixels, small windows above large ones. */
  #drawReading() {
    const canvas = this.#reading;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.fillStyle = "#161616";
    context.fillRect(0, 0, canvas.width, canvas.height);
    const goals = this.#windows(canvas);
    const sources = this.#windows(this.#seen);
    const order = [...goals.keys()].sort((a, b) => goals[b][2] - goals[a][2]);
    for (const index of order) {
      const [x, y, side] = goals[index];
      context.drawImage(this.#sampleOf(this.#tokens[index], sources[index]), x, y, side, side);
    }
  }

  /** The samples of a token, kept as long as it is. */
  #sampleOf(token, [left, top, side]) {
    let sample = this.#samples.get(token);
    if (!sample) {
      const size = this.#patchSize;
      sample = new OffscreenCanvas(size, size);
      const context = sample.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(this.#seen, left, top, side, side, 0, 0, size, size);
      this.#samples.set(token, sample);
    }
    return sample;
  }

  #drawTokens() {
    const { width, height } = this.#frame;
    const nodes = this.#overlay.children;
    while (nodes.length > this.#tokens.length) nodes[nodes.length - 1].remove();
    while (nodes.length < this.#tokens.length) this.#overlay.append(newToken(nodes.length));
    this.#tokens.forEach(({ x, y, scale }, i) => {
      const node = nodes[i];
      const side = scale * this.#patchSize;
      node.setAttribute("transform", `translate(${x * width} ${y * height})`);
      const [rectangle, dot, handle] = node.children;
      setAttributes(rectangle, { x: -side / 2, y: -side / 2, width: side, height: side });
      setAttributes(dot, { r: width / 120 });
      const isSelected = i === this.#selected;
      const grip = Math.max(width / 36, (IS_TOUCHED ? 22 : 0) * (width / (this.#overlay.clientWidth || width)));
      setAttributes(handle, { x: side / 2 - grip / 2, y: side / 2 - grip / 2, width: grip, height: grip });
      node.classList.toggle("selected", isSelected);
      node.tabIndex = isSelected ? 0 : -1;
      const place = `${Math.round(100 * x)} % from the left, ${Math.round(100 * y)} % from the top`;
      node.setAttribute(
        "aria-label",
        `Token ${i + 1} of ${this.#tokens.length}: ${place}, window of ${scale.toFixed(2)} patches`,
      );
    });
  }
}

function newToken(index) {
  const node = document.createElementNS(SVG, "g");
  node.classList.add("token");
  node.dataset.index = index;
  node.setAttribute("role", "button");
  node.setAttribute("aria-roledescription", "token");
  for (const [name, kind] of [["rect", "window"], ["circle", "dot"], ["rect", "handle"]]) {
    const child = document.createElementNS(SVG, name);
    child.classList.add(kind);
    node.append(child);
  }
  return node;
}

function setAttributes(node, values) {
  for (const [name, value] of Object.entries(values)) node.setAttribute(name, value);
}

function clamp(value, lowest, highest) {
  return Math.min(Math.max(value, lowest), highest);
}
