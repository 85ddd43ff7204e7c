// A model card, which is Markdown, as elements: headings, paragraphs, lists, tables, code. Other things stay as they are written.
const PARTS = /`([^`]+)`|!?\[([^\]]*)\]\(([^)\s]*)\)|\*\*([^*]+)\*\*/g;

function element(tag, ...children) {
  const one = document.createElement(tag);
  one.append(...children);
  return one;
}

function inline(text) {
  const parts = [];
  let at = 0;
  for (const found of text.matchAll(PARTS)) {
    const [whole, code, words, address, strong] = found;
    parts.push(text.slice(at, found.index));
    if (code) parts.push(element("code", code));
    else if (strong) parts.push(element("strong", strong));
    else if (/^https?:/.test(address)) parts.push(Object.assign(element("a", words), { href: address, rel: "noreferrer" }));
    else if (!whole.startsWith("!")) parts.push(words);  // files beside the card are not served
    at = found.index + whole.length;
  }
  return [...parts, text.slice(at)];
}

function table(lines) {
  const rows = lines.filter((line) => !/^[\s|:-]+$/.test(line)).map((line) => line.trim().replace(/^\||\|$/g, "").split("|"));
  return element("table", ...rows.map((cells, number) => element("tr", ...cells.map((cell) => element(number || !cell.trim() ? "td" : "th", ...inline(cell.trim()))))));
}

function list(text) {
  return element("ul", ...text.split(/^[-*] /m).slice(1).map((item) => element("li", ...inline(item.replace(/\s+/g, " ")))));
}

function block(text) {
  const heading = text.match(/^#+ (.*)/);
  if (heading) return [element("h2", ...inline(heading[1])), ...blocks(text.slice(heading[0].length))];
  if (text.startsWith("|")) return [table(text.split("\n"))];
  if (/^[-*] /.test(text)) return [list(text)];
  return [element("p", ...inline(text.replace(/\s+/g, " ")))].filter((one) => one.textContent.trim());
}

function blocks(text) { return text.split(/\n\s*\n/).map((one) => one.trim()).filter(Boolean).flatMap(block); }

export function card(text) {
  const pieces = text.replace(/\r/g, "").replace(/^---\n.*?\n---\n/s, "").split(/^```.*$/m);
  return pieces.flatMap((piece, number) => number % 2 ? [element("pre", piece.trim())] : blocks(piece));
}
