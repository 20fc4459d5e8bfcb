// Where in an image a label fires: its patches in colours.

import { ask, byId, compilingInWords, make, percent } from "./common.js";

// From cold to hot, readable for the colour-blind; page.css has the same.
const HEAT = [
  [0, 0, 4],
  [87, 16, 110],
  [188, 55, 84],
  [249, 142, 9],
  [252, 255, 164],
];
const SIDE = 640; // Pixels of the longer side that are painted.
const AT_ONCE = 10; // Labels of a request: those that stand near each other.
const PAUSE = 120; // Milliseconds that a pointer rests before it is a question.

let all = []; // Of the images that are shown.

/** Returns the colour of a share of the scale, 0 to 1. */
function heat(share) {
  const at = Math.min(Math.max(share, 0), 1) * (HEAT.length - 1);
  const first = Math.min(Math.floor(at), HEAT.length - 2);
  const mix = (a, b) => Math.round(a + (b - a) * (at - first));
  const parts = HEAT[first].map((part, i) => mix(part, HEAT[first + 1][i]));
  return `rgb(${parts.join(" ")})`;
}

function chance(share) {
  if (share >= 0.0001) return percent(share);
  if (share < 1e-9) return "< 1e-7 %";
  return `${(100 * share).toExponential(1)} %`;
}

/** Maps of one image, over its picture. */
class Maps {
  constructor(file, labels, names, limits) {
    this.file = file;
    this.labels = labels; // As they were asked for.
    this.names = names; // The likeliest first, as they stand in the table.
    this.atOnce = Math.min(AT_ONCE, limits.maps);
    this.answers = new Map(); // By label: what is drawn.
    this.asked = new Map(); // By label: the request that is under way.
    this.buttons = new Map();
    this.pointed = null;
    this.pinned = null;
    this.canvas = make("canvas", { hidden: true });
    this.canvas.setAttribute("aria-hidden", "true"); // The legend says it.
    this.legend = make("div", { className: "legend" });
    this.legend.setAttribute("role", "status");
  }

  /** Makes a label's name, which shows its map when pointed at. */
  button(name) {
    const button = make("button", { type: "button", className: "label" }, name);
    button.ariaPressed = String(this.pinned === name);
    button.title = "Show where; a click keeps it";
    const point = () => this.point(name);
    const leave = () => this.point(null);
    if (matchMedia("(hover: hover)").matches) {
      button.addEventListener("pointerenter", point);
      button.addEventListener("pointerleave", leave);
    }
    button.addEventListener("focus", point);
    button.addEventListener("blur", leave);
    button.addEventListener("click", () => this.pin(name));
    this.buttons.set(name, button);
    return button;
  }

  pin(name) {
    this.pinned = this.pinned === name ? null : name;
    for (const [own, button] of this.buttons) {
      button.ariaPressed = String(own === this.pinned);
    }
    this.point(this.pinned);
  }

  point(name) {
    this.pointed = name;
    this.show();
  }

  forget() {
    if (this.pinned) this.pin(this.pinned);
    this.point(null);
  }

  async show() {
    const name = this.pointed ?? this.pinned;
    if (name === null) {
      this.canvas.hidden = true;
      this.legend.replaceChildren();
      return;
    }
    const current = () => (this.pointed ?? this.pinned) === name;
    if (!this.answers.has(name)) {
      this.canvas.hidden = true;
      this.say(`Asking each patch about “${name}” …`);
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
      if (!current()) return;
      try {
        await this.fetch(name);
      } catch (error) {
        if (current()) this.say(error.message, "error");
        return;
      }
      if (!current()) return;
    }
    this.draw(name);
  }

  say(text, className = "") {
    this.legend.replaceChildren(make("p", { className }, text));
  }

  /** Asks for a label's map, and for those of its neighbours with it. */
  fetch(name) {
    if (this.asked.has(name)) return this.asked.get(name);
    const start = this.names.indexOf(name);
    const names = [...this.names.slice(start), ...this.names.slice(0, start)]
      .filter((own) => !this.answers.has(own) && !this.asked.has(own))
      .slice(0, this.atOnce);
    const request = this.request(names).finally(() => {
      for (const own of names) this.asked.delete(own);
    });
    for (const own of names) this.asked.set(own, request);
    return request;
  }

  async request(names) {
    const form = new FormData();
    form.append("images", this.file, this.file.name);
    form.append("labels", this.labels);
    for (const own of names) form.append("of", own);
    const timer = setInterval(async () => {
      const state = await ask("healthz").catch(() => ({}));
      const waits = this.asked.has(this.pointed ?? this.pinned);
      if (state.compiling && waits) this.say(compilingInWords(state.compiling));
    }, 700);
    try {
      const answer = await ask("api/maps", { method: "POST", body: form });
      answer.labels.forEach((own, i) => {
        this.answers.set(own, { ...answer, logits: answer.logits[i] });
      });
    } finally {
      clearInterval(timer);
    }
  }

  draw(name) {
    const { logits, sigmoid, size, box } = this.answers.get(name);
    const probability = (x) => 1 / (1 + Math.exp(-x));
    const words = (x) => (sigmoid ? chance(probability(x)) : x.toFixed(2));
    const found = [Math.min(...logits.flat()), Math.max(...logits.flat())];
    const range = found.map(words);
    const whole = sigmoid && byId("map-scale").value === "whole";
    if (whole) {
      const rows = logits.map((row) => row.map(probability));
      this.paint(rows, 0, 1, size, box);
    } else {
      this.paint(logits, ...found, size, box);
    }
    const ends = whole ? ["0 %", "100 %"] : range;
    const ramp = make("div", { className: "ramp" });
    ramp.setAttribute("aria-hidden", "true");
    const scale = ends.map((end) => make("span", {}, end));
    const line = make("p", { className: "ends" }, ...scale);
    line.setAttribute("aria-hidden", "true");
    const of = sigmoid ? "Patches" : "Logits of patches";
    const what = `${of} for “${name}”: ${range.join(" to ")}`;
    this.legend.replaceChildren(ramp, line, make("p", {}, what));
    this.canvas.hidden = false;
  }

  /** Paints each patch in one colour: no finer than the model sees. */
  paint(rows, low, high, [width, height], [left, top, right, bottom]) {
    const scale = SIDE / Math.max(width, height);
    this.canvas.width = Math.max(1, Math.round(width * scale));
    this.canvas.height = Math.max(1, Math.round(height * scale));
    const context = this.canvas.getContext("2d");
    const edges = (from, to, count, pixels) =>
      Array.from({ length: count + 1 }, (_, i) =>
        Math.round(pixels * (from + ((to - from) * i) / count)),
      );
    const x = edges(left, right, rows[0].length, this.canvas.width);
    const y = edges(top, bottom, rows.length, this.canvas.height);
    const span = Math.max(high - low, 1e-12);
    rows.forEach((row, i) =>
      row.forEach((value, j) => {
        context.fillStyle = heat((value - low) / span);
        context.fillRect(x[j], y[i], x[j + 1] - x[j], y[i + 1] - y[i]);
      }),
    );
  }
}

/** Returns maps of images that take the place of those there were. */
export function mapsOf(images, limits) {
  all = images.map(({ file, labels, names }) =>
    file ? new Maps(file, labels, names, limits) : null,
  );
  return all;
}

export function start() {
  byId("map-scale").addEventListener("change", () => {
    for (const maps of all) maps?.show();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") for (const maps of all) maps?.forget();
  });
}
