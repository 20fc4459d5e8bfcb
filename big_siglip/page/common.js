// What all parts of the page share.

export const byId = (id) => document.getElementById(id);

/** Makes an element: attributes are properties, children nodes or texts. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export function megabytes(bytes) {
  return `${Math.floor(bytes / 2 ** 20)} MB`;
}

export function percent(share) {
  if (share > 0 && share < 0.0001) return "< 0.01 %";
  if (share < 1 && share > 0.9999) return "> 99.99 %";
  return `${(100 * share).toFixed(2)} %`;
}

export function count(number, thing) {
  return number === 1 ? `1 ${thing}` : `${number.toLocaleString("en")} ${thing}s`;
}

/** Shows a message, or none. */
export function complain(part, message) {
  const place = byId(`${part}-error`);
  place.textContent = message;
  place.hidden = !message;
}

/** Returns the JSON of an answer; what went wrong is thrown in words. */
export async function ask(url, options) {
  let answer;
  try {
    answer = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is it still running?");
  }
  let content;
  try {
    content = await answer.json();
  } catch {
    const reason =
      answer.status === 413
        ? "Something before the server takes no upload of that size"
        : "The server gave no answer";
    throw new Error(`${reason} (status ${answer.status}).`);
  }
  if (!answer.ok) throw new Error(content.error);
  return content;
}

/** Returns how far compiling is, in words. */
export function compilingInWords({ what, seconds, last }) {
  const before = last === null ? "" : ` (${last.toFixed(0)} s last time)`;
  return `The model compiles for ${what}, once: ${seconds.toFixed(0)} s${before}`;
}

const tasks = {}; // What is under way: {part: AbortController}.

/** Gives up what a form waits for; returns whether there was anything. */
export function giveUp(part) {
  tasks[part]?.abort();
  return part in tasks;
}

/**
 * Runs a form's work, once at a time, with its state in words.
 *
 * `work` takes the signal to give to `ask`, and returns what to say at the end.
 */
export async function busy(part, words, work) {
  if (part in tasks) return;
  const button = byId(part).querySelector("button[type=submit]");
  const status = byId(`${part}-status`);
  const controller = new AbortController();
  tasks[part] = controller;
  complain(part, "");
  button.ariaDisabled = "true"; // Really disabled it would lose the focus.
  status.textContent = words;
  const watch = watchState(part, words);
  try {
    status.textContent = await work(controller.signal);
  } catch (error) {
    const stopped = error.name === "AbortError";
    status.textContent = stopped ? "Given up" : "";
    if (!stopped) complain(part, error.message);
  } finally {
    delete tasks[part];
    watch.stop();
    button.ariaDisabled = "false";
  }
}

/** Says every half second what the server is at; a screen reader once. */
function watchState(part, words) {
  const status = byId(`${part}-status`);
  const ticks = byId(`${part}-ticks`);
  const bar = byId(`${part}-progress`);
  const start = performance.now();
  let over = false;
  const tick = async () => {
    let state;
    try {
      state = await ask("healthz");
    } catch {
      return; // The request itself will say it.
    }
    if (over) return;
    const { compiling, waiting } = state;
    bar.hidden = !compiling;
    if (compiling) {
      status.textContent = "The model compiles; this happens once.";
      ticks.textContent = compilingInWords(compiling);
      status.classList.add("unseen"); // A screen reader hears it once.
      if (compiling.last) {
        bar.max = compiling.last;
        bar.value = Math.min(compiling.seconds, compiling.last);
      } else {
        bar.removeAttribute("value");
      }
      return;
    }
    status.classList.remove("unseen");
    const seconds = ((performance.now() - start) / 1000).toFixed(0);
    status.textContent = words;
    ticks.textContent =
      waiting > 1
        ? `${seconds} s; ${count(waiting - 1, "other request")} at the same time`
        : `${seconds} s`;
  };
  const timer = setInterval(tick, 500);
  return {
    stop() {
      over = true;
      clearInterval(timer);
      status.classList.remove("unseen");
      ticks.textContent = "";
      bar.hidden = true;
    },
  };
}
