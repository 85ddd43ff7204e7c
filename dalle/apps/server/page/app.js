// The page: which parts there are, tabs, and what is clicked, typed and dropped.
import { $, SAMPLING, attempt, call, shared } from "./common.js";
import { card } from "./card.js";
import { draw } from "./draw.js";
import { fromLink, opened, showHistory } from "./history.js";
import "./clip.js";
import "./paint.js";
import "./unclip.js";

async function start() {
  const model = shared.model = (await (await call("/v1/models")).json()).data[0];
  $("token-form").hidden = true;
  $("model").textContent = `Model: ${model.id}, images of ${model.image_size}×${model.image_size} pixels`;
  for (const name of SAMPLING) $(name).placeholder = model.sampling[name] ?? "off";
  $("n").max = model.limits.n;
  $("n").value = Math.min($("n").value, model.limits.n);
  $("candidates").max = model.limits.candidates;
  $("candidates").disabled = !model.clip;
  $("negative-field").hidden = !model.negative;
  if (model.clip && model.limits.candidates >= 8) $("candidates").value = 8;
  $("tab-paint").hidden = !model.paint;
  $("tab-unclip").hidden = !model.unclip;
  $("tab-search").hidden = model.index === null;
  $("tab-classify").hidden = !model.clip;
  $("card-box").hidden = !model.card;
  $("card").replaceChildren(...card(model.card ?? ""));
  await fromLink();
}

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

$("draw-form").onsubmit = (event) => { event.preventDefault(); draw(); };
$("token-form").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem("dalle.token", $("token").value.trim());
  attempt(start);
};
for (const [box, form] of [["prompt", "draw-form"], ["paint-prompt", "paint-form"]]) {
  $(box).onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $(form).requestSubmit(); }
  };
}
for (const button of $("examples").querySelectorAll("button")) button.onclick = () => { $("prompt").value = button.textContent; draw(); };
$("open").onchange = () => attempt(() => opened($("open").files[0]));
const field = (event) => event.target.matches?.("input[type=file]");  // which takes what is dropped itself
document.ondragover = (event) => {
  document.body.classList.toggle("over", !field(event));
  if (!field(event)) event.preventDefault();
};
document.ondragleave = () => document.body.classList.remove("over");
document.ondrop = (event) => {
  document.body.classList.remove("over");
  if (field(event)) return;
  event.preventDefault();
  choose($("tab-draw"));
  attempt(() => opened(event.dataTransfer.files[0]));
};
window.onhashchange = () => attempt(fromLink);
showHistory();
attempt(start);
