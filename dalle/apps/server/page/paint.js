// Painting: an image is changed step by step until CLIP finds the prompt in it.
import { $, BROKEN_OFF, Work, attempt, call, dataUrl, events, fileUrl, fill, preview, random } from "./common.js";
import { enlarge } from "./large.js";

const work = new Work("paint-", $("paint-go"));

function showPainting(event, prompt) {
  const image = { url: fileUrl(event.b64_json), prompt, seed: String(event.seed), score: null }, tile = $("painting");
  fill(tile, image);
  tile.hidden = false;
  tile.onclick = () => enlarge(image);
}

async function paint(signal) {
  const body = { prompt: $("paint-prompt").value.trim(), preset: $("preset").value, stream: true };
  body.seed = $("paint-seed").value || random();
  const [file] = $("paint-image").files;
  if (file) Object.assign(body, { image: await dataUrl(file), init_weight: 1 });
  const answer = await call("/v1/paint", body, signal);
  let whole = false;
  for await (const event of events(answer)) {
    if (event.error) throw new Error(event.error.message);
    showPainting(event, body.prompt);
    whole = event.type.endsWith(".completed");
    work.at(event.progress);
  }
  if (!whole) throw new Error(BROKEN_OFF);
}

$("paint-form").onsubmit = (event) => { event.preventDefault(); attempt(() => work.run(paint)); };
preview("paint-image");
