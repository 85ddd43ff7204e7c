// Variations and blends, by an unCLIP.
import { $, Work, attempt, call, dataUrl, fileUrl, preview, random, shared, show } from "./common.js";
import { enlarge } from "./large.js";

const work = new Work("unclip-", $("vary-go"), $("blend-go"));

const count = (wanted) => Math.min(wanted, shared.model?.limits.n ?? wanted);

async function images(path, body, label, signal) {
  const { data } = await (await call(path, { ...body, seed: random() }, signal)).json();
  show("varied", data.map((one) => ({ url: fileUrl(one.b64_json), prompt: "", label, seed: String(one.seed), score: null })), enlarge);
}

async function vary(signal) {
  const body = { image: await dataUrl($("vary-image").files[0]), n: count(4), eta: Number($("eta").value) };
  await images("/v1/vary", body, "a variation", signal);
}

async function item(name) {  // an image if there is one, else the text
  const [file] = $(`${name}-image`).files, text = $(`${name}-text`).value.trim();
  if (!file && !text) throw new Error("Give an image or words on both sides.");
  return file ? dataUrl(file) : text;
}

async function blend(signal) {
  const frames = count(5), made = frames < 2 ? { weights: [1, 1] } : { frames };  // one image is what lies in the middle
  await images("/v1/blend", { items: [await item("first"), await item("second")], ...made }, "a blend", signal);
}

$("vary-form").onsubmit = (event) => { event.preventDefault(); attempt(() => work.run(vary)); };
$("blend-form").onsubmit = (event) => { event.preventDefault(); attempt(() => work.run(blend)); };
preview("vary-image", "first-image", "second-image");
