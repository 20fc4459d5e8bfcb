// Search by sentences, by images, and by what was found.

import { ask, busy, byId, count, giveUp, make, percent } from "./common.js";
import { chip, Picker } from "./images.js";

const narrow = matchMedia("(max-width: 40rem)");
const touch = matchMedia("(hover: none)"); // There is no Shift+Enter.
let health = null;
let likes = []; // {id, key, url} of results to search by.

export const picker = new Picker("like", () => showParts());

const query = () => byId("query");
const lines = () => query().value.split("\n").filter((line) => line.trim());

/** Shows results to search by below the chosen images, and how to combine. */
function showParts() {
  byId("like-chosen").querySelectorAll(".liked").forEach((item) => item.remove());
  for (const like of likes) {
    const item = chip(like.url, like.key, () => {
      likes = likes.filter((other) => other !== like);
      showParts();
      byId("like").focus();
    });
    item.classList.add("liked");
    byId("like-chosen").append(item);
  }
  const parts = lines().length + picker.images.length + likes.length;
  byId("combine").hidden = parts < 2;
}

function combined() {
  const chosen = document.querySelector("input[name=combine]:checked").value;
  return byId("combine").hidden ? "each" : chosen;
}

/** Returns what is asked for in an address; uploads have no place in one. */
function inAddress() {
  const asked = new URLSearchParams();
  if (lines().length) asked.set("query", lines().join("\n"));
  for (const like of likes) asked.append("like", like.id);
  if (byId("where").value.trim()) asked.set("where", byId("where").value.trim());
  if (combined() !== "each") asked.set("combine", combined());
  return asked;
}

async function search(signal, top) {
  picker.check(health.limits);
  const form = new FormData();
  const asked = inAddress();
  for (const [name, value] of asked) form.append(name, value);
  for (const { file } of picker.images) form.append("images", file, file.name);
  if (top) form.append("top", top);
  const options = { method: "POST", body: form, signal };
  const answer = await ask("api/search", options);
  remember(asked);
  const where = asked.get("where") ?? "";
  const groups = answer.queries.map((one) => showAnswer(one, answer.kind, where));
  byId("found").replaceChildren(...groups);
  const first = byId("found").querySelector(".similar");
  if (first) first.tabIndex = 0;
  byId("keys").hidden = !first;
  // A result whose picture was shown before has another address then.
  for (const { parts } of answer.queries) {
    for (const { like } of parts) {
      const known = likes.find((one) => like && one.id === like.id);
      if (known) Object.assign(known, { key: like.key, url: like.image });
    }
  }
  showParts();
  comeToAnswers();
  const shown = answer.queries.map((one) => one.results.length);
  const most = Math.max(...shown);
  if (most < health.limits.results && most === (top ?? 24)) {
    byId("found").append(moreButton());
  }
  const each = shown.length > 1 ? ` for each of ${shown.length}` : "";
  return `The best ${most}${each}, the nearest first`;
}

/** In a narrow window the answers begin below what was asked for. */
function comeToAnswers() {
  if (narrow.matches) byId("search-actions").scrollIntoView();
}

function moreButton() {
  const text = `Show the best ${health.limits.results}`;
  const more = make("button", { type: "button", className: "plain" }, text);
  more.addEventListener("click", () => run(health.limits.results));
  return more;
}

/** Keeps what was asked for in the address, so that "back" leads back to it. */
function remember(asked) {
  const address = `#search?${asked}`;
  if (location.hash !== address) history.pushState(null, "", address);
}

/** Asks for what an address says; false where it says nothing. */
export function recall(hash) {
  const asked = new URLSearchParams(hash.split("?")[1] ?? "");
  query().value = asked.get("query") ?? "";
  byId("where").value = asked.get("where") ?? "";
  byId("filter").open = !!byId("where").value;
  const combine = asked.get("combine") === "mean" ? "mean" : "each";
  document.querySelector(`input[name=combine][value=${combine}]`).checked = true;
  likes = asked.getAll("like").map((id) => ({ id: Number(id), key: `image ${id}` }));
  picker.clear();
  if (lines().length || likes.length) run();
  else byId("found").replaceChildren();
}

function run(top) {
  return busy("search", "Searching …", (signal) => search(signal, top));
}

/** Searches by one result alone. */
async function findSimilar(row) {
  giveUp("search");
  query().value = "";
  likes = [{ id: row.id, key: row.key, url: row.image }];
  picker.clear();
  await run();
  if (!narrow.matches) byId("search-panel").scrollIntoView();
  byId("found").querySelector(".similar")?.focus({ preventScroll: true });
}

function showAnswer({ parts, results }, kind, where) {
  const title = make("h3", {});
  parts.forEach((part, i) => {
    if (i) title.append(" + ");
    title.append(inWords(part));
  });
  const items = results.map((row) => showFound(row, where));
  const list = make("ol", { className: `found ${kind}` }, ...items);
  return make("section", { className: "answer" }, title, list);
}

function inWords(part) {
  if (part.text !== undefined) return `“${part.text}”`;
  if (part.image !== undefined) return `the image ${part.image}`;
  return `similar to “${part.like.captions?.[0] ?? part.like.text ?? part.like.key}”`;
}

function showFound(row, where) {
  const item = make("li");
  const captions = row.captions ?? [];
  if (row.image) {
    const picture = make("img", { src: row.image, alt: captions[0] ?? row.key });
    picture.loading = "lazy";
    picture.addEventListener("error", () => {
      const missing = make("div", { className: "missing quiet" }, "no picture");
      picture.replaceWith(missing);
    });
    item.append(picture);
  }
  item.append(showScore(row));
  const [first, ...others] = row.text && !captions.length ? [row.text] : captions;
  if (first) item.append(make("p", { className: "caption" }, first));
  if (others.length) {
    const more = others.map((text) => make("p", { className: "caption" }, text));
    const summary = make("summary", {}, `${others.length} more`);
    item.append(make("details", {}, summary, ...more));
  }
  item.append(make("p", { className: "name quiet" }, row.key));
  for (const [name, value] of Object.entries(row.columns)) {
    if (!where.includes(name)) continue;
    item.append(make("p", { className: "quiet" }, `${name}: ${value ?? "–"}`));
  }
  const similar = make("button", { type: "button", className: "plain similar" });
  similar.textContent = "Similar";
  similar.tabIndex = -1; // One of them can be tabbed to; arrows lead to others.
  similar.setAttribute("aria-label", `Similar to ${first ?? row.key}`);
  similar.addEventListener("click", () => findSimilar(row));
  item.append(similar);
  return item;
}

function showScore(row) {
  const cosine = `cosine ${row.score.toFixed(3)}`;
  if (row.probability === null) {
    return make("p", {}, make("strong", { className: "own" }, cosine));
  }
  const likely = make("strong", { className: "own" }, percent(row.probability));
  return make("p", {}, likely, make("span", { className: "quiet" }, ` ${cosine}`));
}

// Keys.

/** Returns the button that an arrow leads to from another. */
function next(from, key) {
  const all = [...byId("found").querySelectorAll(".similar")];
  const place = all.indexOf(from);
  if (key === "Home") return all[0];
  if (key === "End") return all.at(-1);
  if (key === "ArrowLeft") return all[place - 1];
  if (key === "ArrowRight") return all[place + 1];
  // The nearest of the rows above or below, as they lie now.
  const middle = (button) => {
    const box = button.closest("li").getBoundingClientRect();
    return { x: box.left + box.width / 2, y: box.top };
  };
  const here = middle(from);
  const ahead = key === "ArrowDown" ? all.slice(place + 1) : all.slice(0, place);
  const rows = ahead.filter((button) => Math.abs(middle(button).y - here.y) > 1);
  const cost = (button) => {
    const { x, y } = middle(button);
    return 1e4 * Math.abs(y - here.y) + Math.abs(x - here.x);
  };
  return rows.sort((a, b) => cost(a) - cost(b))[0];
}

const ARROWS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"];

function listenForKeys() {
  byId("found").addEventListener("keydown", (event) => {
    if (event.key === "Escape") query().focus();
    const from = event.target.closest(".similar");
    if (!from || !ARROWS.includes(event.key)) return;
    event.preventDefault();
    next(from, event.key)?.focus();
  });
  byId("found").addEventListener("focusin", (event) => {
    const button = event.target.closest(".similar");
    if (!button) return;
    byId("found").querySelectorAll(".similar").forEach((one) => {
      one.tabIndex = one === button ? 0 : -1;
    });
  });
  query().addEventListener("keydown", (event) => {
    if (event.isComposing) return; // Enter ends a word of Japanese, say.
    if (event.key === "Enter" && !event.shiftKey && !touch.matches) {
      event.preventDefault();
      byId("search").requestSubmit();
    } else if (event.key === "Escape" && !giveUp("search")) {
      query().select();
    }
  });
}

function showColumns(columns) {
  const buttons = Object.entries(columns).map(([name, type]) => {
    const button = make("button", { type: "button", className: "plain" }, name);
    button.title = type;
    button.addEventListener("click", () => {
      const where = byId("where");
      const quoted = /^\w+$/.test(name) ? name : `"${name}"`;
      where.setRangeText(`${quoted} `, where.selectionStart, where.selectionEnd, "end");
      where.focus();
    });
    return button;
  });
  byId("columns").replaceChildren(...buttons);
}

export function start(found) {
  health = found;
  const { kind, count: number, columns } = health.search;
  byId("search-title").textContent =
    `Search ${count(number, kind.slice(0, -1))}`;
  const other = kind === "images" ? "A sentence" : "An image";
  byId("search-hint").textContent = health.sigmoid
    ? `${other} is answered with how likely both belong together; all else with the cosine alone.`
    : "Each answer comes with its cosine.";
  showColumns(columns);
  query().addEventListener("input", showParts);
  listenForKeys();
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
}
