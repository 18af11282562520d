"use strict";
// The queue, the answers on their way to the server, and the items that are prepared in advance. An answer stays in
// localStorage until the server has said that it is on the disk. Text of the dataset is only ever set as textContent.

const $ = (id) => document.getElementById(id);
const PREPARED = 24, AHEAD = 3, BATCH = 50;
// Where answers wait until they are on the disk: of this build of this source only.
let unsentKey = "refbench-unsent";
let items = [], at = -1, revision = "";
const rows = new Map(), places = new Map(), prepared = new Map();
// Seconds that my last answers took.
const mySeconds = [];

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

const me = () => $("reviewer").value.trim();
const short = (id) => id.split("/").slice(2).join("/");

async function loadQueue() {
  const told = await call("queue");
  $("source").textContent = told.source;
  unsentKey = `refbench-unsent ${told.source} ${told.fingerprint}`;
  items = told.items;
  revision = told.revision;
  rows.clear(); places.clear(); prepared.clear();
  $("queue").replaceChildren(...items.map((entry, k) => {
    const row = document.createElement("button"), name = document.createElement("span"), state = document.createElement("span");
    row.type = "button"; row.tabIndex = -1;
    name.textContent = short(entry.item_id); name.title = entry.reason;
    row.append(name, state);
    row.addEventListener("click", () => inLine(() => open(k)));
    rows.set(entry.item_id, row); places.set(entry.item_id, k);
    showState(entry, row);
    return row;
  }));
}

function showState(entry, row) {
  const mine = entry.reviewers.includes(me());
  row.className = [entry.state, mine ? "mine" : ""].join(" ").trim();
  row.lastChild.textContent = entry.state === "settled" ? "✓" : entry.state === "disagreed" ? "≠" : mine ? "…" : entry.doubt.toFixed(2);
}

// What the server says has changed, by me or by others: nothing else on the page is touched.
function update(told) {
  revision = told.revision;
  for (const entry of told.entries) {
    const k = places.get(entry.item_id);
    prepared.delete(entry.item_id);
    if (k === undefined) continue;
    items[k] = { ...items[k], ...entry };
    showState(items[k], rows.get(entry.item_id));
    if (k === at) rows.get(entry.item_id).classList.add("here");
  }
}

let lastHere = null;
function markQueue() {
  if (lastHere) lastHere.classList.remove("here");
  lastHere = at >= 0 ? rows.get(items[at].item_id) : null;
  if (lastHere) { lastHere.classList.add("here"); lastHere.scrollIntoView({ block: "center" }); }
  let done = 0, torn = 0, left = 0;
  for (const entry of items) {
    if (entry.state === "settled") done++;
    else if (!entry.reviewers.includes(me())) left++;
    if (entry.state === "disagreed") torn++;
  }
  const parts = [`${done} of ${items.length} settled`];
  if (torn) parts[0] += `, ${torn} disagreed`;
  if (mySeconds.length > 2) {
    const pace = [...mySeconds].sort((a, b) => a - b)[mySeconds.length >> 1], minutes = pace * left / 60;
    parts.push(`${pace < 10 ? pace.toFixed(1) : Math.round(pace)} s an item, about ${minutes < 90 ? Math.ceil(minutes) + " min" : (minutes / 60).toFixed(1) + " h"} left`);
  }
  const text = parts.join(" · ");
  if ($("progress").textContent !== text) $("progress").textContent = text;
}

const isOpen = (entry) => entry.state !== "settled" && !entry.reviewers.includes(me());

// The next item that I have not answered and that is not settled, after this one, otherwise from the start.
function nextOpen(after = at) {
  for (let k = 1; k <= items.length; k++) {
    const place = (after + k + items.length) % items.length;
    if (isOpen(items[place])) return place;
  }
  return undefined;
}

// An item with its masks decoded and its image loaded. Kept, so that items that come next are there at once.
function prepare(id) {
  let found = prepared.get(id);
  if (found) { prepared.delete(id); prepared.set(id, found); return found; }
  found = load(id);
  prepared.set(id, found);
  found.catch(() => prepared.delete(id));
  while (prepared.size > PREPARED) prepared.delete(prepared.keys().next().value);
  return found;
}

async function load(id) {
  const one = await call("item?id=" + encodeURIComponent(id));
  const { height, width } = one;
  one.sourcePixels = one.source ? decode(one.source, height, width) : null;
  one.choices = one.item === "expression" ? [] : [
    { text: "source", origin: "source", pixels: one.sourcePixels },
    ...one.proposals.map((p) => ({ text: `${p.refiner} (agrees ${p.agreement.toFixed(2)}, sure ${p.confidence.toFixed(2)})`,
      origin: p.refiner, runs: p.mask })),
    ...one.drawn.map((runs, j) => ({ text: `drawn by a reviewer (${j + 1})`, origin: "brush", runs })),
  ];
  for (const choice of one.choices) if (choice.runs) decodedLater(choice, height, width);
  one.picture = new Image();
  one.picture.src = "api/picture?id=" + encodeURIComponent(one.image_id);
  one.loaded = one.picture.decode().then(() => true, () => false);
  return one;
}

// Most choices are never looked at, and the pixels of a photograph take megabytes.
function decodedLater(choice, height, width) {
  let pixels = null;
  Object.defineProperty(choice, "pixels", { get: () => (pixels = pixels || decode(choice.runs, height, width)) });
}

function prefetch() {
  let k = at;
  for (let n = 0; n < AHEAD; n++) {
    k = nextOpen(k);
    if (k === undefined || k === at) return;
    prepare(items[k].item_id).catch(() => {});
  }
}

function unsent(change) {
  const waiting = change(JSON.parse(localStorage.getItem(unsentKey) || "[]"));
  localStorage.setItem(unsentKey, JSON.stringify(waiting));
  return waiting;
}

// Other tabs of this page keep their answers in the same place: one of them at a time.
function send(answers) {
  return navigator.locks.request(unsentKey, () => {
    unsent((waiting) => [...waiting, ...answers]);
    return drain();
  });
}

function flush() {
  return navigator.locks.request(unsentKey, drain);
}

async function drain() {
  let most = BATCH, refusal = null;
  for (;;) {
    const some = unsent((waiting) => waiting).slice(0, most);
    if (!some.length) break;
    const keys = new Set(some.map((one) => one.key));
    try { update(await call("answer", { answers: some, since: revision })); } catch (error) {
      if (!error.refused) throw new Error(`not saved yet, it will be sent again: ${error.message}`);
      // One of them is refused: one at a time, so that the others are taken.
      if (some.length > 1) { most = 1; continue; }
      refusal = error;
    }
    unsent((waiting) => waiting.filter((one) => !keys.has(one.key)));
  }
  if (refusal) throw new Error(`not taken: ${refusal.message}`);
}

function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");
}

// One after the other: a key that is pressed while an answer is on its way means the item that comes then.
let line = Promise.resolve();
function inLine(work) {
  line = line.then(work).catch((error) => say(error.message, true));
}
