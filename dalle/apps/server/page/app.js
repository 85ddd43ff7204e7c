"use strict";
// Talks to /v1 of the server that it came from, and to no other.
const $ = (id) => document.getElementById(id);
const SAMPLING = ["guidance", "guidance_until", "temperature", "top_k", "top_p"];
const FIELDS = ["n", "candidates", "seed", ...SAMPLING];
const HISTORY = "dalle.history", KEPT = 24;
let model = null, running = null, shown = null, cells = new Set(), cursor = 0;

const say = (text) => { $("message").textContent = text; };
const random = () => String(crypto.getRandomValues(new Uint32Array(1))[0] >>> 1);
const fileUrl = (b64) => `data:image/png;base64,${b64}`;

async function call(path, body, signal) {
  const headers = {};
  const token = sessionStorage.getItem("dalle.token");
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body && !(body instanceof FormData)) { headers["Content-Type"] = "application/json"; body = JSON.stringify(body); }
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body, signal });
  if (answer.ok) return answer;
  if (answer.status === 401) $("token-form").hidden = false;
  const content = await answer.json().catch(() => null);
  throw new Error(content?.error?.message ?? `the server answered ${answer.status}`);
}

async function attempt(work) {
  say("");
  try { await work(); } catch (error) {
    if (error.name !== "AbortError") say(error instanceof TypeError ? "The server cannot be reached." : error.message);
  }
}

// The model

async function start() {
  model = (await (await call("/v1/models")).json()).data[0];
  $("token-form").hidden = true;
  $("model").textContent = `Model: ${model.id}, images of ${model.image_size}×${model.image_size} pixels`;
  for (const name of SAMPLING) $(name).placeholder = model.sampling[name] ?? "off";
  $("n").max = model.limits.n;
  $("candidates").max = model.limits.candidates;
  $("candidates").disabled = !model.clip;
  if (model.clip && model.limits.candidates >= 8) $("candidates").value = 8;
  $("tab-search").hidden = model.index === null;
  $("tab-classify").hidden = !model.clip;
  $("card-box").hidden = !model.card;
  $("card").textContent = model.card ?? "";
  await fromLink();
}

// Drawing

function options() {
  const values = {};
  for (const name of FIELDS) if ($(name).value !== "") values[name] = $(name).value;
  values.seed ??= random();
  if (values.candidates && +values.candidates < +values.n) values.candidates = values.n;  // all are kept then
  return values;
}

function numbers(values) {
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, name === "prompt" ? value : Number(value)]));
}

function draw(path = "/v1/images/generations", files = null, extra = {}) {
  return attempt(async () => {
    if (!model) throw new Error("The model is not there yet.");
    const values = { prompt: $("prompt").value.trim(), ...options(), ...extra };
    if (!Number.isSafeInteger(Number(values.seed))) throw new Error("The seed is too large for a browser: at most 2^53 - 1.");
    const stream = { stream: true, partial_images: Math.min(64, model.grid[0]) };
    let body = { ...numbers(values), ...stream };
    if (files) {
      body = new FormData();
      for (const [name, value] of Object.entries({ ...values, ...stream })) body.append(name, String(value));
      for (const [name, file] of Object.entries(files)) body.append(name, file, `${name}.png`);
    }
    running?.abort();
    const own = running = new AbortController();
    busy(true);
    try { await follow(await call(path, body, own.signal), values, files !== null); }
    catch (error) {
      if (error.name === "AbortError" && running === own) $("status").textContent = "Stopped.";
      throw error;
    } finally { if (running === own) { running = null; busy(false); } }
  });
}

function busy(on) {
  $("go").disabled = on;
  $("stop").hidden = !on;
  $("progress").hidden = !on;
  $("progress").value = 0;
  $("status").textContent = on ? "Waiting for the server" : $("status").textContent === "Stopped." ? "Stopped." : "";
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (text + value).split("\n\n");
    text = parts.pop();
    for (const part of parts) yield JSON.parse(part.slice(part.indexOf("\ndata: ") + 7));
  }
}

async function follow(answer, values, edited) {
  const count = Number(values.candidates ?? values.n), tiles = [], done = [], shares = new Array(count).fill(0);
  const began = performance.now();
  $("grid").replaceChildren(...Array.from({ length: count }, (_, i) => (tiles[i] = tile())));
  for await (const event of events(answer)) {
    if (event.error) throw new Error(event.error.message);
    const image = { url: fileUrl(event.b64_json), prompt: values.prompt, seed: event.seed, score: event.score ?? null };
    const at = event.candidate_index;
    fill(tiles[at], image);
    shares[at] = event.progress ?? 1;
    if (event.type.endsWith(".completed")) {
      done.push([tiles[at], image]);
      if (event.notes) say(event.notes.join(" "));
    }
    const share = shares.reduce((a, b) => a + b) / count;
    const left = Math.ceil((performance.now() - began) / 1000 * (1 - share) / share);
    $("progress").value = share;
    $("status").textContent = left > 0 ? `About ${left} s left` : "";
  }
  for (const [button, image] of done) { button.disabled = false; button.onclick = () => enlarge(image); }
  $("grid").replaceChildren(...done.map(([button]) => button));  // best first, where CLIP has chosen
  if (done.length) await remember(values, done[0][1].url, edited);
}

function tile() {
  const button = document.createElement("button");
  button.className = "tile";
  button.disabled = true;
  return button;
}

function fill(button, image) {
  const picture = button.querySelector("img") ?? document.createElement("img");
  picture.src = image.url;
  picture.alt = image.prompt || "an image without a caption";
  const line = document.createElement("span");
  line.textContent = image.score === null ? "" : `fits ${image.score.toFixed(3)}`;
  button.replaceChildren(picture, line);
}

// The large view and the mask

function enlarge(image) {
  shown = image;
  masking(false);
  $("large-image").src = $("download").href = image.url;
  $("large-image").alt = image.prompt;
  $("download").download = `dalle-seed${image.seed ?? ""}.png`;
  $("caption").textContent = [image.prompt, image.seed === null ? "" : `seed ${image.seed}`].filter(Boolean).join(" · ") || "Image";
  if (!$("large").open) $("large").showModal();
}

async function goOn(path, extra, mask) {
  const files = { image: await (await canvasOf(shown.url)).blob() };
  if (mask) files.mask = await mask.blob();
  $("prompt").value = shown.prompt || $("prompt").value;
  $("large").close();
  await draw(path, files, { seed: random(), ...extra });
}

async function canvasOf(url, width, height) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = width ?? image.naturalWidth;
  canvas.height = height ?? image.naturalHeight;
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return { canvas, blob: () => new Promise((resolve) => canvas.toBlob(resolve, "image/png")) };
}

function masking(on) {
  cells = new Set();
  cursor = 0;
  $("mask").hidden = $("mask-actions").hidden = !on;
  $("actions").hidden = on;
  if (on) { paintCells(); $("mask").focus(); }
}

function paintCells() {  // the model draws whole cells, so that whole cells are marked
  const [rows, columns] = model.grid, canvas = $("mask"), side = Math.max(1, Math.floor(512 / columns));
  canvas.width = columns * side;
  canvas.height = rows * side;
  const context = canvas.getContext("2d");
  context.fillStyle = "rgba(61, 78, 216, 0.65)";
  for (const cell of cells) context.fillRect((cell % columns) * side, Math.floor(cell / columns) * side, side, side);
  context.strokeStyle = "#000";
  context.lineWidth = 3;
  context.strokeRect((cursor % columns) * side + 1, Math.floor(cursor / columns) * side + 1, side - 2, side - 2);
  $("anew").disabled = cells.size === 0;
}

function pointed(event) {
  const [rows, columns] = model.grid, box = $("mask").getBoundingClientRect();
  const x = Math.floor((event.clientX - box.left) / box.width * columns), y = Math.floor((event.clientY - box.top) / box.height * rows);
  if (x < 0 || y < 0 || x >= columns || y >= rows) return;
  cells.add(cursor = y * columns + x);
  paintCells();
}

function moved(event) {
  const [rows, columns] = model.grid;
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step && event.key !== " ") return;
  event.preventDefault();
  if (step) {
    const x = Math.min(columns - 1, Math.max(0, cursor % columns + step[0]));
    cursor = Math.min(rows - 1, Math.max(0, Math.floor(cursor / columns) + step[1])) * columns + x;
  } else if (!cells.delete(cursor)) cells.add(cursor);
  paintCells();
}

async function drawInside() {
  const [, columns] = model.grid, whole = await canvasOf(shown.url);
  const context = whole.canvas.getContext("2d"), { width, height } = whole.canvas;
  const across = width / columns, down = height / model.grid[0];
  for (const cell of cells) {
    const x = Math.round((cell % columns) * across), y = Math.round(Math.floor(cell / columns) * down);
    context.clearRect(x, y, Math.ceil(across), Math.ceil(down));
  }
  await goOn("/v1/images/edits", {}, whole);
}

// History, links, and images that come back

function link(values) { return `#${new URLSearchParams(values)}`; }

function past() { try { return JSON.parse(localStorage.getItem(HISTORY)) ?? []; } catch { return []; } }

async function remember(values, url, edited) {
  const small = (await canvasOf(url, 64, 64)).canvas.toDataURL("image/png");
  const list = [{ values, small, edited }, ...past()].slice(0, KEPT);
  try { localStorage.setItem(HISTORY, JSON.stringify(list)); } catch { say("The browser has no room for the history."); }
  showHistory();
}

function showHistory() {
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
}

async function fromLink() {
  const values = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  if (!("prompt" in values)) return;
  setFields(values);
  await draw();
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

async function opened(file) {
  if (!file) return;
  const texts = textsOf(await file.arrayBuffer()), ours = "options" in texts;
  const { canvas } = await canvasOf(URL.createObjectURL(file)).catch(() => { throw new Error(`${file.name} is no image that can be read.`); });
  const image = { url: canvas.toDataURL("image/png"), prompt: texts.prompt ?? "", seed: texts.seed ?? null, score: null };
  if (ours) image.url = await dataUrl(file);  // with its metadata
  const button = tile();
  fill(button, image);
  button.disabled = false;
  button.onclick = () => enlarge(image);
  $("grid").replaceChildren(button);
  if (!ours) { $("status").textContent = "Click the image to go on from it."; return; }
  const used = JSON.parse(texts.options);
  setFields({ ...used, prompt: texts.prompt, seed: texts.seed, n: 1, candidates: undefined });
  $("options").open = true;
  $("status").textContent = "Its options are back.";
  const off = SAMPLING.filter((name) => (used[name] ?? null) === null && model.sampling[name] !== null);
  if (texts.model !== model.sha256) say("Another model drew this image: this one will draw another.");
  else if (off.length) say(`It was drawn without ${off.join(", ")}, which an empty field leaves at the model's own value.`);
  else if (used.image) say("It was drawn from another image, which its file does not hold.");
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

// Search and classify

async function search() {
  const { data } = await (await call("/v1/search", { text: $("query").value, top: 24 })).json();
  $("hits").replaceChildren(...await Promise.all(data.map(async (hit) => {
    const box = document.createElement("div");
    box.className = "tile";
    const blob = await (await call(`/v1/search/images/${hit.number}`)).blob();
    fill(box, { url: URL.createObjectURL(blob), prompt: hit.caption || hit.path, score: hit.score });
    return box;
  })));
}

async function classify() {
  const labels = $("labels").value.split(",").map((name) => name.trim()).filter(Boolean);
  const image = await dataUrl($("classify-image").files[0]);
  const { data } = await (await call("/v1/classify", { image, labels })).json();
  $("classes").replaceChildren(...data[0].labels.map(({ label, probability }) => {
    const item = document.createElement("li");
    item.textContent = `${label}: ${(100 * probability).toFixed(1)} %`;
    return item;
  }));
}

// What is clicked, typed and dropped

const tabs = [...document.querySelectorAll("[role=tab]")];
function choose(tab) {
  for (const one of tabs) {
    one.setAttribute("aria-selected", one === tab);
    one.tabIndex = one === tab ? 0 : -1;
    $(one.getAttribute("aria-controls")).hidden = one !== tab;
  }
  tab.focus();
}
for (const tab of tabs) {
  tab.onclick = () => choose(tab);
  tab.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], seen = tabs.filter((one) => !one.hidden);
    if (step) choose(seen[(seen.indexOf(tab) + step + seen.length) % seen.length]);
  };
}
const submitted = (id, work) => { $(id).onsubmit = (event) => { event.preventDefault(); work(); }; };
submitted("draw-form", () => draw());
submitted("search-form", () => attempt(search));
submitted("classify-form", () => attempt(classify));
submitted("token-form", () => { sessionStorage.setItem("dalle.token", $("token").value.trim()); attempt(start); });
$("prompt").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("draw-form").requestSubmit(); }
};
for (const button of $("examples").querySelectorAll("button")) button.onclick = () => { $("prompt").value = button.textContent; draw(); };
$("stop").onclick = () => running?.abort();
$("close").onclick = () => $("large").close();
$("more").onclick = () => attempt(() => goOn("/v1/images/variations", { keep_rows: 0.25 }));
$("half").onclick = () => attempt(() => goOn("/v1/images/variations", { keep_rows: 0.5 }));
$("paint").onclick = () => masking(true);
$("back").onclick = () => masking(false);
$("clear").onclick = () => { cells.clear(); paintCells(); };
$("anew").onclick = () => attempt(drawInside);
$("mask").onpointerdown = (event) => { $("mask").setPointerCapture(event.pointerId); pointed(event); };
$("mask").onpointermove = (event) => { if (event.buttons) pointed(event); };
$("mask").onkeydown = moved;
$("open").onchange = () => attempt(() => opened($("open").files[0]));
document.ondragover = (event) => { event.preventDefault(); document.body.classList.add("over"); };
document.ondragleave = () => document.body.classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  attempt(() => opened(event.dataTransfer.files[0]));
};
window.onhashchange = () => attempt(fromLink);
showHistory();
attempt(start);
