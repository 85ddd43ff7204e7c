// Search and classify.
import { $, attempt, call, dataUrl, fill, preview } from "./common.js";

let searches = 0;

async function found(hit) {
  const box = document.createElement("div");
  box.className = "tile";
  try {
    const url = URL.createObjectURL(await (await call(`/v1/search/images/${hit.number}`)).blob());
    fill(box, { url, prompt: hit.caption || hit.path, score: hit.probability ?? hit.score });
    const picture = box.querySelector("img");
    picture.onload = picture.onerror = () => URL.revokeObjectURL(url);
  } catch { box.textContent = "gone"; }  // its file: the others are still there
  return box;
}

async function search() {
  const own = ++searches;
  const { data } = await (await call("/v1/search", { text: $("query").value, top: 24 })).json();
  const tiles = await Promise.all(data.map(found));
  if (own !== searches) return;  // a later one has been asked for
  $("found").textContent = data.length ? "" : "Nothing was found.";
  $("hits").replaceChildren(...tiles);
}

async function classify() {
  const labels = $("labels").value.split(",").map((name) => name.trim()).filter(Boolean);
  const image = await dataUrl($("classify-image").files[0]);
  const { data } = await (await call("/v1/classify", { image, labels })).json();
  $("doubt").textContent = data[0].doubtful ? "Perhaps none of these: words for other things fit better." : "";
  $("classes").replaceChildren(...data[0].labels.map(({ label, probability }) => {
    const item = document.createElement("li");
    item.textContent = `${label}: ${(100 * probability).toFixed(1)} %`;
    return item;
  }));
}

$("search-form").onsubmit = (event) => { event.preventDefault(); attempt(search); };
$("classify-form").onsubmit = (event) => { event.preventDefault(); attempt(classify); };
preview("classify-image");
