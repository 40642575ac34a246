/**
 * The state of the page in its address, so that a link shows what its sender saw:
 * `#image=2&placement=isotropic&tokens=25&windows=cover`; a step of a recorded search, `#image=2&step=3`; or tokens that were
 * moved by hand, `#image=2&at=...`: three unsigned 16-bit numbers per token, x and y in 1/65535 of the image and the size in
 * 1/256 patch, as base64url.
 */

const STEPS = 65535;
const SIZE_STEPS = 256;
export const MOST_TOKENS = 1024; // a link must not keep its reader waiting

/** Of a state: `step` is null but where one is shown, and so are `tokens` but where they were moved by hand. */
export function toHash({ image, placement, numTokens, windows, step, tokens }) {
  const parameters = new URLSearchParams();
  if (image !== null) parameters.set("image", image);
  if (step !== null) {
    parameters.set("step", step);
  } else if (tokens) {
    parameters.set("at", packTokens(tokens));
  } else {
    parameters.set("placement", placement);
    parameters.set("tokens", numTokens);
    parameters.set("windows", windows);
  }
  return `#${parameters}`;
}

/** The reverse, of what is there: other fields are undefined. What makes no sense is left out. */
export function fromHash(hash) {
  const parameters = new URLSearchParams(hash.replace(/^#/, ""));
  return {
    image: parameters.get("image") ?? undefined,
    placement: parameters.get("placement") ?? undefined,
    numTokens: wholeNumber(parameters.get("tokens")),
    windows: parameters.get("windows") ?? undefined,
    step: wholeNumber(parameters.get("step")),
    tokens: parameters.has("at") ? unpackTokens(parameters.get("at")) : undefined,
  };
}

function wholeNumber(text) {
  return /^\d{1,6}$/.test(text ?? "") ? Number(text) : undefined;
}

/** @param {{x: number, y: number, scale: number}[]} tokens positions in [0, 1], sizes in patches */
export function packTokens(tokens) {
  const numbers = new DataView(new ArrayBuffer(6 * tokens.length));
  const whole = (value, least) => Math.min(STEPS, Math.max(least, Math.round(value)));
  tokens.forEach(({ x, y, scale }, i) => {
    numbers.setUint16(6 * i, whole(x * STEPS, 0));
    numbers.setUint16(6 * i + 2, whole(y * STEPS, 0));
    numbers.setUint16(6 * i + 4, whole(scale * SIZE_STEPS, 1));
  });
  const text = String.fromCharCode(...new Uint8Array(numbers.buffer));
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** @returns {{x: number, y: number, scale: number}[] | undefined} nothing where it is no such text */
export function unpackTokens(text) {
  let bytes;
  try {
    bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));
  } catch {
    return undefined;
  }
  if (bytes.length === 0 || bytes.length % 6 || bytes.length / 6 > MOST_TOKENS) return undefined;
  const numbers = new DataView(bytes.buffer);
  return Array.from({ length: bytes.length / 6 }, (_, i) => ({
    x: numbers.getUint16(6 * i) / STEPS,
    y: numbers.getUint16(6 * i + 2) / STEPS,
    scale: Math.max(1, numbers.getUint16(6 * i + 4)) / SIZE_STEPS,
  }));
}
