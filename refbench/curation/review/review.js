"use strict";
// One item at a time: the picture, the source mask (green), the chosen answer (pink). Text of the dataset is only ever
// set as textContent. An answer stays in localStorage until the server has said that it is on the disk.

const $ = (id) => document.getElementById(id);
const canvas = $("canvas"), pen = canvas.getContext("2d");
const NAME = "refbench-reviewer";
const SOURCE_RGB = [0, 190, 90], CHOICE_RGB = [255, 40, 120];
// Where answers wait until they are on the disk: of this build of this source only.
let unsentKey = "refbench-unsent";
let items = [], at = -1, item = null, picture = null, choice = 0, choices = [], tool = "", erase = false, brush = 6;
let draft = null, corners = [], past = [], view = null, showMap = false, hidden = false, zoomed = true;

const KEYS = [
  ["1 … 9", "choose a proposal (1 is the source)"], ["Enter or a", "accept what is chosen"],
  ["s", "keep the source"], ["d", "drop the item"], ["e", "brush: drag to paint, x erases, [ ] size"],
  ["p", "polygon: click corners, Enter closes"], ["Ctrl+z", "take back a stroke"], ["Esc", "leave the drawing"],
  ["f, then 1 … 9", "flag the language of an expression"], ["u", "undo my last answer"],
  ["n or →, b or ←", "next, previous"], ["m", "agreement map"], ["z", "whole picture or the object"],
  ["h", "hide the masks"], ["?", "this list"],
];

async function call(path, content) {
  const options = content === undefined ? {} :
    { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) };
  const response = await fetch("api/" + path, options);
  const told = await response.json();
  // Only of these it is certain that sending again will not help.
  const refused = response.status === 400 || response.status === 413;
  if (!response.ok) throw Object.assign(new Error(told.error || response.statusText), { refused });
  return told;
}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

// Runs down the columns, background first, to pixels along the rows and back.
function decode(runs, height, width) {
  const out = new Uint8Array(height * width);
  let place = 0, value = 0;
  for (const run of runs) {
    if (value) for (let k = place; k < place + run; k++) out[(k % height) * width + Math.floor(k / height)] = 1;
    place += run;
    value = 1 - value;
  }
  return out;
}

function encode(pixels, height, width) {
  const runs = [];
  let value = 0, run = 0;
  for (let x = 0; x < width; x++) for (let y = 0; y < height; y++) {
    if (pixels[y * width + x] === value) run++;
    else { runs.push(run); run = 1; value = 1 - value; }
  }
  runs.push(run);
  return runs;
}

function layer(pixels, rgb, fill) {
  const { height, width } = item;
  const image = new ImageData(width, height);
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    const k = y * width + x;
    if (!pixels[k]) continue;
    const rim = x === 0 || y === 0 || x === width - 1 || y === height - 1 ||
      !pixels[k - 1] || !pixels[k + 1] || !pixels[k - width] || !pixels[k + width];
    image.data.set([...rgb, rim ? 255 : fill], 4 * k);
  }
  return bitmap(image);
}

function bitmap(image) {
  const sheet = new OffscreenCanvas(image.width, image.height);
  sheet.getContext("2d").putImageData(image, 0, 0);
  return sheet;
}

// Where proposals are of one mind it is dark or bright, where they are not it is yellow.
function agreementMap() {
  const all = item.proposals.flatMap((p) => p.votes).map((v) => decode(v, item.height, item.width));
  const image = new ImageData(item.width, item.height);
  for (let k = 0; k < item.height * item.width; k++) {
    let votes = 0;
    for (const one of all) votes += one[k];
    const share = all.length ? votes / all.length : 0, torn = 1 - Math.abs(2 * share - 1);
    if (share > 0) image.data.set([255 * Math.max(share, torn), 230 * Math.max(torn, 0.15), 40, 60 + 150 * Math.max(torn, share * 0.4)], 4 * k);
  }
  return bitmap(image);
}

function fit() {
  const ratio = window.devicePixelRatio || 1;
  const box = canvas.getBoundingClientRect();
  canvas.width = Math.max(1, Math.round(box.width * ratio));
  canvas.height = Math.max(1, Math.round(box.height * ratio));
  if (!item) return;
  let left = 0, top = 0, right = item.width, bottom = item.height;
  const base = item.sourcePixels;
  if (zoomed && base) {
    let x0 = right, y0 = bottom, x1 = 0, y1 = 0;
    for (let y = 0; y < item.height; y++) for (let x = 0; x < item.width; x++) if (base[y * item.width + x]) {
      x0 = Math.min(x0, x); x1 = Math.max(x1, x); y0 = Math.min(y0, y); y1 = Math.max(y1, y);
    }
    if (x1 >= x0) {
      const space = 12 + 0.3 * Math.max(x1 - x0, y1 - y0);
      left = Math.max(0, x0 - space); top = Math.max(0, y0 - space);
      right = Math.min(item.width, x1 + space); bottom = Math.min(item.height, y1 + space);
    }
  }
  const scale = Math.min(canvas.width / (right - left), canvas.height / (bottom - top));
  view = { scale, x: (canvas.width - scale * (left + right)) / 2, y: (canvas.height - scale * (top + bottom)) / 2 };
}

function paint() {
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (!item || !view) return;
  pen.imageSmoothingEnabled = view.scale < 1.5;
  pen.setTransform(view.scale, 0, 0, view.scale, view.x, view.y);
  if (picture) pen.drawImage(picture, 0, 0);
  pen.imageSmoothingEnabled = false;
  if (!hidden) {
    if (showMap && item.map) pen.drawImage(item.map, 0, 0);
    else {
      const shown = draft || (choices[choice] && choices[choice].pixels);
      if (shown) pen.drawImage(layer(shown, CHOICE_RGB, 70), 0, 0);
      if (item.sourcePixels) pen.drawImage(layer(item.sourcePixels, SOURCE_RGB, 0), 0, 0);
    }
  }
  if (corners.length) {
    pen.lineWidth = 1.5 / view.scale; pen.strokeStyle = "yellow"; pen.beginPath();
    corners.forEach(([x, y], k) => (k ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.stroke();
  }
  $("mode").textContent = tool === "brush" ? `${erase ? "erasing" : "painting"}, ${brush} px` :
    tool === "polygon" ? `polygon, ${corners.length} corners` : showMap ? "agreement map" : zoomed ? "" : "whole picture";
}

function list(id, texts, make) {
  const place = $(id);
  place.replaceChildren(...texts.map((text, k) => {
    const row = document.createElement("li");
    row.textContent = typeof text === "string" ? text : text.text;
    if (make) make(row, k, text);
    return row;
  }));
}

function showSide() {
  $("item").textContent = `${item.item_id}${item.category ? " · " + item.category : ""}`;
  $("reason").textContent = item.reason;
  list("choices", choices.map((c) => c.text), (row, k) => {
    row.classList.toggle("here", k === choice && !draft);
    row.addEventListener("click", () => choose(k));
  });
  const texts = item.item === "expression" ? [{ text: item.expression, sample_id: item.item_id }] : item.expressions;
  list("expressions", texts, (row, k, e) => row.classList.toggle("flagged", flaggedHere.has(e.sample_id)));
  list("findings", [...item.findings, ...item.answers.map((a) => `${a.reviewer}: ${a.action} ${a.origin} ${a.note}`)]);
}

const flaggedHere = new Set();

function choose(k) {
  if (k < 0 || k >= choices.length) return;
  choice = k; draft = null; tool = ""; corners = [];
  showSide(); paint();
}

async function open(k, reload = true) {
  if (k < 0 || k >= items.length) return;
  at = k;
  const wanted = items[k].item_id;
  const found = await call("item?id=" + encodeURIComponent(wanted));
  if (items[at].item_id !== wanted) return;
  item = found; draft = null; tool = ""; corners = []; past = []; choice = 0; showMap = false; hidden = false;
  item.sourcePixels = item.source ? decode(item.source, item.height, item.width) : null;
  choices = item.item === "expression" ? [] :
    [{ text: "source", origin: "source", pixels: item.sourcePixels },
     ...item.proposals.map((p) => ({ text: `${p.refiner} (agrees ${p.agreement.toFixed(2)}, sure ${p.confidence.toFixed(2)})`,
       origin: p.refiner, runs: p.mask, pixels: decode(p.mask, item.height, item.width) })),
     ...item.drawn.map((runs, j) => ({ text: `drawn by a reviewer (${j + 1})`, origin: "brush", runs, pixels: decode(runs, item.height, item.width) }))];
  if (choices.length > 1) choice = 1;
  item.map = item.proposals.length ? agreementMap() : null;
  picture = null;
  const image = new Image();
  image.onload = () => { if (item && item.item_id === wanted) { picture = image; paint(); } };
  image.src = "api/picture?id=" + encodeURIComponent(item.image_id);
  fit(); showSide(); paint(); markQueue();
  canvas.focus();
}

function markQueue() {
  for (const [k, row] of [...$("queue").children].entries()) row.classList.toggle("here", k === at);
  const row = $("queue").children[at];
  if (row) row.scrollIntoView({ block: "nearest" });
  const done = items.filter((i) => i.state === "settled").length;
  const torn = items.filter((i) => i.state === "disagreed").length;
  $("progress").textContent = `${done} of ${items.length} settled${torn ? `, ${torn} disagreed` : ""}`;
}

async function loadQueue() {
  const told = await call("queue");
  $("source").textContent = told.source;
  unsentKey = `refbench-unsent ${told.source} ${told.fingerprint}`;
  items = told.items;
  const me = $("reviewer").value.trim();
  $("queue").replaceChildren(...items.map((i, k) => {
    const row = document.createElement("button"), name = document.createElement("span"), state = document.createElement("span");
    row.type = "button"; row.tabIndex = -1; row.className = i.state;
    name.textContent = i.item_id.split("/").slice(2).join("/"); name.title = i.reason;
    state.textContent = i.state === "settled" ? "✓" : i.state === "disagreed" ? "≠" : i.reviewers.includes(me) ? "…" : i.doubt.toFixed(2);
    if (i.reviewers.includes(me)) row.classList.add("mine");
    row.append(name, state);
    row.addEventListener("click", () => inLine(() => open(k)));
    return row;
  }));
}

// The next item that I have not answered and that is not settled, after this one, else from the start.
function nextOpen() {
  const me = $("reviewer").value.trim();
  const order = [...items.keys()].map((k) => (at + 1 + k) % items.length);
  return order.find((k) => items[k].state !== "settled" && !items[k].reviewers.includes(me));
}

function unsent(change) {
  const waiting = change(JSON.parse(localStorage.getItem(unsentKey) || "[]"));
  localStorage.setItem(unsentKey, JSON.stringify(waiting));
  return waiting;
}

// Other tabs of this page keep their answers in the same place: one of them at a time.
async function send(content) {
  await navigator.locks.request(unsentKey, () => unsent((waiting) => [...waiting, content]));
  await flush();
}

function flush() {
  return navigator.locks.request(unsentKey, async () => {
    for (;;) {
      const [first] = unsent((waiting) => waiting);
      if (!first) return;
      try { await call("answer", first); } catch (error) {
        if (!error.refused) throw new Error(`not saved yet, it will be sent again: ${error.message}`);
        unsent((waiting) => waiting.filter((one) => one.key !== first.key));
        throw new Error(`not taken: ${error.message}`);
      }
      unsent((waiting) => waiting.filter((one) => one.key !== first.key));
    }
  });
}

function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");
}

async function answer(action, extra = {}) {
  const reviewer = $("reviewer").value.trim();
  if (!reviewer) { say("first write your name", true); $("reviewer").focus(); return; }
  if (!item) return;
  try {
    const about = extra.item_id || item.item_id;
    await send({ key: newKey(), item_id: item.item_id, reviewer, action, ...extra });
    await loadQueue();
    at = items.findIndex((i) => i.item_id === item.item_id);
    const next = extra.item_id && extra.item_id !== item.item_id ? undefined : nextOpen();
    if (next !== undefined) await open(next);
    else { markQueue(); showSide(); }
    const over = items.some((i) => i.state !== "settled") ? "" : "; everything is settled";
    // Last, so that who reads it sees the next item.
    say(`saved: ${action} ${about.split("/").slice(2).join("/")}${over}`);
  } catch (error) { say(error.message, true); }
}

function accept() {
  if (item.item === "expression") return answer("keep");
  if (draft) return answer("change", { counts: encode(draft, item.height, item.width), origin: draft.origin || "brush" });
  if (choice === 0) return answer("keep");
  return answer("change", { counts: choices[choice].runs, origin: choices[choice].origin });
}

async function undo() {
  const reviewer = $("reviewer").value.trim();
  if (!reviewer) return;
  try {
    // What was not sent yet is taken back first.
    const mine = unsent((waiting) => waiting).filter((one) => one.reviewer === reviewer).pop();
    if (mine) {
      await navigator.locks.request(unsentKey, () => unsent((waiting) => waiting.filter((one) => one.key !== mine.key)));
      say(`taken back before it was sent: ${mine.item_id}`);
      return;
    }
    const told = await call("undo", { reviewer });
    await loadQueue();
    flaggedHere.delete(told.item_id);
    const k = items.findIndex((i) => i.item_id === told.item_id);
    if (k >= 0) await open(k); else { at = items.findIndex((i) => item && i.item_id === item.item_id); markQueue(); showSide(); }
    say(told.item_id ? `taken back: ${told.item_id}` : "there is nothing to take back");
  } catch (error) { say(error.message, true); }
}

// One after the other: a key that is pressed while an answer is on its way means the item that comes then.
let line = Promise.resolve();
function inLine(work) {
  line = line.then(work).catch((error) => say(error.message, true));
}

let flagging = false;
function flag(k) {
  flagging = false;
  const texts = item.item === "expression" ? [{ sample_id: item.item_id }] : item.expressions;
  if (!texts[k]) { say("there is no such expression", true); return; }
  flaggedHere.add(texts[k].sample_id);
  return answer("drop", { item_id: texts[k].sample_id, note: "language" });
}

function place(event) {
  const box = canvas.getBoundingClientRect(), ratio = canvas.width / box.width;
  return [((event.clientX - box.left) * ratio - view.x) / view.scale, ((event.clientY - box.top) * ratio - view.y) / view.scale];
}

function startDrawing(kind) {
  if (!item || item.item === "expression") return;
  if (!draft) {
    const base = choices[choice] && choices[choice].pixels;
    draft = base ? base.slice() : new Uint8Array(item.height * item.width);
    past = [];
  }
  tool = kind; draft.origin = kind; corners = []; showMap = false;
  showSide(); paint();
}

function dab([x, y]) {
  const r = brush / 2;
  for (let row = Math.floor(y - r); row <= y + r; row++) for (let column = Math.floor(x - r); column <= x + r; column++) {
    if (row < 0 || column < 0 || row >= item.height || column >= item.width) continue;
    if ((column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2 <= r * r) draft[row * item.width + column] = erase ? 0 : 1;
  }
}

function remember() { past.push(draft.slice()); if (past.length > 50) past.shift(); }

function closePolygon() {
  if (corners.length > 2) {
    remember();
    const sheet = new OffscreenCanvas(item.width, item.height), ink = sheet.getContext("2d");
    ink.beginPath(); corners.forEach(([x, y]) => ink.lineTo(x, y)); ink.closePath(); ink.fill();
    const alpha = ink.getImageData(0, 0, item.width, item.height).data;
    for (let k = 0; k < draft.length; k++) if (alpha[4 * k + 3] > 127) draft[k] = erase ? 0 : 1;
  }
  corners = []; paint();
}

let last = null;
canvas.addEventListener("pointerdown", (event) => {
  canvas.focus();
  if (!tool) return;
  const here = place(event);
  if (tool === "polygon") { corners.push(here); paint(); return; }
  remember(); last = here; dab(here); paint(); canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointermove", (event) => {
  if (!last) return;
  const here = place(event), steps = Math.ceil(Math.hypot(here[0] - last[0], here[1] - last[1]));
  for (let k = 1; k <= steps; k++) dab([last[0] + (here[0] - last[0]) * k / steps, last[1] + (here[1] - last[1]) * k / steps]);
  last = here; paint();
});
canvas.addEventListener("pointerup", () => { last = null; });

document.addEventListener("keydown", (event) => {
  if (event.target === $("reviewer")) {
    if (event.key === "Enter" || event.key === "Escape") { event.preventDefault(); canvas.focus(); }
    return;
  }
  if ($("help").open || event.altKey || event.metaKey) return;
  const key = event.key;
  // A button that has the focus answers to these itself.
  if ((key === "Enter" || key === " ") && event.target.closest("button, summary, a")) return;
  // A key that is held is one answer.
  if (event.repeat && !["n", "b", "ArrowRight", "ArrowLeft", "[", "]"].includes(key)) { event.preventDefault(); return; }
  if (event.ctrlKey) {
    if (key === "z" && draft && past.length) { event.preventDefault(); const origin = draft.origin; draft = past.pop(); draft.origin = origin; paint(); }
    return;
  }
  if (!item && key !== "?") return;
  const digit = /^[1-9]$/.test(key) ? Number(key) : 0;
  const step = {
    Enter: () => (tool === "polygon" && corners.length ? closePolygon() : accept()), a: accept,
    s: () => answer("keep"), d: () => answer("drop"), u: undo, n: () => open(at + 1), ArrowRight: () => open(at + 1),
    b: () => open(at - 1), ArrowLeft: () => open(at - 1), e: () => startDrawing("brush"), p: () => startDrawing("polygon"),
    x: () => { erase = !erase; paint(); }, "[": () => { brush = Math.max(1, brush - 2); paint(); },
    "]": () => { brush = Math.min(80, brush + 2); paint(); }, m: () => { showMap = !showMap; paint(); },
    z: () => { zoomed = !zoomed; fit(); paint(); }, h: () => { hidden = !hidden; paint(); },
    f: () => { flagging = true; say("flag which expression? 1 … 9"); }, "?": () => $("help").showModal(),
    Escape: () => { if (flagging) { flagging = false; say(""); } else { draft = null; tool = ""; corners = []; showSide(); paint(); } },
  }[key];
  if (digit) { event.preventDefault(); inLine(() => (flagging ? flag(digit - 1) : choose(digit - 1))); }
  else if (step) { event.preventDefault(); inLine(step); }
});

$("keys").replaceChildren(...KEYS.map(([keys, what]) => {
  const row = document.createElement("tr"), left = document.createElement("td"), right = document.createElement("td");
  const key = document.createElement("kbd");
  key.textContent = keys; left.append(key); right.textContent = what; row.append(left, right);
  return row;
}));
$("buttons").replaceChildren(...[["accept", accept], ["keep source", () => answer("keep")], ["drop", () => answer("drop")],
  ["brush", () => startDrawing("brush")], ["polygon", () => startDrawing("polygon")], ["undo", undo]].map(([text, work]) => {
  const button = document.createElement("button");
  button.type = "button"; button.textContent = text; button.addEventListener("click", () => inLine(work));
  return button;
}));
$("help-button").addEventListener("click", () => $("help").showModal());
$("reviewer").value = localStorage.getItem(NAME) || "";
$("reviewer").addEventListener("change", () => { 
  // Another person has other items before them.
  localStorage.setItem(NAME, $("reviewer").value.trim());
  inLine(async () => { await loadQueue(); at = -1; const next = nextOpen(); if (next !== undefined) await open(next); else markQueue(); });
});
window.addEventListener("resize", () => { fit(); paint(); });

(async () => {
  await loadQueue();
  try { await flush(); await loadQueue(); } catch (error) { say(error.message, true); }
  if (!items.length) { say("nothing waits for review"); return; }
  const next = nextOpen();
  await open(next === undefined ? 0 : next);
  if (!$("reviewer").value) { say("write your name to begin"); $("reviewer").focus(); }
})().catch((error) => say(error.message, true));
