"use strict";
// The samples of a run: filters, the list, and the view of one sample.

const byId = (id) => document.getElementById(id);
const run = arrived.get(`runs/${document.body.dataset.run}`);
const split = arrived.get(`splits/${run.split}`);
split.slug = run.split;
const noTarget = new Set(split.noTarget);
const failed = new Set(run.failed);
const slices = split.slices.map((s) => ({ ...s, has: bitSet(s.bits) }));
const all = split.ids.map((_, k) => k).filter((k) => run.iou[k] !== null);
const lower = split.expression.map((text) => text.toLowerCase());
const percent = (value) => ((100 * value) / split.unit).toFixed(1);
const kindOf = (k) => (run.kind[k] < 0 ? "right" : run.kinds[run.kind[k]].replaceAll("_", " "));
let rows = all;

function fillFilters() {
  const counts = new Map();
  all.forEach((k) => counts.set(kindOf(k), (counts.get(kindOf(k)) || 0) + 1));
  const kinds = [...counts].sort((a, b) => b[1] - a[1]).map(([kind, n]) => [kind, `${kind} (${n})`]);
  fill(byId("kind"), [["", "all"], ...kinds], "");
  fill(byId("slice"), [["", "all"], ...slices.map((s) => [`${s.dimension}: ${s.label}`, `${s.dimension}: ${s.label}`])], "");
  const categories = [...new Set(all.map((k) => split.category[k]))].filter(Boolean).sort();
  fill(byId("category"), [["", "all"], ...categories.map((c) => [c, c])], "");
}

const CONTROLS = { kind: "", slice: "", category: "", words: "", low: "0", high: "100", order: "iou" };

function readState() {
  const asked = state.read();
  for (const [name, standard] of Object.entries(CONTROLS)) byId(name).value = asked.get(name) || standard;
  for (const name of ["kind", "slice", "category", "order"]) if (byId(name).selectedIndex < 0) byId(name).value = CONTROLS[name];
}

function filter() {
  const value = (name) => byId(name).value;
  state.write(Object.fromEntries(Object.keys(CONTROLS).map((n) => [n, value(n) === CONTROLS[n] ? "" : value(n)])));
  const slice = slices.find((s) => `${s.dimension}: ${s.label}` === value("slice"));
  const words = value("words").toLowerCase().split(/\s+/).filter(Boolean);
  const low = (Number(value("low")) * split.unit) / 100;
  const high = (Number(value("high")) * split.unit) / 100;
  const [kind, category] = [value("kind"), value("category")];
  rows = all.filter((k) => (!kind || kindOf(k) === kind) && (!slice || slice.has(k)) && (!category || split.category[k] === category)
    && run.iou[k] >= low && run.iou[k] <= high && words.every((w) => lower[k].includes(w)));
  const order = value("order");
  if (order !== "id") {
    const column = order.endsWith("iou") ? run.iou : run.boundary;
    const sign = order.startsWith("-") ? -1 : 1;
    rows.sort((a, b) => sign * (column[a] - column[b]) || a - b);
  }
  list.show(rows);
  const mean = rows.length ? rows.reduce((sum, k) => sum + run.iou[k], 0) / rows.length : 0;
  say(byId("count"), `${rows.length.toLocaleString("en")} of ${all.length.toLocaleString("en")} samples${rows.length ? `, mean IoU ${percent(mean)}` : ""}`);
}

function facts(k) {
  const error = run.errors[k] ? ` ${run.errors[k]}` : "";
  const missing = failed.has(k) && !run.errors[k] ? " No prediction." : "";
  return `IoU ${percent(run.iou[k])}, boundary IoU ${percent(run.boundary[k])}. Kind of error: ${kindOf(k)}. Class: ${split.category[k] || "none"}${noTarget.has(k) ? ", no target" : ""}. ${split.address}/${split.ids[k]}.${error}${missing}`;
}

const list = new SampleList(byId("list"), (k) => [["number", percent(run.iou[k])], ["number wide", percent(run.boundary[k])], ["", kindOf(k)], ["", split.expression[k]], ["wide quiet", split.category[k]]], (k) => view.show(k));
const view = new SampleView(split, [run], (by) => { if (list.select(list.selected + by)) view.show(list.rows[list.selected]); }, facts);

function openFromAddress() {
  const k = split.ids.indexOf(state.read().get("sample") || "");
  if (k < 0 || run.iou[k] === null) return;
  const at = rows.indexOf(k);
  if (at >= 0) list.select(at);
  view.show(k);
}

fillFilters();
readState();
byId("app").hidden = false;
filter();
for (const name of Object.keys(CONTROLS)) byId(name).addEventListener(byId(name).tagName === "INPUT" ? "input" : "change", filter);
window.addEventListener("hashchange", () => { readState(); filter(); openFromAddress(); });
openFromAddress();
