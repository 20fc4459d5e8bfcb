"use strict";
// The read-out of a chart: under the pointer, or by the arrow keys.
(() => {
  const names = [...document.querySelectorAll("thead")][0]
    ? [...document.querySelector("#overview thead").querySelectorAll("th")]
        .map((cell) => cell.textContent)
    : [];
  const readout = document.getElementById("readout");
  const NS = "http://www.w3.org/2000/svg";

  const shape = (tag, attributes) => {
    const made = document.createElementNS(NS, tag);
    for (const [key, value] of Object.entries(attributes)) {
      made.setAttribute(key, value);
    }
    return made;
  };

  const number = (value) =>
    Number.isInteger(value) ? value.toLocaleString("en") : value.toPrecision(4);

  const nearest = (points, x) =>
    points.reduce((best, point) =>
      Math.abs(point[2] - x) < Math.abs(best[2] - x) ? point : best);

  for (const figure of document.querySelectorAll(".chart")) {
    const chart = JSON.parse(figure.dataset.chart);
    const curves = chart.curves.filter((curve) => curve.points.length);
    if (!curves.length) continue;
    const svg = figure.querySelector(":scope > svg");
    const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
    const places = [...new Set(curves.flatMap((c) => c.points.map((p) => p[2])))]
      .sort((a, b) => a - b);
    let shown = null;

    const clear = () => {
      svg.querySelectorAll(".cursor, .spot").forEach((mark) => mark.remove());
      readout.hidden = true;
      shown = null;
    };

    const show = (place) => {
      if (place === shown) return;
      clear();
      shown = place;
      svg.append(shape("line", {class: "cursor", x1: place, x2: place,
                                y1: 12, y2: height - 28}));
      readout.replaceChildren();
      const near = curves.map((curve) => [curve, nearest(curve.points, place)]);
      const first = near.reduce((best, pair) =>
        Math.abs(pair[1][2] - place) < Math.abs(best[1][2] - place) ? pair : best);
      const head = document.createElement("div");
      head.textContent = `${chart.x} ${number(first[1][0])}`;
      readout.append(head);
      for (const [curve, point] of near) {
        svg.append(shape("circle", {class: `spot run${curve.run}`, r: 3.5,
                                    cx: point[2], cy: point[3]}));
        const line = document.createElement("div");
        const dot = document.createElement("span");
        dot.className = `swatch run${curve.run}`;
        const value = document.createElement("b");
        value.textContent = number(point[1]);
        const label = [names.length > 1 ? names[curve.run] : "", curve.label]
          .filter(Boolean).join(" ");
        line.append(dot, label || figure.querySelector("figcaption")
          .firstChild.textContent.trim(), value);
        readout.append(line);
      }
      readout.hidden = false;
      const box = svg.getBoundingClientRect();
      const left = box.left + place / width * box.width;
      const size = readout.getBoundingClientRect();
      const right = left + 14 + size.width < document.documentElement.clientWidth;
      readout.style.left = `${Math.max(right ? left + 14 : left - 14 - size.width, 4)}px`;
      readout.style.top = `${Math.max(box.top + 10, 4)}px`;
    };

    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * width;
      show(places.reduce((a, b) => Math.abs(b - x) < Math.abs(a - x) ? b : a));
    });
    svg.addEventListener("pointerleave", clear);
    svg.addEventListener("blur", clear);
    svg.addEventListener("keydown", (event) => {
      const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      if (event.key === "Escape") clear();
      if (!step) return;
      event.preventDefault();
      const at = shown === null ? (step > 0 ? -1 : places.length) : places.indexOf(shown);
      show(places[Math.min(Math.max(at + step, 0), places.length - 1)]);
    });
  }
  window.addEventListener("scroll", () => { readout.hidden = true; }, {passive: true});

  // Paper cannot be opened.
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((part) => { part.open = true; });
  });
  window.addEventListener("afterprint", () => {
    closed.forEach((part) => { part.open = false; });
  });
})();
