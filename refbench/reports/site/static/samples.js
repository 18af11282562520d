"use strict";
// Samples: run-length codes, a list of which only the visible rows are drawn, and the view of a single sample.

const ROW_PX = 44;
const TARGET = [0, 176, 84];
const PREDICTION = [226, 40, 116];
const BAND = [60, 120, 255];

/** The run lengths of a compressed COCO code: 0s first, then 1s, in turn, down the columns. */
function runLengths(code) {
  const counts = [];
  for (let at = 0; at < code.length; ) {
    let value = 0;
    let more = true;
    for (let shift = 0; more && at < code.length; shift += 5) {
      const digit = code.charCodeAt(at++) - 48;
      value |= (digit & 31) << shift;
      more = (digit & 32) !== 0;
      if (!more && digit & 16) value |= -1 << (shift + 5);
    }
    counts.push(counts.length > 2 ? value + counts[counts.length - 2] : value);
  }
  return counts;
}

/** The pixels of a code, one byte each, row by row. */
function pixelsOf(code, height, width) {
  const pixels = new Uint8Array(height * width);
  let place = 0;
  runLengths(code).forEach((length, k) => {
    if (k % 2 === 1) for (let p = place; p < place + length; p += 1) pixels[(p % height) * width + Math.floor(p / height)] = 1;
    place += length;
  });
  return pixels;
}

/** The inner band of Boundary IoU: the pixels within 2 % of the diagonal of the outline; outside of the image is background. */
function bandOf(pixels, height, width) {
  const reach = Math.max(1, Math.round(0.02 * Math.hypot(height, width)));
  const eroded = (from, lines, length, at) => {
    const out = new Uint8Array(from.length);
    const sums = new Int32Array(length + 1);
    for (let line = 0; line < lines; line += 1) {
      for (let k = 0; k < length; k += 1) sums[k + 1] = sums[k] + from[at(line, k)];
      for (let k = reach; k < length - reach; k += 1) out[at(line, k)] = sums[k + reach + 1] - sums[k - reach] === 2 * reach + 1 ? 1 : 0;
    }
    return out;
  };
  const rows = eroded(pixels, height, width, (y, x) => y * width + x);
  const inside = eroded(rows, width, height, (x, y) => y * width + x);
  return pixels.map((p, k) => p & (1 - inside[k]));
}

/** Whether bit k of a bit set is set. */
function bitSet(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return (k) => ((bytes[k >> 3] >> (k & 7)) & 1) === 1;
}

class SampleList {
  /** A list in `place`; `cells(k)` gives [class, text] pairs of sample k, and `open(k)` shows it. */
  constructor(place, cells, open) {
    Object.assign(this, { place, cells, open, rows: [], selected: 0 });
    this.space = element("div", { class: "space", role: "presentation" });
    place.replaceChildren(this.space);
    place.addEventListener("scroll", () => this.draw());
    place.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(place);
  }

  show(rows) {
    this.rows = rows;
    this.selected = Math.min(this.selected, Math.max(rows.length - 1, 0));
    this.space.style.height = `${rows.length * ROW_PX}px`;
    this.place.scrollTop = 0;
    this.draw();
  }

  draw() {
    const first = Math.max(0, Math.floor(this.place.scrollTop / ROW_PX) - 4);
    const last = Math.min(this.rows.length, Math.ceil((this.place.scrollTop + this.place.clientHeight) / ROW_PX) + 4);
    const made = [];
    for (let at = first; at < last; at += 1) {
      const spans = this.cells(this.rows[at]).map(([kind, text]) => element("span", { class: kind, title: text }, text));
      const row = element("div", {
        class: "row", role: "option", id: `row-${at}`, "aria-selected": String(at === this.selected),
        "aria-setsize": this.rows.length, "aria-posinset": at + 1, onclick: () => { this.select(at); this.open(this.rows[at]); },
      }, ...spans);
      row.style.top = `${at * ROW_PX}px`;
      made.push(row);
    }
    this.space.replaceChildren(...made);
    if (this.rows.length) this.place.setAttribute("aria-activedescendant", `row-${this.selected}`);
    else this.place.removeAttribute("aria-activedescendant");
  }

  select(at) {
    if (at < 0 || at >= this.rows.length) return false;
    this.selected = at;
    const top = at * ROW_PX;
    if (top < this.place.scrollTop) this.place.scrollTop = top;
    if (top + ROW_PX > this.place.scrollTop + this.place.clientHeight) this.place.scrollTop = top + ROW_PX - this.place.clientHeight;
    this.draw();
    return true;
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.place.clientHeight / ROW_PX) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -this.rows.length, End: this.rows.length };
    if (event.key === "Enter" && this.rows.length) this.open(this.rows[this.selected]);
    else if (event.key in steps) this.select(Math.min(this.rows.length - 1, Math.max(0, this.selected + steps[event.key])));
    else return;
    event.preventDefault();
  }
}

const LAYERS = [["image", "i", null], ["target", "t", TARGET], ["prediction", "p", PREDICTION], ["difference", "d", null], ["boundary band", "b", BAND]];

class SampleView {
  /**
   * The view of a sample over the page, with one picture for each run.
   * @param split the columns of the split. @param runs the columns of the runs.
   * @param step called with -1 or 1 to show another sample. @param facts text about sample k.
   */
  constructor(split, runs, step, facts) {
    Object.assign(this, { split, runs, step, facts, shown: null, zoom: 1, x: 0, y: 0, turn: 0 });
    this.layers = new Set((state.read().get("layers") || "itp").split(""));
    this.title = element("h2", { id: "view-title" });
    this.text = element("p", { class: "quiet" });
    this.stages = runs.map((run) => {
      const canvas = element("canvas", { role: "img" });
      const stage = element("div", { class: "stage" }, canvas, runs.length > 1 ? element("span", { class: "name" }, run.name) : "");
      return { run, canvas, stage };
    });
    this.boxes = LAYERS.map(([name, letter, colour], k) => {
      const box = element("input", { type: "checkbox", onchange: () => this.toggle(letter) });
      const label = element("label", { title: `key ${k + 1}` }, box, element("span", { class: colour ? "layer" : "" }, name));
      if (colour) label.lastChild.style.setProperty("--key", `rgb(${colour})`);
      return { box, letter, label };
    });
    const button = (text, name, action) => element("button", { type: "button", "aria-label": name, onclick: action }, text);
    this.dialog = element("dialog", { "aria-labelledby": "view-title" }, element("div", { class: "frame" },
      element("div", { class: "bar-top" }, this.title, button("←", "Previous sample", () => step(-1)), button("→", "Next sample", () => step(1)),
        button("Whole image", "Show the whole image", () => this.fit()), button("✕", "Close", () => this.dialog.close())),
      element("div", { class: "stages" }, ...this.stages.map((s) => s.stage)),
      element("div", { class: "bar-bottom" }, ...this.boxes.map((b) => b.label), this.text)));
    document.body.append(this.dialog);
    this.dialog.addEventListener("close", () => { this.shown = null; state.write({ sample: "" }); });
    this.dialog.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.dialog);
    this.stages.forEach(({ stage }) => this.follow(stage));
  }

  async show(k) {
    const turn = ++this.turn;
    this.shown = k;
    const { split } = this;
    state.write({ sample: split.ids[k] });
    this.title.textContent = `“${split.expression[k]}”`;
    this.text.textContent = this.facts(k);
    this.boxes.forEach(({ box, letter }) => { box.checked = this.layers.has(letter); });
    if (!this.dialog.open) this.dialog.showModal();
    const [height, width] = split.size[k];
    const part = Math.floor(k / split.part);
    const image = this.imageOf(split.files[split.image[k]]);
    const targets = await load(`splits/${split.slug}-${part}`);
    const target = pixelsOf(targets.codes[targets.of[k % split.part]], height, width);
    const predictions = await Promise.all(this.stages.map(async ({ run }) => {
      const code = (await load(`runs/${run.slug}-${part}`))[k % split.part];
      return code === null ? null : pixelsOf(code, height, width);
    }));
    const picture = await image;
    if (turn !== this.turn || this.shown !== k) return; // another sample was asked for in the meantime
    this.content = { height, width, target, predictions, picture, bands: null };
    this.compose();
    this.fit();
    this.dialog.dataset.ready = split.ids[k];
  }

  imageOf(file) {
    if (!file) return Promise.resolve(null);
    return new Promise((resolve) => {
      const image = new Image();
      image.onload = () => resolve(image);
      image.onerror = () => resolve(null);
      image.src = root + file;
    });
  }

  /** Draw image and layers of each run at the size of the image. */
  compose() {
    const { height, width, target, predictions, picture } = this.content;
    if (this.layers.has("b") && !this.content.bands) this.content.bands = [target, ...predictions].map((m) => (m ? bandOf(m, height, width) : null));
    this.composed = this.stages.map((_, s) => {
      const canvas = element("canvas", { width, height });
      const context = canvas.getContext("2d");
      context.fillStyle = "#60666d";
      context.fillRect(0, 0, width, height);
      if (picture && this.layers.has("i")) context.drawImage(picture, 0, 0, width, height);
      const [under, over] = [new ImageData(width, height), new ImageData(width, height)];
      const prediction = predictions[s];
      const paint = (k, [r, g, b], alpha, on = over) => on.data.set([r, g, b, alpha], 4 * k);
      const isEdge = (mask, k) => mask[k] && (k % width === 0 || k % width === width - 1 || !mask[k - 1] || !mask[k + 1] || !mask[k - width] || !mask[k + width]);
      for (let k = 0; k < target.length; k += 1) {
        const [t, p] = [target[k], prediction ? prediction[k] : 0];
        if (this.layers.has("b") && (this.content.bands[0][k] || (this.content.bands[s + 1] && this.content.bands[s + 1][k]))) paint(k, BAND, 190, under);
        if (this.layers.has("d")) {
          if (t && !p) paint(k, TARGET, 200);
          else if (p && !t) paint(k, PREDICTION, 200);
        } else {
          if (this.layers.has("p") && p) paint(k, PREDICTION, isEdge(prediction, k) ? 255 : 95);
          if (this.layers.has("t") && t && isEdge(target, k)) paint(k, TARGET, 255);
        }
      }
      const layer = element("canvas", { width, height });
      for (const pixels of [under, over]) {
        layer.getContext("2d").putImageData(pixels, 0, 0);
        context.drawImage(layer, 0, 0);
      }
      this.stages[s].canvas.setAttribute("aria-label", `${this.split.expression[this.shown]}: ${[...LAYERS].filter(([, l]) => this.layers.has(l)).map(([n]) => n).join(", ")}`);
      return canvas;
    });
    this.draw();
  }

  fit() {
    Object.assign(this, { zoom: 1, x: 0, y: 0 });
    this.draw();
  }

  draw() {
    if (!this.composed || this.shown === null) return;
    this.stages.forEach(({ canvas, stage }, s) => {
      const [w, h] = [stage.clientWidth, stage.clientHeight];
      const ratio = window.devicePixelRatio || 1;
      canvas.width = w * ratio;
      canvas.height = h * ratio;
      const made = this.composed[s];
      const scale = Math.min(w / made.width, h / made.height) * this.zoom;
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = scale < 3;
      context.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * (w / 2 + this.x - (made.width * scale) / 2), ratio * (h / 2 + this.y - (made.height * scale) / 2));
      context.drawImage(made, 0, 0);
    });
  }

  /** Zoom with the wheel, drag with the pointer; all pictures move together. */
  follow(stage) {
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      const factor = Math.exp(-event.deltaY / 400);
      const next = Math.min(40, Math.max(1, this.zoom * factor));
      const box = stage.getBoundingClientRect();
      const [dx, dy] = [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
      this.x = dx - ((dx - this.x) * next) / this.zoom;
      this.y = dy - ((dy - this.y) * next) / this.zoom;
      this.zoom = next;
      this.draw();
    }, { passive: false });
    stage.addEventListener("pointerdown", (event) => stage.setPointerCapture(event.pointerId));
    stage.addEventListener("pointermove", (event) => {
      if (!stage.hasPointerCapture(event.pointerId)) return;
      this.x += event.movementX;
      this.y += event.movementY;
      this.draw();
    });
  }

  toggle(letter) {
    if (this.layers.has(letter)) this.layers.delete(letter);
    else this.layers.add(letter);
    this.boxes.forEach((b) => { b.box.checked = this.layers.has(b.letter); });
    const chosen = LAYERS.map(([, l]) => l).filter((l) => this.layers.has(l)).join("");
    state.write({ layers: chosen === "itp" ? "" : chosen || "-" });
    if (this.content) this.compose();
  }

  key(event) {
    const number = Number(event.key);
    if (event.key === "ArrowLeft") this.step(-1);
    else if (event.key === "ArrowRight") this.step(1);
    else if (event.key === "0") this.fit();
    else if (number >= 1 && number <= LAYERS.length) this.toggle(LAYERS[number - 1][1]);
    else return;
    event.preventDefault();
  }
}
