"use strict";
// Many items at once, for quick decisions: the least doubtful ones first. A click on a tile marks it; nothing is saved
// before Enter.

const TILE_PX = 250, MARKS = ["", "change", "keep"];
const MARK_TEXTS = { "": "", change: "take the proposal", keep: "keep the source" };
let grid = null;

const gridShown = () => grid !== null;

async function openGrid(skip = new Set()) {
  const stage = $("grid");
  stage.hidden = false;
  const columns = Math.max(1, Math.floor(stage.clientWidth / (TILE_PX + 12)));
  const wanted = columns * Math.max(1, Math.floor((stage.clientHeight - 40) / (TILE_PX + 40)));
  const tiles = [];
  for (let k = items.length - 1; k >= 0 && tiles.length < wanted; k--) {
    const entry = items[k];
    if (entry.item !== "mask" || !isOpen(entry) || skip.has(entry.item_id)) continue;
    const one = await prepare(entry.item_id);
    skip.add(entry.item_id);
    if (one.choices.length > 1) tiles.push({ one, mark: "" });
  }
  grid = { tiles, skip, since: performance.now() };
  $("tiles").replaceChildren(...tiles.map((tile, k) => tileOf(tile, k)));
  $("grid-text").textContent = tiles.length ?
    "Click: take the proposal (pink), keep the source (green), decide later. y: all, Enter: save, n: next, g: back." :
    "No further item has a proposal. g: back.";
  await Promise.all(tiles.map((tile) => tile.one.loaded));
  tiles.forEach(drawTile);
}

function tileOf(tile, k) {
  const button = document.createElement("button"), text = document.createElement("span"), mark = document.createElement("span");
  const sheet = document.createElement("canvas");
  button.type = "button"; button.className = "tile"; button.title = tile.one.item_id;
  sheet.width = sheet.height = TILE_PX;
  const words = tile.one.expressions.map((e) => e.text).join(" · ") || tile.one.category;
  text.textContent = `${k + 1}. ${words}`; mark.className = "mark";
  button.append(sheet, text, mark);
  button.addEventListener("click", () => { turn(tile); });
  Object.assign(tile, { button, sheet, markText: mark });
  return button;
}

function turn(tile, mark = MARKS[(MARKS.indexOf(tile.mark) + 1) % MARKS.length]) {
  tile.mark = mark;
  tile.button.dataset.mark = mark;
  tile.markText.textContent = MARK_TEXTS[mark];
}

function drawTile({ one, sheet }) {
  const ink = sheet.getContext("2d"), choice = one.choices[1];
  const joined = one.sourcePixels.map((v, k) => v | choice.pixels[k]);
  const box = around(joined, one.height, one.width);
  const scale = Math.min(TILE_PX / (box.right - box.left), TILE_PX / (box.bottom - box.top));
  ink.setTransform(scale, 0, 0, scale, (TILE_PX - scale * (box.left + box.right)) / 2, (TILE_PX - scale * (box.top + box.bottom)) / 2);
  ink.drawImage(one.picture, 0, 0);
  ink.imageSmoothingEnabled = false;
  drawLayer(ink, layer(choice.pixels, one.height, one.width, CHOICE_RGB, 70));
  drawLayer(ink, layer(one.sourcePixels, one.height, one.width, SOURCE_RGB, 0));
}

function closeGrid() {
  grid = null;
  $("grid").hidden = true;
  $("tiles").replaceChildren();
  canvas.focus();
}

async function saveGrid() {
  const reviewer = me();
  if (!reviewer) { say("first write your name", true); $("reviewer").focus(); return; }
  const marked = grid.tiles.filter((tile) => tile.mark);
  if (!marked.length) { say("no tile is marked"); return; }
  const seconds = Math.min(600, (performance.now() - grid.since) / 1000 / marked.length);
  await send(marked.map(({ one, mark }) => ({
    key: newKey(), item_id: one.item_id, reviewer, action: mark, seconds,
    ...(mark === "change" ? { counts: one.choices[1].runs, origin: one.choices[1].origin } : {}),
  })));
  for (let k = 0; k < marked.length; k++) noteSeconds(seconds);
  await openGrid(grid.skip);
  markQueue();
  say(`saved: ${marked.length} items`);
}

const GRID_KEYS = {
  y: () => grid.tiles.forEach((tile) => turn(tile, "change")),
  Enter: saveGrid,
  n: () => openGrid(grid.skip),
  g: closeGrid, Escape: closeGrid,
};
