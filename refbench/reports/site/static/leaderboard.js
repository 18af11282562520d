"use strict";
// The leaderboard: one table for each split and protocol, with sorting, search, columns, downloads and a plot.

const byId = (id) => document.getElementById(id);
const data = arrived.get("leaderboard");
data.splits = data.splits.filter((s) => s.tables.length);
const OPTIONAL = ["rank", "group", "year", "size", "samples", "failures", "evidence", "source", "note"];
const SHOWN = ["rank", "group", "source"];
const COLOURS = ["#1f77b4", "#d95f02", "#1b9e77", "#7b4bb7", "#b8860b", "#c2185b", "#5b6b7b", "#0097a7", "#6d4c41"];
const FAMILIES = {
  "cumulative IoU": ["cumulative_iou", "overall IoU", "Overall IoU", "oIoU", "oIoU score", "cIoU", "ciou", "c_iou", "CIoU", "seg_iou", "class_iou"],
  "mean IoU": ["mean_iou", "Mean IoU", "mIoU", "mIoU score", "IoU", "giou", "gIoU", "g_iou", "GIoU"],
};
let view = {};

function table() {
  const split = data.splits.find((s) => s.address === view.split);
  return split.tables.find((t) => key(t) === view.protocol) || split.tables[0];
}
const key = (t) => (t.version ? `${t.protocol} ${t.version}` : t.protocol);

function readState() {
  const asked = state.read();
  const split = data.splits.find((s) => s.address === asked.get("split"));
  const first = data.splits.find((s) => s.tables.some((t) => t.rows.some((r) => r.run))) || data.splits[0];
  view = {
    split: (split || first).address,
    protocol: asked.get("protocol") || "",
    sort: asked.get("sort") || "",
    search: asked.get("q") || "",
    origin: asked.get("origin") || "",
    columns: asked.has("columns") ? asked.get("columns").split(",").filter(Boolean) : null,
    family: asked.get("plot") || "cumulative IoU",
  };
  view.protocol = key(table());
}

function writeState() {
  state.write({
    split: view.split, protocol: view.protocol, sort: view.sort, q: view.search, origin: view.origin,
    columns: view.columns === null ? "" : view.columns.join(",") || ",", plot: view.family === "cumulative IoU" ? "" : view.family,
  });
}

function metricValue(row, metric) {
  const found = row.metrics[metric];
  return found && found[0] !== null ? found[0] : null;
}

function cellText(row, column) {
  if (column === "rank") return row.rank ? (row.rank[1] === row.rank[2] ? `${row.rank[0]}` : `${row.rank[0]} (${row.rank[1]}–${row.rank[2]})`) : "";
  if (column === "size") return row.size === null ? "" : `${row.size} B`;
  return row[column] === null || row[column] === undefined ? "" : String(row[column]);
}

function sortValue(row, column) {
  if (column.startsWith("m:")) return metricValue(row, column.slice(2));
  if (column === "rank") return row.rank ? -row.rank[0] : null;
  return row[column] === "" ? null : row[column];
}

/** Rows that fit the search, in the chosen order; rows without a value come last. */
function chosenRows() {
  const t = table();
  const words = view.search.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = t.rows.filter((row) => {
    const text = `${row.system} ${row.variant} ${row.source} ${row.note} ${row.origin}`.toLowerCase();
    return words.every((w) => text.includes(w)) && (!view.origin || row.origin === view.origin);
  });
  if (!view.sort) return rows;
  const down = view.sort.startsWith("-");
  const column = view.sort.replace(/^-/, "");
  const order = (a, b) => {
    const [x, y] = [sortValue(a, column), sortValue(b, column)];
    if (x === null || y === null) return (x === null) - (y === null);
    const found = typeof x === "number" ? x - y : String(x).localeCompare(String(y));
    return down ? -found : found;
  };
  return [...rows].sort(order);
}

function columns() {
  const t = table();
  const extra = (view.columns || SHOWN).filter((c) => OPTIONAL.includes(c) && t.rows.some((r) => cellText(r, c) !== ""));
  const metrics = t.metrics.map((m, k) => ({ id: `m:${m}`, label: t.labels[k], metric: m }));
  const before = ["rank", "group"].filter((c) => extra.includes(c)).map((c) => ({ id: c, label: c }));
  return [
    ...before, { id: "system", label: "system", word: true }, { id: "variant", label: "variant", word: true }, ...metrics,
    { id: "origin", label: "origin", word: true },
    ...extra.filter((c) => c !== "rank" && c !== "group").map((c) => ({ id: c, label: c, word: ["evidence", "source", "note"].includes(c) })),
  ];
}

function render() {
  const t = table();
  const shown = columns().filter((c) => c.id !== "variant" || t.rows.some((r) => r.variant));
  const rows = chosenRows();
  const heads = shown.map((c) => {
    const sorted = view.sort.replace(/^-/, "") === c.id;
    const direction = sorted ? (view.sort.startsWith("-") ? "descending" : "ascending") : null;
    const button = element("button", { type: "button", onclick: () => sortBy(c) }, c.label);
    return element("th", { scope: "col", class: c.word ? "word" : "", "aria-sort": direction }, button);
  });
  byId("results").tHead.replaceChildren(element("tr", {}, ...heads));
  byId("results").tBodies[0].replaceChildren(...rows.map((row) => {
    const below = !["verified", "published"].includes(row.origin);
    return element("tr", { class: below ? "below" : null }, ...shown.map((c) => cell(row, c)));
  }));
  byId("empty").hidden = rows.length > 0;
  const comparable = t.comparable ? "" : " It is not known how these figures were computed, so they are not comparable with each other.";
  const used = t.usedBy.length ? ` Used by ${t.usedBy.join(", ")}.` : "";
  const rule = t.summary ? `Rule: ${t.summary}.` : "";
  byId("about").textContent = `${rule}${used}${comparable} ${rows.length} of ${t.rows.length} rows.`;
  plot();
}

function cell(row, column) {
  if (column.metric !== undefined) {
    const found = row.metrics[column.metric];
    if (!found || found[0] === null) return element("td", {}, "");
    const value = row.origin === "published" ? String(found[0]) : found[0].toFixed(2);
    if (found[1] === null) return element("td", {}, value);
    return element("td", {}, `${value} `, element("span", { class: "quiet" }, `[${found[1].toFixed(1)}, ${found[2].toFixed(1)}]`));
  }
  if (column.id === "system") {
    const slug = data.systems[row.system];
    const link = row.run ? `runs/${row.run}.html` : row.origin === "published" && slug ? `systems/${slug}.html` : "";
    return element("th", { scope: "row", class: "word" }, link ? element("a", { href: link }, row.system) : row.system);
  }
  if (column.id === "origin") {
    const sign = element("span", { class: `sign ${row.origin.replace(" ", "-")}`, title: row.reason || null }, row.origin);
    return element("td", { class: "word" }, sign, row.reason ? element("span", { class: "quiet" }, ` ${row.reason}`) : "");
  }
  const title = column.id === "group" && row.group ? "the data cannot tell the runs of a group apart" : column.id === "rank" && row.rank ? `in ${(100 * row.rank[3]).toFixed(0)} % of the resamples at least this rank` : null;
  const kind = ["source", "note"].includes(column.id) ? "word source" : column.word ? "word" : "";
  return element("td", { class: kind, title }, cellText(row, column.id));
}

function sortBy(column) {
  const number = column.metric !== undefined || ["rank", "year", "size", "samples"].includes(column.id);
  const first = number ? `-${column.id}` : column.id;
  const other = number ? column.id : `-${column.id}`;
  view.sort = view.sort === first ? other : view.sort === other ? "" : first;
  writeState();
  render();
}

function exported() {
  const shown = columns();
  const rows = chosenRows();
  const value = (row, c) => {
    if (c.metric === undefined) return cellText(row, c.id);
    const found = row.metrics[c.metric];
    return !found || found[0] === null ? "" : found[1] === null ? String(found[0]) : `${found[0].toFixed(2)} [${found[1].toFixed(2)}, ${found[2].toFixed(2)}]`;
  };
  return { heads: shown.map((c) => c.label), rows: rows.map((row) => shown.map((c) => value(row, c))) };
}

/** A cell that no spreadsheet takes for a formula. */
function csvCell(text) {
  const safe = /^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}
const latexCell = (text) => text.replace(/\\/g, "\\textbackslash ").replace(/[&%$#_{}]/g, "\\$&").replace(/~/g, "\\textasciitilde ").replace(/\^/g, "\\textasciicircum ");
const markdownCell = (text) => text.replace(/[\\|`*_<>[\]]/g, "\\$&").replace(/\s+/g, " ");

function asCsv() {
  const { heads, rows } = exported();
  return [heads, ...rows].map((line) => line.map(csvCell).join(",")).join("\n") + "\n";
}
function asLatex() {
  const { heads, rows } = exported();
  const align = columns().map((c) => (c.word ? "l" : "r")).join("");
  const lines = rows.map((row) => `${row.map(latexCell).join(" & ")} \\\\`);
  return [`% ${view.split}, protocol ${view.protocol}`, `\\begin{tabular}{${align}}`, "\\toprule", `${heads.map(latexCell).join(" & ")} \\\\`, "\\midrule", ...lines, "\\bottomrule", "\\end{tabular}"].join("\n") + "\n";
}
function asMarkdown() {
  const { heads, rows } = exported();
  const line = (cells) => `| ${cells.map(markdownCell).join(" | ")} |`;
  return [line(heads), `|${columns().map((c) => (c.word ? "---" : "--:")).join("|")}|`, ...rows.map(line)].join("\n") + "\n";
}

/** Published results over the years, one colour for each protocol. */
function plot() {
  const split = data.splits.find((s) => s.address === view.split);
  const points = [];
  for (const t of split.tables) {
    if (!t.comparable) continue;
    const metric = t.metrics.find((m) => FAMILIES[view.family].includes(m));
    if (!metric) continue;
    for (const row of t.rows) {
      const value = metricValue(row, metric);
      if (row.year && value !== null) points.push({ year: row.year, value, protocol: t.protocol, label: `${row.system} ${row.variant}`.trim() });
    }
  }
  byId("progress").hidden = points.length === 0 && view.family === "cumulative IoU";
  const place = byId("plot");
  if (points.length === 0) {
    place.replaceChildren(element("p", {}, "No source of this split names a year for this metric."));
    byId("legend").textContent = "";
    return;
  }
  const protocols = [...new Set(points.map((p) => p.protocol))];
  const years = points.map((p) => p.year);
  const [first, last] = [Math.min(...years), Math.max(...years)];
  const values = points.map((p) => p.value);
  const low = Math.floor(Math.min(...values) / 5) * 5;
  const high = Math.max(low + 5, Math.ceil(Math.max(...values) / 5) * 5);
  const x = (year) => 50 + (560 * (year - first + 0.5)) / (last - first + 1);
  const y = (value) => 16 + (220 * (high - value)) / (high - low);
  const svg = (tag, attributes, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.entries(attributes).forEach(([k, v]) => made.setAttribute(k, v));
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const chart = svg("svg", { class: "chart", viewBox: "0 0 640 270", role: "img", "aria-label": `${view.family} over the years` });
  for (let v = low; v <= high; v += (high - low) / 5) {
    chart.append(svg("line", { class: "grid", x1: 46, x2: 630, y1: y(v), y2: y(v) }), svg("text", { class: "quiet", x: 40, y: y(v) + 4, "text-anchor": "end" }, v.toFixed(0)));
  }
  for (let year = first; year <= last; year += 1) chart.append(svg("text", { class: "quiet", x: x(year), y: 262, "text-anchor": "middle" }, String(year)));
  for (const p of points) {
    const dot = svg("circle", { cx: x(p.year), cy: y(p.value), r: 5, fill: COLOURS[protocols.indexOf(p.protocol) % COLOURS.length] });
    dot.append(svg("title", {}, `${p.label}: ${p.value} (${p.protocol}, ${p.year})`));
    chart.append(dot);
  }
  place.replaceChildren(chart);
  byId("legend").replaceChildren(...protocols.map((name, k) => {
    const made = element("span", { class: "layer" }, `${name} `);
    made.style.setProperty("--key", COLOURS[k % COLOURS.length]);
    return made;
  }));
}

function fillControls() {
  const split = data.splits.find((s) => s.address === view.split);
  fill(byId("split"), data.splits.map((s) => [s.address, s.address]), view.split);
  fill(byId("protocol"), split.tables.map((t) => [key(t), `${key(t)} (${t.rows.length})`]), view.protocol);
  fill(byId("family"), Object.keys(FAMILIES).map((f) => [f, f]), view.family);
  byId("search").value = view.search;
  byId("origin").value = view.origin;
  const chosen = view.columns || SHOWN;
  byId("columns").replaceChildren(...OPTIONAL.map((name) => {
    const box = element("input", { type: "checkbox", value: name, onchange: changeColumns });
    box.checked = chosen.includes(name);
    return element("label", {}, box, name);
  }));
}

function changeColumns() {
  view.columns = [...byId("columns").querySelectorAll("input:checked")].map((box) => box.value);
  writeState();
  render();
}

function start() {
  readState();
  fillControls();
  render();
}

byId("split").addEventListener("change", () => {
  Object.assign(view, { split: byId("split").value, protocol: "", sort: "" });
  view.protocol = key(table());
  writeState();
  fillControls();
  render();
});
byId("protocol").addEventListener("change", () => {
  Object.assign(view, { protocol: byId("protocol").value, sort: "" });
  writeState();
  render();
});
byId("search").addEventListener("input", () => { view.search = byId("search").value; writeState(); render(); });
byId("origin").addEventListener("change", () => { view.origin = byId("origin").value; writeState(); render(); });
byId("family").addEventListener("change", () => { view.family = byId("family").value; writeState(); plot(); });
byId("reset").addEventListener("click", () => { Object.assign(view, { search: "", origin: "" }); writeState(); fillControls(); render(); });
byId("csv").addEventListener("click", () => download(`${view.split}-${view.protocol}.csv`.replace(/[^\w.-]+/g, "-"), asCsv()));
byId("latex").addEventListener("click", async () => say(byId("said"), (await copy(asLatex())) ? "LaTeX copied" : "The browser does not allow copying"));
byId("markdown").addEventListener("click", async () => say(byId("said"), (await copy(asMarkdown())) ? "Markdown copied" : "The browser does not allow copying"));
window.addEventListener("hashchange", start);
window.addEventListener("popstate", start);
start();
byId("app").hidden = false;
