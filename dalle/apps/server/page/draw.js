// Drawing: options, the stream of events, and the grid of candidates.
import { $, BROKEN_OFF, SAMPLING, Work, attempt, call, events, fileUrl, fill, random, say, shared, tile } from "./common.js";
import { enlarge } from "./large.js";
import { remember } from "./history.js";

export const FIELDS = ["n", "candidates", "seed", ...SAMPLING, "negative"];
const TEXTS = ["prompt", "negative", "seed"];  // a seed too: JavaScript has no whole numbers above 2^53, and the server has
const PREVIEWS = 8;  // of an image: each is decoded and sent, which takes longer the larger images are
const work = new Work("", $("go"));

function options() {
  const values = {};
  for (const name of FIELDS) if ($(name).value !== "" && !$(name).disabled) values[name] = $(name).value;
  values.seed ??= random();
  if (values.candidates && +values.candidates < +values.n) values.candidates = values.n;  // all are kept then
  return values;
}

function numbers(values) {
  return Object.fromEntries(Object.entries(values).map(
    ([name, value]) => [name, TEXTS.includes(name) ? value : Number(value)]));
}

export function draw(path = "/v1/images/generations", files = null, extra = {}) {
  return attempt(async () => {
    if (!shared.model) throw new Error("The model is not there yet.");
    const values = { prompt: $("prompt").value.trim(), ...options(), ...extra };
    const stream = { stream: true, partial_images: Math.min(PREVIEWS, shared.model.grid[0]) };
    let body = { ...numbers(values), ...stream };
    if (files) {
      body = new FormData();
      for (const [name, value] of Object.entries({ ...values, ...stream })) body.append(name, String(value));
      for (const [name, file] of Object.entries(files)) body.append(name, file, `${name}.png`);
    }
    await work.run(async (signal) => follow(await call(path, body, signal), values, files !== null));
  });
}

function clickable(pairs) { for (const [button, image] of pairs) { button.disabled = false; button.onclick = () => enlarge(image); } }

async function follow(answer, values, edited) {
  const count = Number(values.candidates ?? values.n), tiles = [], done = [], parts = new Map(), shares = new Array(count).fill(0);
  work.began = performance.now();
  $("grid").replaceChildren(...Array.from({ length: count }, (_, i) => (tiles[i] = tile())));
  try {
    for await (const event of events(answer)) {
      if (event.error) throw new Error(event.error.message);
      const at = event.candidate_index, seed = String(BigInt(values.seed) + BigInt(at));
      const image = { url: fileUrl(event.b64_json), prompt: values.prompt, seed, score: event.score ?? null };
      fill(tiles[at], image);
      shares[at] = event.progress ?? 1;
      parts.set(tiles[at], image);
      if (event.type.endsWith(".completed")) {
        parts.delete(tiles[at]);
        done.push([tiles[at], image]);
        if (event.notes) say(event.notes.join(" "));
      }
      work.at(shares.reduce((a, b) => a + b) / count);
    }
    if (done.length < Math.min(count, values.n)) throw new Error(BROKEN_OFF);
  } catch (error) {  // what there is stays, and can be gone on from
    for (const button of tiles) if (!button.querySelector("img")) button.remove();
    for (const button of parts.keys()) button.querySelector("span").textContent = "stopped";
    clickable([...done, ...parts]);
    throw error;
  }
  clickable(done);
  $("grid").replaceChildren(...done.map(([button]) => button));  // best first, where CLIP has chosen
  if (done.length) await remember(values, done[0][1].url, edited);
}
