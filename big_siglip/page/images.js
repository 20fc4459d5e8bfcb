// Images that are chosen, dropped or pasted.

import { byId, count, make, megabytes } from "./common.js";

/** A list of images below a file input; `changed` hears of every change. */
export class Picker {
  constructor(id, changed) {
    this.images = []; // {file, url} of each.
    this.input = byId(id);
    this.drop = byId(`${id}-drop`);
    this.list = byId(`${id}-chosen`);
    this.changed = changed;
    this.input.addEventListener("change", () => {
      this.add(this.input.files);
      this.input.value = ""; // The same file may be chosen again.
    });
  }

  add(files) {
    for (const file of files) {
      this.images.push({ file, url: URL.createObjectURL(file) });
    }
    this.show();
  }

  remove(image) {
    URL.revokeObjectURL(image.url);
    this.images.splice(this.images.indexOf(image), 1);
    this.show();
    this.input.focus();
  }

  clear() {
    for (const { url } of this.images) URL.revokeObjectURL(url);
    this.images.length = 0;
    this.show();
  }

  show() {
    const items = this.images.map((image) =>
      chip(image.url, image.file.name, () => this.remove(image)),
    );
    this.list.replaceChildren(...items);
    this.changed();
  }

  /** The server checks as well; a browser would send all before it listens. */
  check(limits) {
    if (!limits) return;
    const files = this.images.map((image) => image.file);
    const bytes = files.reduce((sum, file) => sum + file.size, 0);
    if (bytes > limits.upload_bytes - 2 ** 20) {
      const most = megabytes(limits.upload_bytes);
      throw new Error(`${megabytes(bytes)} of images; at most ${most} at once.`);
    }
    if (files.length > limits.images) {
      const most = limits.images;
      throw new Error(`${count(files.length, "image")}; at most ${most} at once.`);
    }
  }
}

/** Makes a small picture with a button that takes it away. */
export function chip(url, name, onRemove) {
  const remove = make("button", { type: "button", title: "Remove" }, "×");
  remove.setAttribute("aria-label", `Remove ${name}`);
  remove.addEventListener("click", onRemove);
  const picture = url
    ? make("img", { src: url, alt: name, title: name })
    : make("span", { className: "word", title: name }, name);
  return make("li", {}, picture, remove);
}

/** Listens for drops and pastes anywhere, for whichever picker is shown. */
export function listenForImages(current) {
  // Anywhere: a drop beside the box would leave the page.
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    current().drop.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) current().drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    current().drop.classList.remove("over");
    current().add(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => {
    const files = event.clipboardData?.files ?? [];
    if (!files.length) return; // Text goes where it is pasted.
    event.preventDefault();
    current().add(files);
  });
}
