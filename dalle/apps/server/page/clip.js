// Search and classify.
import { $, attempt, call, dataUrl, fill, preview } from "./common.js";

async function search() {
  const { data } = await (await call("/v1/search", { text: $("query").value, top: 24 })).json();
  $("found").textContent = data.length ? "" : "Nothing was found.";
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
