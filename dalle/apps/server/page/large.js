// The large view of an image, what can be drawn from it, and the mask.
import { $, attempt, canvasOf, random, shared } from "./common.js";
import { draw } from "./draw.js";

let shown = null, cells = new Set(), cursor = 0, last = null;  // last: place of the pointer in a stroke

export function enlarge(image) {
  shown = image;
  masking(false);
  $("large-image").src = $("download").href = image.url;
  const told = image.label ?? image.prompt;
  $("large-image").alt = told;
  $("download").download = `dalle-seed${image.seed ?? ""}.png`;
  $("caption").textContent = [told, image.seed === null ? "" : `seed ${image.seed}`].filter(Boolean).join(" · ") || "Image";
  if (!$("large").open) $("large").showModal();
}

async function goOn(path, extra, mask) {
  const files = { image: await (await canvasOf(shown.url)).blob() };
  if (mask) files.mask = await mask.blob();
  $("tab-draw").click();
  $("prompt").value = shown.prompt || $("prompt").value;
  $("large").close();
  await draw(path, files, { seed: random(), ...extra });
}

function masking(on) {
  cells = new Set();
  cursor = 0;
  $("mask").hidden = $("mask-actions").hidden = !on;
  $("actions").hidden = on;
  if (on) { paintCells(); $("mask").focus(); }
}

function paintCells() {  // the model draws whole cells, so that whole cells are marked
  const [rows, columns] = shared.model.grid, canvas = $("mask"), side = Math.max(1, Math.floor(512 / columns));
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

const BRUSH = 1 / 16;  // of the width, around the pointer: single cells of a fine grid are hard to hit

function mark(x, y) {  // around a place, in cells
  const [rows, columns] = shared.model.grid, radius = BRUSH * columns;
  for (let row = Math.max(0, Math.floor(y - radius)); row < Math.min(rows, y + radius); row++) {
    for (let column = Math.max(0, Math.floor(x - radius)); column < Math.min(columns, x + radius); column++) {
      const own = row === Math.floor(y) && column === Math.floor(x);
      if (own || Math.hypot(column + 0.5 - x, row + 0.5 - y) < radius) cells.add(row * columns + column);
    }
  }
}

function pointed(event) {
  const [rows, columns] = shared.model.grid, box = $("mask").getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width * columns, y = (event.clientY - box.top) / box.height * rows;
  const from = event.type === "pointerdown" || !last ? { x, y } : last;
  const steps = Math.ceil(2 * Math.hypot(x - from.x, y - from.y)) || 1;  // a quick stroke has few events
  for (let i = 1; i <= steps; i++) mark(from.x + (x - from.x) * i / steps, from.y + (y - from.y) * i / steps);
  last = { x, y };
  if (x >= 0 && y >= 0 && x < columns && y < rows) cursor = Math.floor(y) * columns + Math.floor(x);
  paintCells();
}

function moved(event) {
  const [rows, columns] = shared.model.grid;
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
  const [, columns] = shared.model.grid, whole = await canvasOf(shown.url);
  const context = whole.canvas.getContext("2d"), { width, height } = whole.canvas;
  const across = width / columns, down = height / shared.model.grid[0];
  for (const cell of cells) {
    const x = Math.round((cell % columns) * across), y = Math.round(Math.floor(cell / columns) * down);
    context.clearRect(x, y, Math.ceil(across), Math.ceil(down));
  }
  await goOn("/v1/images/edits", {}, whole);
}

$("close").onclick = () => $("large").close();
$("more").onclick = () => attempt(() => goOn("/v1/images/variations", { keep_rows: 0.25 }));
$("half").onclick = () => attempt(() => goOn("/v1/images/variations", { keep_rows: 0.5 }));
$("mask-on").onclick = () => masking(true);
$("back").onclick = () => masking(false);
$("clear").onclick = () => { cells.clear(); paintCells(); };
$("anew").onclick = () => attempt(drawInside);
$("mask").onpointerdown = (event) => { $("mask").setPointerCapture(event.pointerId); pointed(event); };
$("mask").onpointermove = (event) => { if (event.buttons) pointed(event); };
$("mask").onkeydown = moved;
