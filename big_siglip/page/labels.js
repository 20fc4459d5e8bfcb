// Images against labels.

import { ask, busy, byId, count, make, megabytes, percent } from "./common.js";
import { Picker } from "./images.js";
import * as maps from "./maps.js";

const SHOWN = 10; // Labels of an image, until asked for all.

let health = null;

export const picker = new Picker("images", () => {
  byId("classify-status").textContent = `${count(picker.images.length, "image")} chosen`;
});

function chosenClassifier() {
  return byId("classifier").value;
}

async function classify(signal) {
  const images = [...picker.images];
  picker.check(health?.limits);
  const form = new FormData();
  for (const { file } of images) form.append("images", file, file.name);
  const classifier = chosenClassifier();
  const labels = byId("labels").value;
  if (classifier) form.append("classifier", classifier);
  else form.append("labels", labels);
  const started = performance.now();
  const answer = await ask("api/classify", { method: "POST", body: form, signal });
  const seconds = ((performance.now() - started) / 1000).toPrecision(2);
  const alone = !classifier && health.sigmoid;
  byId("explained").hidden = false;
  byId("own-explained").hidden = !!classifier;
  byId("maps-explained").hidden = !!classifier;
  const drawn = maps.mapsOf(
    answer.images.map((result, i) => ({
      file: !classifier && !result.error ? images[i].file : null,
      labels,
      names: ranked(result.scores ?? []).map((score) => score.label),
    })),
    health.limits,
  );
  const results = answer.images.map((result, i) =>
    showResult(result, images[i], alone, drawn[i]),
  );
  byId("scored").replaceChildren(...results);
  const scored = answer.images.filter((result) => !result.error).length;
  const skipped = scored < images.length ? `${scored} of ` : "";
  return `${skipped}${count(images.length, "image")} scored in ${seconds} s`;
}

/** Both orders are the same: the softmax grows with the sigmoid. */
function ranked(scores) {
  return [...scores].sort(
    (a, b) => b.softmax - a.softmax || b.probability - a.probability,
  );
}

function showResult(result, image, alone, map) {
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
  showScores(scores, result, alone, map, SHOWN);
  const stack = make("div", { className: "stack" }, picture);
  const figure = make("div", { className: "figure" }, stack);
  if (map) {
    stack.append(map.canvas);
    figure.append(map.legend);
  }
  return make("article", { className: "result" }, title, figure, scores);
}

function showScores(place, result, alone, map, shown) {
  const scores = ranked(result.scores);
  const heading = (text, name = "") =>
    make("th", { scope: "col", className: name }, text);
  const head = make(
    "tr",
    {},
    heading("Label"),
    ...(alone ? [heading("Each on its own", "own")] : []),
    heading("If one must be right", "share"),
  );
  const rows = scores.slice(0, shown).map((score) =>
    make(
      "tr",
      {},
      make(
        "th",
        { scope: "row" },
        map ? map.button(score.label) : score.label,
      ),
      ...(alone ? [makeShare(score.probability, "own")] : []),
      makeShare(score.softmax, "share"),
    ),
  );
  const table = make("table", {}, make("thead", {}, head));
  table.setAttribute("aria-label", `Scores of ${result.name}`);
  table.append(make("tbody", {}, ...rows));
  place.replaceChildren(table);
  if (scores.length > shown) {
    const text = `Show all ${scores.length} labels`;
    const more = make("button", { type: "button", className: "plain" }, text);
    more.addEventListener("click", () =>
      showScores(place, result, alone, map, Infinity),
    );
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

function offerClassifiers(classifiers) {
  const names = Object.keys(classifiers);
  byId("classifiers").hidden = !names.length;
  const options = names.map((name) =>
    make("option", { value: name }, `classifier ${name}`),
  );
  byId("classifier").append(...options);
  byId("classifier").addEventListener("change", () => {
    const chosen = classifiers[chosenClassifier()];
    const typed = [byId("labels"), byId("labels-hint"), byId("labels").labels[0]];
    for (const element of typed) element.hidden = !!chosen;
    byId("classifier-hint").hidden = !chosen;
    if (!chosen) return;
    const { accuracy, images } = chosen.measured;
    byId("classifier-hint").textContent =
      `${count(chosen.labels.length, "label")}, learnt from ` +
      `${count(chosen.images, "image")}; ${percent(accuracy)} right of ` +
      `${count(images, "image")} that it had not seen.`;
  });
}

export function start(found) {
  health = found;
  const { limits, calibration } = health;
  if (!health.sigmoid) {
    byId("own-explained").textContent =
      "This model was trained without a sigmoid loss: its bias was never trained, so " +
      "it does not say how likely a label is on its own.";
  } else if (calibration) {
    byId("calibrated").textContent =
      `Calibrated on ${count(calibration.images, "image")} of ${calibration.data}.`;
  }
  byId("images-hint").textContent =
    `Or drop or paste them here: up to ${limits.images}, ` +
    `${megabytes(limits.image_bytes)} each.`;
  byId("labels-hint").textContent =
    `One a line, or as JSON, up to ${limits.labels.toLocaleString("en")}.`;
  const grid = health.maps.grid;  // One number where images keep their shape.
  byId("map-grid").textContent =
    grid.length === 1 ? `up to ${grid[0]}` : grid.join(" x ");
  byId("map-scales").hidden = !health.sigmoid;
  maps.start();
  offerClassifiers(health.classifiers);
  byId("classify").addEventListener("submit", (event) => {
    event.preventDefault();
    busy("classify", "Scoring …", classify);
  });
}
