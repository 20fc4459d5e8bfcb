// Which part is shown, and what the server says of itself.

import { ask, byId, compilingInWords, complain } from "./common.js";
import { listenForImages } from "./images.js";
import * as labels from "./labels.js";
import * as search from "./search.js";

const PARTS = ["search", "labels"];
let shown = "labels";

/** Shows one part; the tab of the other can be tabbed to no more. */
function show(part) {
  shown = part;
  for (const name of PARTS) {
    const tab = byId(`${name}-tab`);
    tab.ariaSelected = String(name === part);
    tab.tabIndex = name === part ? 0 : -1;
    byId(`${name}-panel`).hidden = name !== part;
  }
}

function go(part) {
  if (part === shown) return;
  show(part);
  history.pushState(null, "", `#${part}`);
}

function listenForTabs() {
  for (const part of PARTS) {
    byId(`${part}-tab`).addEventListener("click", () => go(part));
  }
  byId("tabs").addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    go(shown === "labels" ? "search" : "labels");
    byId(`${shown}-tab`).focus();
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input, textarea, select");
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    go("search");
    byId("query").focus();
  });
}

/** Shows what the address says. */
function follow() {
  const part = location.hash.startsWith("#labels") ? "labels" : "search";
  show(part);
  if (part === "search") search.recall(location.hash);
}

/** Says that the model compiles, as long as it does at the start. */
async function watchStart(compiling) {
  const notice = byId("compiling");
  while (compiling) {
    notice.hidden = false;
    notice.textContent = `${compilingInWords(compiling)}. Write meanwhile what to ask.`;
    await new Promise((resolve) => setTimeout(resolve, 700));
    ({ compiling } = await ask("healthz"));
  }
  notice.hidden = true;
}

async function start() {
  const health = await ask("healthz");
  byId("model").textContent = health.model;
  labels.start(health);
  listenForImages(() => (shown === "search" ? search.picker : labels.picker));
  if (health.search) {
    for (const part of PARTS) {
      byId(`${part}-panel`).setAttribute("role", "tabpanel");
      byId(`${part}-panel`).setAttribute("aria-labelledby", `${part}-tab`);
    }
    byId("tabs").hidden = false;
    search.start(health);
    listenForTabs();
    window.addEventListener("popstate", follow);
    follow();
  }
  await watchStart(health.compiling);
}

start().catch((error) => complain("page", error.message));
