"use strict";
// One item at a time: the picture, the source mask (green), the chosen answer (pink), and other objects that overlap
// it (blue). Text of the dataset is only ever set as textContent.

const canvas = $("canvas"), pen = canvas.getContext("2d");
const NAME = "refbench-reviewer";
const SOURCE_RGB = [0, 190, 90], CHOICE_RGB = [255, 40, 120], OTHER_RGB = [60, 140, 255];
const MOST_SECONDS = 600, MOST_ZOOM = 64, MANY_PACE = 50;
let item = null, choice = 0, choices = [], tool = "", erase = false, brush = 6;
let draft = null, corners = [], clicks = [], past = [], view = null, showMap = false, hidden = false, zoomed = true, others = true;
// When the item came into view, and for how long the page was hidden since.
let shownAt = 0, hiddenAt = 0, away = 0;

const KEYS = [
  ["1 … 9", "choose a proposal (1 is the source)"], ["Enter or a", "accept what is chosen"],
  ["s", "keep the source"], ["d", "drop the item"], ["e", "brush: drag to paint, x erases, [ ] size"],
  ["p", "polygon: click corners, Enter closes"], ["c", "click to segment; with Shift: not this part"],
  ["Ctrl+z", "take back a stroke or a click"], ["Esc", "leave the drawing"],
  ["wheel, drag", "zoom, and move the picture"], ["o", "other objects that overlap"], ["g", "many items at once"],
  ["f, then 1 … 9", "flag the language of an expression"], ["u", "undo my last answer"],
  ["n or →, b or ←", "next, previous"], ["m", "agreement map"], ["z", "whole picture or the object"],
  ["h", "hide the masks"], ["?", "this list"],
];

function fit() {
  const ratio = window.devicePixelRatio || 1;
  const box = canvas.getBoundingClientRect();
  canvas.width = Math.max(1, Math.round(box.width * ratio));
  canvas.height = Math.max(1, Math.round(box.height * ratio));
  if (!item) return;
  const part = around(zoomed ? item.sourcePixels : null, item.height, item.width);
  const scale = Math.min(canvas.width / (part.right - part.left), canvas.height / (part.bottom - part.top));
  view = { scale, x: (canvas.width - scale * (part.left + part.right)) / 2, y: (canvas.height - scale * (part.top + part.bottom)) / 2 };
}

// Layers of masks that do not change are made once.
function layerOf(holder, name, pixels, rgb, fill) {
  if (holder[name] === undefined) holder[name] = pixels ? layer(pixels, item.height, item.width, rgb, fill) : null;
  return holder[name];
}

function paint() {
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (!item || !view) return;
  pen.imageSmoothingEnabled = view.scale < 1.5;
  pen.setTransform(view.scale, 0, 0, view.scale, view.x, view.y);
  if (item.ready) pen.drawImage(item.picture, 0, 0);
  pen.imageSmoothingEnabled = false;
  if (!hidden) {
    if (showMap && item.proposals.length) {
      item.map = item.map || agreementMap(item.proposals, item.height, item.width);
      pen.drawImage(item.map, 0, 0);
    } else {
      if (others) for (const other of item.others) {
        other.pixels = other.pixels || decode(other.mask, item.height, item.width);
        drawLayer(pen, layerOf(other, "layer", other.pixels, OTHER_RGB, 30));
      }
      if (draft) drawLayer(pen, layer(draft, item.height, item.width, CHOICE_RGB, 70));
      else if (choices[choice]) drawLayer(pen, layerOf(choices[choice], "layer", choices[choice].pixels, CHOICE_RGB, 70));
      drawLayer(pen, layerOf(item, "sourceLayer", item.sourcePixels, SOURCE_RGB, 0));
    }
  }
  if (corners.length) {
    pen.lineWidth = 1.5 / view.scale; pen.strokeStyle = "yellow"; pen.beginPath();
    corners.forEach(([x, y], k) => (k ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.stroke();
  }
  for (const [x, y, inside] of clicks) {
    pen.beginPath(); pen.arc(x + 0.5, y + 0.5, 5 / view.scale, 0, 7);
    pen.fillStyle = inside ? "#00be5a" : "#e03131"; pen.strokeStyle = "white"; pen.lineWidth = 1.5 / view.scale;
    pen.fill(); pen.stroke();
  }
  const overlap = others && item.others.length ? `overlaps ${item.others.map((o) => o.category || o.ann_id).join(", ")} (blue)` : "";
  $("mode").textContent = tool === "brush" ? `${erase ? "erasing" : "painting"}, ${brush} px` :
    tool === "polygon" ? `polygon, ${corners.length} corners` : tool === "click" ? "click the object; Shift: not this part" :
    showMap ? "agreement map" : overlap || (zoomed ? "" : "whole picture");
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
  choice = k; leaveDrawing();
  showSide(); paint();
}

function leaveDrawing() {
  draft = null; tool = ""; corners = []; clicks = []; past = [];
}

async function open(k) {
  if (k < 0 || k >= items.length) return;
  at = k;
  const wanted = items[k].item_id;
  const found = await prepare(wanted);
  if (items[at].item_id !== wanted) return;
  item = found; leaveDrawing(); choice = 0; showMap = false; hidden = false;
  choices = item.choices;
  if (choices.length > 1) choice = 1;
  found.loaded.then((ready) => { found.ready = ready; if (item === found) paint(); });
  shownAt = performance.now(); away = 0;
  fit(); showSide(); paint(); markQueue();
  canvas.focus();
  prefetch();
}

function secondsHere() {
  return Math.min(MOST_SECONDS, Math.max(0, performance.now() - shownAt - away) / 1000);
}

function noteSeconds(seconds) {
  mySeconds.push(seconds);
  if (mySeconds.length > MANY_PACE) mySeconds.shift();
}

async function answer(action, extra = {}) {
  const reviewer = me();
  if (!reviewer) { say("first write your name", true); $("reviewer").focus(); return; }
  if (!item) return;
  try {
    const about = extra.item_id || item.item_id, seconds = secondsHere();
    await send([{ key: newKey(), item_id: item.item_id, reviewer, action, seconds, ...extra }]);
    const other = about !== item.item_id;
    if (!other) noteSeconds(seconds);
    const next = other ? undefined : nextOpen();
    if (next !== undefined) await open(next);
    else { await refresh(); markQueue(); }
    const over = items.some((i) => i.state !== "settled") ? "" : "; everything is settled";
    // Last, so that who reads it sees the next item.
    say(`saved: ${action} ${short(about)}${over}`);
  } catch (error) { say(error.message, true); }
}

// The same item again, with the answers that it has now.
async function refresh() {
  const id = item.item_id;
  const found = await prepare(id);
  if (item.item_id !== id) return;
  found.loaded.then((ready) => { found.ready = ready; if (item === found) paint(); });
  item = found; choices = item.choices; choice = Math.min(choice, Math.max(0, choices.length - 1));
  showSide(); paint();
}

function accept() {
  if (item.item === "expression") return answer("keep");
  if (draft) return answer("change", { counts: encode(draft, item.height, item.width), origin: draft.origin || "brush" });
  if (choice === 0) return answer("keep");
  return answer("change", { counts: choices[choice].runs, origin: choices[choice].origin });
}

async function undo() {
  const reviewer = me();
  if (!reviewer) return;
  try {
    // What was not sent yet is taken back first.
    const mine = unsent((waiting) => waiting).filter((one) => one.reviewer === reviewer).pop();
    if (mine) {
      await navigator.locks.request(unsentKey, () => unsent((waiting) => waiting.filter((one) => one.key !== mine.key)));
      say(`taken back before it was sent: ${mine.item_id}`);
      return;
    }
    const told = await call("undo", { reviewer, since: revision });
    update(told);
    flaggedHere.delete(told.item_id);
    const k = places.get(told.item_id);
    if (k !== undefined) await open(k); else { markQueue(); showSide(); }
    say(told.item_id ? `taken back: ${told.item_id}` : "there is nothing to take back");
  } catch (error) { say(error.message, true); }
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
  tool = kind; draft.origin = kind; corners = []; clicks = []; showMap = false;
  if (kind === "click") draft.start = encode(draft, item.height, item.width);
  showSide(); paint();
}

// The server draws from all clicks at once; an answer to earlier clicks that comes late is not shown.
let clickTurn = 0;
async function segment() {
  const turn = ++clickTurn, one = item, before = draft;
  if (!clicks.length) { redraw(decode(before.start, one.height, one.width), before); return; }
  const told = await call("click", { item_id: one.item_id, counts: before.start, clicks });
  if (turn === clickTurn && item === one && draft && tool === "click") redraw(decode(told.counts, one.height, one.width), before);
}

function redraw(pixels, before) {
  draft = Object.assign(pixels, { origin: "click", start: before.start });
  paint();
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

let last = null, grabbed = null;
canvas.addEventListener("pointerdown", (event) => {
  canvas.focus();
  if (!item || !view) return;
  const here = place(event);
  if (!tool || event.button === 1) { grabbed = [event.clientX, event.clientY]; canvas.setPointerCapture(event.pointerId); return; }
  if (tool === "polygon") { corners.push(here); paint(); return; }
  if (tool === "click") {
    const [x, y] = here.map(Math.floor);
    if (x < 0 || y < 0 || x >= item.width || y >= item.height) return;
    clicks.push([x, y, !event.shiftKey]); paint();
    segment().catch((error) => say(error.message, true));
    return;
  }
  remember(); last = here; dab(here); paint(); canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointermove", (event) => {
  if (grabbed) {
    const ratio = canvas.width / canvas.getBoundingClientRect().width;
    view.x += (event.clientX - grabbed[0]) * ratio; view.y += (event.clientY - grabbed[1]) * ratio;
    grabbed = [event.clientX, event.clientY]; paint();
    return;
  }
  if (!last) return;
  const here = place(event), steps = Math.ceil(Math.hypot(here[0] - last[0], here[1] - last[1]));
  for (let k = 1; k <= steps; k++) dab([last[0] + (here[0] - last[0]) * k / steps, last[1] + (here[1] - last[1]) * k / steps]);
  last = here; paint();
});
canvas.addEventListener("pointerup", () => { last = null; grabbed = null; });
canvas.addEventListener("wheel", (event) => {
  if (!item || !view) return;
  event.preventDefault();
  const [x, y] = place(event);
  const scale = Math.min(MOST_ZOOM, Math.max(0.05, view.scale * Math.exp(-event.deltaY * (event.deltaMode ? 0.03 : 0.0015))));
  // The pixel under the pointer stays there.
  view = { scale, x: view.x + x * (view.scale - scale), y: view.y + y * (view.scale - scale) };
  paint();
}, { passive: false });
document.addEventListener("visibilitychange", () => {
  if (document.hidden) hiddenAt = performance.now();
  else if (hiddenAt) { away += performance.now() - Math.max(hiddenAt, shownAt); hiddenAt = 0; }
});

document.addEventListener("keydown", (event) => {
  if (event.target === $("reviewer")) {
    if (event.key === "Enter" || event.key === "Escape") { event.preventDefault(); canvas.focus(); }
    return;
  }
  if ($("help").open || event.altKey || event.metaKey) return;
  const key = event.key;
  // A button that has the focus answers to these itself.
  if ((key === "Enter" || key === " ") && event.target.closest("button:not(.tile), summary, a")) return;
  // A key that is held is one answer.
  if (event.repeat && !["n", "b", "ArrowRight", "ArrowLeft", "[", "]"].includes(key)) { event.preventDefault(); return; }
  if (event.ctrlKey) {
    if (key === "z" && tool === "click" && clicks.length) { event.preventDefault(); clicks.pop(); segment().catch((error) => say(error.message, true)); }
    else if (key === "z" && draft && past.length) { event.preventDefault(); const origin = draft.origin; draft = past.pop(); draft.origin = origin; paint(); }
    return;
  }
  if (gridShown()) {
    if (GRID_KEYS[key]) { event.preventDefault(); inLine(GRID_KEYS[key]); }
    else if (/^[1-9]$/.test(key) && grid.tiles[key - 1]) turn(grid.tiles[key - 1]);
    return;
  }
  if (!item && key !== "?") return;
  const digit = /^[1-9]$/.test(key) ? Number(key) : 0;
  const step = {
    Enter: () => (tool === "polygon" && corners.length ? closePolygon() : accept()), a: accept,
    s: () => answer("keep"), d: () => answer("drop"), u: undo, n: () => open(at + 1), ArrowRight: () => open(at + 1),
    b: () => open(at - 1), ArrowLeft: () => open(at - 1), e: () => startDrawing("brush"), p: () => startDrawing("polygon"),
    c: () => startDrawing("click"), g: () => openGrid(), o: () => { others = !others; paint(); },
    x: () => { erase = !erase; paint(); }, "[": () => { brush = Math.max(1, brush - 2); paint(); },
    "]": () => { brush = Math.min(80, brush + 2); paint(); }, m: () => { showMap = !showMap; paint(); },
    z: () => { zoomed = !zoomed; fit(); paint(); }, h: () => { hidden = !hidden; paint(); },
    f: () => { flagging = true; say("flag which expression? 1 … 9"); }, "?": () => $("help").showModal(),
    Escape: () => { if (flagging) { flagging = false; say(""); } else { leaveDrawing(); showSide(); paint(); } },
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
  ["brush", () => startDrawing("brush")], ["polygon", () => startDrawing("polygon")], ["click", () => startDrawing("click")], ["grid", () => openGrid()], ["undo", undo]].map(([text, work]) => {
  const button = document.createElement("button");
  button.type = "button"; button.textContent = text; button.addEventListener("click", () => inLine(work));
  return button;
}));
for (const [id, work] of [["grid-all", GRID_KEYS.y], ["grid-save", saveGrid], ["grid-next", GRID_KEYS.n], ["grid-back", closeGrid]])
  $(id).addEventListener("click", () => inLine(work));
$("items-button").addEventListener("click", () => document.body.classList.toggle("items-shown"));
$("help-button").addEventListener("click", () => $("help").showModal());
$("reviewer").value = localStorage.getItem(NAME) || "";
$("reviewer").addEventListener("change", () => { 
  // Another person has other items before them.
  localStorage.setItem(NAME, $("reviewer").value.trim());
  mySeconds.length = 0;
  inLine(async () => { await loadQueue(); at = -1; lastHere = null; const next = nextOpen(); if (next !== undefined) await open(next); else markQueue(); });
});
window.addEventListener("resize", () => { fit(); paint(); });

(async () => {
  await loadQueue();
  try { await flush(); } catch (error) { say(error.message, true); }
  if (!items.length) { say("nothing waits for review"); return; }
  const next = nextOpen();
  await open(next === undefined ? 0 : next);
  if (!$("reviewer").value) { say("write your name to begin"); $("reviewer").focus(); }
})().catch((error) => say(error.message, true));
