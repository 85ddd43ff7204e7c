// History, links that repeat a drawing, and images that come back.
import { $, SAMPLING, canvasOf, dataUrl, fill, say, shared, tile } from "./common.js";
import { FIELDS, draw } from "./draw.js";
import { enlarge } from "./large.js";

const HISTORY = "dalle.history", KEPT = 24, DIGITS = 12;  // of a model's hash, in links
const OTHER_MODEL = "Another model drew this image: this one will draw another.";

function link(values) { return `#${new URLSearchParams(values)}`; }

function past() { try { return JSON.parse(localStorage.getItem(HISTORY)) ?? []; } catch { return []; } }

export async function remember(values, url, edited) {
  const small = (await canvasOf(url, 64, 64)).canvas.toDataURL("image/png");
  const model = (shared.model.sha256 ?? "").slice(0, DIGITS);
  const list = [{ values: { ...values, model }, small, edited }, ...past()].slice(0, KEPT);
  try { localStorage.setItem(HISTORY, JSON.stringify(list)); } catch { say("The browser has no room for the history."); }
  showHistory();
}

export function showHistory() {
  const list = past();
  $("history-title").hidden = !list.length;
  $("history").replaceChildren(...list.map(({ values, small, edited }) => {
    const item = document.createElement("li"), image = document.createElement("img");
    const text = document.createElement(edited ? "span" : "a");
    image.src = small;
    image.alt = "";
    text.textContent = `${values.prompt || "without a caption"}${edited ? " (from an image)" : ""}`;
    if (!edited) text.href = link(values);  // a link cannot hold the image that was gone on from
    item.append(image, text);
    return item;
  }));
}

function setFields(values) {
  $("prompt").value = values.prompt ?? "";
  for (const name of FIELDS) $(name).value = values[name] ?? "";
  $("n").value ||= 1;
  $("negative-field").hidden = !shared.model?.negative && !$("negative").value;  // what is refused can be seen and cleared
}

export async function fromLink() {
  const values = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  if (!("prompt" in values)) return;
  setFields(values);
  await draw();
  if (!(shared.model.sha256 ?? "").startsWith(values.model ?? "")) say(`${OTHER_MODEL} ${$("message").textContent}`);
}

function textsOf(buffer) {  // iTXt chunks of a PNG, which are not compressed in ours
  const view = new DataView(buffer), texts = {}, latin = new TextDecoder("latin1"), utf8 = new TextDecoder();
  if (buffer.byteLength < 8 || view.getUint32(0) !== 0x89504e47) return texts;
  for (let at = 8; at + 12 <= buffer.byteLength;) {
    const length = view.getUint32(at), data = new Uint8Array(buffer, at + 8, Math.min(length, buffer.byteLength - at - 8));
    if (latin.decode(new Uint8Array(buffer, at + 4, 4)) === "iTXt") {
      const key = data.indexOf(0), tongue = data.indexOf(0, key + 3), word = data.indexOf(0, tongue + 1);
      if (data[key + 1] === 0) texts[latin.decode(data.subarray(0, key))] = utf8.decode(data.subarray(word + 1));
    }
    at += length + 12;
  }
  return texts;
}

export async function opened(file) {
  if (!file) return;
  const texts = textsOf(await file.arrayBuffer()), ours = "options" in texts;
  const url = URL.createObjectURL(file);
  const { canvas } = await canvasOf(url).catch(() => { throw new Error(`${file.name} is no image that can be read.`); })
    .finally(() => URL.revokeObjectURL(url));
  const image = { url: canvas.toDataURL("image/png"), prompt: texts.prompt ?? "", seed: texts.seed ?? null, score: null };
  if (ours) image.url = await dataUrl(file);  // with its metadata
  const button = tile();
  fill(button, image);
  button.disabled = false;
  button.onclick = () => enlarge(image);
  $("grid").replaceChildren(button);
  if (!ours) { $("status").textContent = ""; return; }
  const used = JSON.parse(texts.options);
  setFields({ ...used, prompt: texts.prompt, seed: texts.seed, n: 1, candidates: undefined });
  $("options").open = true;
  $("status").textContent = "Its options are back.";
  const off = SAMPLING.filter((name) => (used[name] ?? null) === null && shared.model.sampling[name] !== null);
  if (texts.model !== shared.model.sha256) say(OTHER_MODEL);
  else if (off.length) say(`It was drawn without ${off.join(", ")}, which an empty field leaves at the model's own value.`);
  else if (used.image) say("It was drawn from another image, which its file does not hold.");
}
