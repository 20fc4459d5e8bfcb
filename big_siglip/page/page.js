"use strict";

const SHOWN = 10; // Labels of an image, until asked for all.
const byId = (id) => document.getElementById(id);
const chosen = []; // {file, url} of each image.
let limits = null;
let sigmoid = true; // Whether the model says how likely a pair is on its own.

/** Makes an element: attributes are properties, children nodes or texts. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function megabytes(bytes) {
  return `${Math.floor(bytes / 2 ** 20)} MB`;
}

function percent(share) {
  if (share > 0 && share < 0.0001) return "< 0.01 %";
  if (share < 1 && share > 0.9999) return "> 99.99 %";
  return `${(100 * share).toFixed(2)} %`;
}

/** Shows a message, or none. */
function complain(part, message) {
  const place = byId(`${part}-error`);
  place.textContent = message;
  place.hidden = !message;
}

/** Returns the JSON of an answer; what went wrong is thrown in words. */
async function ask(url, options) {
  let answer;
  try {
    answer = await fetch(url, options);
  } catch {
    throw new Error("The server cannot be reached. Is it still running?");
  }
  let content;
  try {
    content = await answer.json();
  } catch {
    throw new Error(`The server gave no answer (status ${answer.status}).`);
  }
  if (!answer.ok) throw new Error(content.error);
  return content;
}

/** Runs a form's work, once at a time, with its state in words. */
async function busy(part, words, work) {
  const button = byId(part).querySelector("button[type=submit]");
  const status = byId(`${part}-status`);
  if (button.ariaDisabled === "true") return;
  complain(part, "");
  button.ariaDisabled = "true"; // Really disabled it would lose the focus.
  status.textContent = words;
  try {
    status.textContent = await work();
  } catch (error) {
    status.textContent = "";
    complain(part, error.message);
  } finally {
    button.ariaDisabled = "false";
  }
}

// Images to be scored.

function addImages(files) {
  for (const file of files) {
    chosen.push({ file, url: URL.createObjectURL(file) });
  }
  showChosen();
}

function removeImage(image) {
  URL.revokeObjectURL(image.url);
  chosen.splice(chosen.indexOf(image), 1);
  showChosen();
  byId("images").focus();
}

function count(images) {
  return images.length === 1 ? "1 image" : `${images.length} images`;
}

function showChosen() {
  const items = chosen.map((image) => {
    const name = image.file.name;
    const remove = make("button", { type: "button", title: "Remove" }, "×");
    remove.setAttribute("aria-label", `Remove ${name}`);
    remove.addEventListener("click", () => removeImage(image));
    const picture = make("img", { src: image.url, alt: name, title: name });
    return make("li", {}, picture, remove);
  });
  byId("chosen").replaceChildren(...items);
  byId("classify-status").textContent = `${count(chosen)} chosen`;
}

function listenForImages() {
  const input = byId("images");
  input.addEventListener("change", () => {
    addImages(input.files);
    input.value = ""; // The same file may be chosen again.
  });
  const drop = byId("drop");
  // Anywhere: a drop beside the box would leave the page.
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    addImages(event.dataTransfer.files);
  });
}

/** The server checks as well; a browser would send all before it listens. */
function checkSize(images) {
  if (!limits) return;
  const bytes = images.reduce((sum, image) => sum + image.file.size, 0);
  if (bytes > limits.upload_bytes - 2 ** 20) {
    const most = megabytes(limits.upload_bytes);
    throw new Error(`${megabytes(bytes)} of images; at most ${most} at once.`);
  }
  if (images.length > limits.images) {
    throw new Error(
      `${images.length} images; at most ${limits.images} at once.`,
    );
  }
}

async function classify() {
  const images = [...chosen];
  checkSize(images);
  const form = new FormData();
  for (const { file } of images) form.append("images", file, file.name);
  form.append("labels", byId("labels").value);
  const started = performance.now();
  const answer = await ask("api/classify", { method: "POST", body: form });
  const seconds = ((performance.now() - started) / 1000).toPrecision(2);
  byId("explained").hidden = false;
  const results = answer.images.map((result, i) => showResult(result, images[i]));
  byId("results").replaceChildren(...results);
  const scored = answer.images.filter((result) => !result.error).length;
  const skipped = scored < images.length ? `${scored} of ` : "";
  return `${skipped}${count(images)} scored in ${seconds} s`;
}

function showResult(result, image) {
  // Not the address of the choice, which ends with it.
  const picture = make("img", { alt: "" });
  picture.src = URL.createObjectURL(image.file);
  picture.addEventListener("load", () => URL.revokeObjectURL(picture.src));
  picture.addEventListener("error", () => picture.removeAttribute("src"));
  const title = make("h3", {}, result.name);
  if (result.error) {
    const reason = make("p", { className: "error" }, `Skipped: ${result.error}`);
    return make("article", { className: "result" }, title, make("span"), reason);
  }
  const scores = make("div", { className: "scores" });
  showScores(scores, result, SHOWN);
  return make("article", { className: "result" }, title, picture, scores);
}

function showScores(place, result, count) {
  // Both orders are the same: the softmax grows with the sigmoid.
  const scores = [...result.scores].sort(
    (a, b) => b.softmax - a.softmax || b.probability - a.probability,
  );
  const heading = (text, name = "") =>
    make("th", { scope: "col", className: name }, text);
  const head = make(
    "tr",
    {},
    heading("Label"),
    ...(sigmoid ? [heading("Each on its own", "own")] : []),
    heading("If one must be right", "share"),
  );
  const rows = scores.slice(0, count).map((score) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, score.label),
      ...(sigmoid ? [makeShare(score.probability, "own")] : []),
      makeShare(score.softmax, "share"),
    ),
  );
  const table = make("table", {}, make("thead", {}, head));
  table.setAttribute("aria-label", `Scores of ${result.name}`);
  table.append(make("tbody", {}, ...rows));
  place.replaceChildren(table);
  if (scores.length > count) {
    const text = `Show all ${scores.length} labels`;
    const more = make("button", { type: "button", className: "plain" }, text);
    more.addEventListener("click", () => showScores(place, result, Infinity));
    place.append(more);
  }
}

function makeShare(share, name) {
  const fill = make("span");
  fill.style.width = `${100 * share}%`;
  const bar = make("div", { className: `bar ${name}` }, fill);
  bar.setAttribute("aria-hidden", "true");
  return make("td", {}, percent(share), bar);
}

// Search.

async function search() {
  const query = encodeURIComponent(byId("query").value);
  const answer = await ask(`api/search?query=${query}`);
  const found = byId("found");
  found.classList.toggle("texts", answer.kind === "texts");
  found.replaceChildren(...answer.results.map(showFound));
  return `The best ${answer.results.length}, the nearest first`;
}

function showFound(row) {
  const item = make("li");
  if (row.image) {
    const picture = make("img", { src: row.image, alt: row.key });
    picture.loading = "lazy";
    item.append(picture);
  }
  const what = row.text ?? row.key;
  const text = sigmoid ? percent(row.probability) : row.score.toFixed(3);
  const score = make("strong", { className: "own" }, text);
  const name = make("span", { className: "name" }, what);
  item.append(make("p", {}, score, " ", name));
  return item;
}

async function start() {
  const health = await ask("healthz");
  limits = health.limits;
  sigmoid = health.sigmoid;
  if (!sigmoid) {
    byId("own-explained").textContent =
      "This model was trained with a softmax: its bias was never trained, so " +
      "it does not say how likely a label is on its own.";
  }
  byId("model").textContent = health.model;
  byId("images-hint").textContent =
    `Or drop them here: up to ${limits.images}, ` +
    `${megabytes(limits.image_bytes)} each.`;
  byId("labels-hint").textContent =
    `One a line, or as JSON, up to ${limits.labels.toLocaleString("en")}.`;
  if (!health.search) return;
  const count = health.search.count.toLocaleString("en");
  byId("search-title").textContent = `Search ${count} ${health.search.kind}`;
  byId("search-hint").textContent =
    "What it describes comes first, with " +
    (sigmoid ? "how likely both belong together." : "the cosine of both.");
  byId("search-section").hidden = false;
}

listenForImages();
byId("classify").addEventListener("submit", (event) => {
  event.preventDefault();
  busy("classify", "Scoring …", classify);
});
byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  busy("search", "Searching …", search);
});
start().catch((error) => complain("classify", error.message));
