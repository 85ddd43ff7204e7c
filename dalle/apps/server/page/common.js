// What all parts of the page share. It talks to /v1 of the server that it came from, and to no other.
export const $ = (id) => document.getElementById(id);
export const SAMPLING = ["guidance", "guidance_until", "temperature", "top_k", "top_p", "agreement"];
export const BROKEN_OFF = "The server broke off before it was done: try again.";  // a proxy may end a stream as if it were whole
export const shared = { model: null };  // entry of /v1/models

export const say = (text) => { $("message").textContent = text; };
export const random = () => String(crypto.getRandomValues(new Uint32Array(1))[0] >>> 1);
export const fileUrl = (b64) => `data:image/png;base64,${b64}`;

export async function call(path, body, signal) {
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

export async function attempt(work) {
  say("");
  try { await work(); } catch (error) {
    if (error.name !== "AbortError") say(error instanceof TypeError ? "The server cannot be reached." : error.message);
  }
}

export async function* events(answer) {
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

export function tile() {
  const button = document.createElement("button");
  button.className = "tile";
  button.disabled = true;
  button.setAttribute("aria-label", "An image that is being drawn");
  return button;
}

export function fill(button, image) {
  const picture = button.querySelector("img") ?? document.createElement("img");
  picture.src = image.url;
  picture.alt = image.label || image.prompt || "an image without a caption";  // what it is, where no words were drawn
  const line = document.createElement("span");
  line.textContent = image.score === null ? "" : `fits ${image.score.toFixed(3)}`;
  button.removeAttribute("aria-label");
  button.replaceChildren(picture, line);
}

export async function canvasOf(url, width, height) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = width ?? image.naturalWidth;
  canvas.height = height ?? image.naturalHeight;
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return { canvas, blob: () => new Promise((resolve) => canvas.toBlob(resolve, "image/png")) };
}

export function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

// A small picture of a chosen file beside its field
export function preview(...names) {
  for (const input of names.map($)) {
    const small = document.createElement("img");
    Object.assign(small, { className: "small", alt: "", hidden: true });
    small.onload = () => URL.revokeObjectURL(small.src);
    small.onerror = () => { small.hidden = true; };
    (input.closest(".row") ?? input).after(small);
    input.addEventListener("change", () => {
      const [file] = input.files;
      small.hidden = !file;
      if (file) small.src = URL.createObjectURL(file);
    });
  }
}

// A grid of finished images that open in the large view
export function show(grid, images, enlarge) {
  $(grid).replaceChildren(...images.map((image) => {
    const button = tile();
    fill(button, image);
    button.disabled = false;
    button.onclick = () => enlarge(image);
    return button;
  }));
}

// What can be stopped: its buttons, its bar, and what is said meanwhile. `name` begins the ids of all of them.
export class Work {
  constructor(name, ...buttons) {
    Object.assign(this, { name, buttons, running: null });
    this.element("stop").onclick = () => this.running?.abort();
  }

  element(part) { return $(`${this.name}${part}`); }

  async run(work) {
    this.running?.abort();
    const own = this.running = new AbortController();
    this.busy(true, "Waiting for the server");
    let end = "";
    try { await work(own.signal); } catch (error) {
      end = error.name === "AbortError" ? "Stopped." : "";
      throw error;
    } finally {
      if (this.running === own) { this.running = null; this.busy(false, end); }
    }
  }

  busy(on, text) {
    for (const button of this.buttons) button.disabled = on;
    this.element("stop").hidden = this.element("progress").hidden = !on;
    this.element("progress").removeAttribute("value");
    this.element("status").textContent = text;
    this.began = performance.now();
  }

  at(share) {
    const left = Math.ceil((performance.now() - this.began) / 1000 * (1 - share) / share);
    this.element("progress").value = share;
    const time = left > 99 ? `${Math.round(left / 60)} min` : `${left} s`;
    this.element("status").textContent = left > 0 ? `About ${time} left` : "";
  }
}
