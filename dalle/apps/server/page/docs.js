// The API of this server, from its own /openapi.json.
import { $, attempt, call } from "./common.js";

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function typeOf(schema) {
  if (schema.anyOf) return schema.anyOf.map(typeOf).filter((one) => one !== "null").join(" or ");
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(", ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${typeOf(schema.items ?? {})}`;
  const low = schema.minimum ?? schema.exclusiveMinimum, high = schema.maximum ?? schema.exclusiveMaximum;
  // The browser has rounded what is above 2^53; such a limit is 2^n - 1
  const end = Number.isInteger(high) && !Number.isSafeInteger(high) ? `below 2^${Math.round(Math.log2(high))}` : `to ${high}`;
  const range = [low === undefined ? "" : `from ${low}`, high === undefined ? "" : end].filter(Boolean).join(" ");
  const kind = schema.format === "binary" ? "file" : schema.type ?? "anything";
  return range ? `${kind}, ${range}` : kind;
}

function fields(schema) {
  const table = element("table"), head = table.createTHead().insertRow(), body = table.createTBody();
  for (const title of ["Field", "Type", "If not given", "What it is"]) head.append(element("th", title, { scope: "col" }));
  for (const [name, one] of Object.entries(schema.properties)) {
    const row = body.insertRow();
    row.insertCell().append(element("code", name));
    row.insertCell().textContent = typeOf(one);
    const needed = schema.required?.includes(name);
    row.insertCell().textContent = needed ? "must be given" : one.default == null ? "" : JSON.stringify(one.default);
    row.insertCell().textContent = one.description ?? "";
  }
  return table;
}

function tried(path, schema) {
  const form = element("form"), answer = element("pre", "", { role: "status" });
  let box = null;
  if (schema) {
    const first = Object.fromEntries((schema.required ?? []).map((name) => [name, name === "prompt" ? "a red heart" : ""]));
    box = element("textarea", "", { rows: 4, "aria-label": `Body of ${path}`, spellcheck: "false" });
    box.value = JSON.stringify(first, null, 2);
    form.append(box);
  }
  form.append(element("button", "Send"), answer);
  form.onsubmit = (event) => {
    event.preventDefault();
    answer.textContent = "";
    attempt(async () => {
      const text = await (await call(path, box ? read(box.value) : undefined)).text();
      answer.textContent = text.length > 4000 ? `${text.slice(0, 4000)}\n(${text.length} characters)` : text;
    });
  };
  return form;
}

function read(text) {
  try { return JSON.parse(text); } catch { throw new Error("The body is no JSON."); }
}

function endpoint(path, method, entry) {
  const box = element("details", "", { class: "endpoint" });
  box.append(element("summary", `${method.toUpperCase()} ${path}`), element("p", entry.description ?? entry.summary ?? ""));
  const [[kind, content] = []] = Object.entries(entry.requestBody?.content ?? {});
  if (content) box.append(element("p", kind === "application/json" ? "JSON:" : "A form:"), fields(content.schema));
  if (!path.includes("{") && kind !== "multipart/form-data") box.append(tried(path, content?.schema));
  return box;
}

async function start() {
  const schema = await (await call("/openapi.json")).json();
  $("token-form").hidden = true;
  $("endpoints").replaceChildren(...Object.entries(schema.paths).flatMap(
    ([path, methods]) => Object.entries(methods).map(([method, entry]) => endpoint(path, method, entry))));
}

$("token-form").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem("dalle.token", $("token").value.trim());
  attempt(start);
};
attempt(start);
