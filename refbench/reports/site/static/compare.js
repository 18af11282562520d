"use strict";
// Two runs on one split: the scatter of their IoUs, differences by slice, and the samples side by side.

const byId = (id) => document.getElementById(id);
const { runs, kinds } = arrived.get("runs");
// One list for all pairs, since its listeners stay with the element.
const list = new SampleList(byId("list"), () => [], (k) => current.view.show(k));
let current = null;
let turn = 0;

const percent = (value) => ((100 * value) / current.split.unit).toFixed(1);
const signed = (value) => `${value > 0 ? "+" : ""}${percent(value)}`;

function fillRuns() {
  const asked = state.read();
  const splits = new Map();
  runs.forEach((r) => splits.set(r.split, (splits.get(r.split) || 0) + 1));
  const usable = runs.filter((r) => splits.get(r.split) > 1);
  if (!usable.length) {
    say(byId("about"), "No two runs are on the same split.");
    return false;
  }
  const first = usable.find((r) => r.slug === asked.get("a")) || usable[0];
  fill(byId("first"), usable.map((r) => [r.slug, `${r.name} (${r.address})`]), first.slug);
  fillSecond(asked.get("b"));
  return true;
}

function fillSecond(wanted) {
  const first = runs.find((r) => r.slug === byId("first").value);
  const others = runs.filter((r) => r.split === first.split && r.slug !== first.slug);
  fill(byId("second"), others.map((r) => [r.slug, r.name]), wanted);
}

async function show() {
  const mine = ++turn;
  const [first, second] = [byId("first"), byId("second")].map((s) => runs.find((r) => r.slug === s.value));
  state.write({ a: first.slug, b: second.slug });
  const [split, a, b] = await Promise.all([load(`splits/${first.split}`), load(`runs/${first.slug}`), load(`runs/${second.slug}`)]);
  if (mine !== turn) return;
  split.slug = first.split;
  const both = split.ids.map((_, k) => k).filter((k) => a.iou[k] !== null && b.iou[k] !== null);
  const difference = (k) => b.iou[k] - a.iou[k];
  if (current) current.view.dialog.remove();
  current = { split, a, b, both, difference, chosen: null };
  const facts = (k) => `${a.name}: IoU ${percent(a.iou[k])}, ${kindOf(a, k)}. ${b.name}: IoU ${percent(b.iou[k])}, ${kindOf(b, k)}. ${split.address}/${split.ids[k]}.`;
  list.cells = (k) => [["number", percent(a.iou[k])], ["number wide", percent(b.iou[k])], ["", `${signed(difference(k))}`], ["", split.expression[k]], ["wide quiet", split.category[k]]];
  current.view = new SampleView(split, [a, b], (by) => { if (list.select(list.selected + by)) current.view.show(list.rows[list.selected]); }, facts);
  const mean = (rows, column) => rows.reduce((sum, k) => sum + column(k), 0) / Math.max(rows.length, 1);
  const better = both.filter((k) => difference(k) > 0).length;
  const worse = both.filter((k) => difference(k) < 0).length;
  say(byId("about"), `${both.length.toLocaleString("en")} samples. Mean IoU ${percent(mean(both, (k) => a.iou[k]))} and ${percent(mean(both, (k) => b.iou[k]))}: B is better on ${better}, worse on ${worse}.`);
  const rows = split.slices.map((s) => {
    const has = bitSet(s.bits);
    const inside = both.filter(has);
    return { name: `${s.dimension}: ${s.label}`, inside, a: mean(inside, (k) => a.iou[k]), b: mean(inside, (k) => b.iou[k]) };
  }).sort((x, y) => Math.abs(y.b - y.a) - Math.abs(x.b - x.a));
  byId("slices").tHead.replaceChildren(element("tr", {}, ...["slice", "samples", "A", "B", "B − A"].map((t, k) => element("th", { scope: "col", class: k ? "" : "word" }, t))));
  byId("slices").tBodies[0].replaceChildren(...rows.map((r) => element("tr", {}, element("th", { scope: "row", class: "word" }, r.name), ...[r.inside.length.toLocaleString("en"), percent(r.a), percent(r.b), signed(r.b - r.a)].map((t) => element("td", {}, t)))));
  choose(null);
  const asked = split.ids.indexOf(state.read().get("sample") || "");
  if (asked >= 0 && both.includes(asked)) {
    list.select(list.rows.indexOf(asked));
    current.view.show(asked);
  }
}

const kindOf = (run, k) => (run.kind[k] < 0 ? "right" : kinds[run.kind[k]].replaceAll("_", " "));

/** Select the samples inside a box of [left, bottom, right, top], IoU between 0 and 1; null selects all. */
function choose(box) {
  const { a, b, both, difference, split } = current;
  current.chosen = box;
  const inside = (k) => {
    const [x, y] = [a.iou[k] / split.unit, b.iou[k] / split.unit];
    return !box || (x >= box[0] && x <= box[2] && y >= box[1] && y <= box[3]);
  };
  const rows = both.filter((k) => inside(k) && (box || difference(k) !== 0)).sort((x, y) => Math.abs(difference(y)) - Math.abs(difference(x)) || x - y);
  list.show(rows);
  say(byId("count"), `${rows.length.toLocaleString("en")} samples ${box ? "in the selection" : "with different IoU"}. Columns: A, B, B − A.`);
  scatter();
}

const canvas = document.getElementById("scatter");
const MARGIN = 34;
const toCanvas = (v) => MARGIN + v * (canvas.width - 2 * MARGIN);
const fromCanvas = (p) => Math.min(1, Math.max(0, (p - MARGIN) / (canvas.width - 2 * MARGIN)));

function scatter() {
  const { a, b, both, split, chosen } = current;
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.body);
  const colour = (name) => style.getPropertyValue(name).trim();
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.strokeStyle = colour("--line");
  context.fillStyle = colour("--quiet");
  context.font = "15px system-ui, sans-serif";
  for (const v of [0, 0.5, 1]) {
    context.strokeRect(toCanvas(0), canvas.height - toCanvas(v), toCanvas(1) - toCanvas(0), 0);
    context.strokeRect(toCanvas(v), canvas.height - toCanvas(1), 0, toCanvas(1) - toCanvas(0));
    context.fillText(String(100 * v), toCanvas(v) - 8, canvas.height - 8);
    context.fillText(String(100 * v), 2, canvas.height - toCanvas(v) + 5);
  }
  context.beginPath();
  context.moveTo(toCanvas(0), canvas.height - toCanvas(0));
  context.lineTo(toCanvas(1), canvas.height - toCanvas(1));
  context.stroke();
  context.globalAlpha = both.length > 2000 ? 0.35 : 0.65;
  context.fillStyle = colour("--accent");
  for (const k of both) context.fillRect(toCanvas(a.iou[k] / split.unit) - 2, canvas.height - toCanvas(b.iou[k] / split.unit) - 2, 4, 4);
  context.globalAlpha = 1;
  if (chosen) {
    context.strokeStyle = colour("--text");
    context.strokeRect(toCanvas(chosen[0]), canvas.height - toCanvas(chosen[3]), toCanvas(chosen[2]) - toCanvas(chosen[0]), toCanvas(chosen[3]) - toCanvas(chosen[1]));
  }
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  return [fromCanvas((event.clientX - box.left) * scale), fromCanvas(canvas.height - (event.clientY - box.top) * scale)];
}
let corner = null;
canvas.addEventListener("pointerdown", (event) => { if (!current) return; corner = place(event); canvas.setPointerCapture(event.pointerId); });
canvas.addEventListener("pointermove", (event) => {
  if (!corner) return;
  const [x, y] = place(event);
  current.chosen = [Math.min(corner[0], x), Math.min(corner[1], y), Math.max(corner[0], x), Math.max(corner[1], y)];
  scatter();
});
canvas.addEventListener("pointerup", () => {
  if (!corner) return;
  corner = null;
  const box = current.chosen;
  choose(box && box[2] - box[0] > 0.005 && box[3] - box[1] > 0.005 ? box : null);
});

byId("app").hidden = false;
if (fillRuns()) {
  byId("first").addEventListener("change", () => { fillSecond(); show(); });
  byId("second").addEventListener("change", show);
  byId("clear").addEventListener("click", () => choose(null));
  show();
}
