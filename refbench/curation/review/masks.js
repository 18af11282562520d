"use strict";
// Masks as pixels (Uint8Array, along the rows), and as layers to draw.

// From run lengths down the columns, background first.
function decode(runs, height, width) {
  const out = new Uint8Array(height * width);
  let place = 0, value = 0;
  for (const run of runs) {
    if (value) {
      let x = Math.floor(place / height), y = place % height;
      for (let k = 0; k < run; k++) {
        out[y * width + x] = 1;
        if (++y === height) { y = 0; x++; }
      }
    }
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

// Left, top, right and bottom (both exclusive); null for an empty mask.
function bounds(pixels, height, width) {
  let left = width, top = height, right = 0, bottom = 0;
  for (let y = 0; y < height; y++) {
    const row = y * width;
    const first = pixels.indexOf(1, row);
    if (first < 0) break;
    if (first >= row + width) { y = Math.floor(first / width) - 1; continue; }
    const last = pixels.lastIndexOf(1, row + width - 1);
    left = Math.min(left, first - row); right = Math.max(right, last - row + 1);
    top = Math.min(top, y); bottom = y + 1;
  }
  return right > left ? { left, top, right, bottom } : null;
}

// A mask with a full outline and a tint; only as large as the mask.
function layer(pixels, height, width, [red, green, blue], fill) {
  const box = bounds(pixels, height, width);
  if (!box) return null;
  const w = box.right - box.left, h = box.bottom - box.top;
  const image = new ImageData(w, h), out = new Uint32Array(image.data.buffer);
  const colour = (alpha) => ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  const rim = colour(255), inside = colour(fill);
  for (let y = box.top; y < box.bottom; y++) for (let x = box.left; x < box.right; x++) {
    const k = y * width + x;
    if (!pixels[k]) continue;
    const outline = x === 0 || y === 0 || x === width - 1 || y === height - 1 ||
      !pixels[k - 1] || !pixels[k + 1] || !pixels[k - width] || !pixels[k + width];
    out[(y - box.top) * w + x - box.left] = outline ? rim : inside;
  }
  return { sheet: bitmap(image), left: box.left, top: box.top };
}

function bitmap(image) {
  const sheet = new OffscreenCanvas(image.width, image.height);
  sheet.getContext("2d").putImageData(image, 0, 0);
  return sheet;
}

function drawLayer(pen, one) {
  if (one) pen.drawImage(one.sheet, one.left, one.top);
}

// Where the proposals agree, the map is dark or bright; where they do not, it is yellow.
function agreementMap(proposals, height, width) {
  const votes = new Uint16Array(height * width);
  let count = 0;
  for (const proposal of proposals) for (const runs of proposal.votes) {
    const one = decode(runs, height, width);
    for (let k = 0; k < votes.length; k++) votes[k] += one[k];
    count++;
  }
  const image = new ImageData(width, height);
  for (let k = 0; k < votes.length; k++) {
    if (!votes[k]) continue;
    const share = votes[k] / count, torn = 1 - Math.abs(2 * share - 1);
    image.data[4 * k] = 255 * Math.max(share, torn);
    image.data[4 * k + 1] = 230 * Math.max(torn, 0.15);
    image.data[4 * k + 2] = 40;
    image.data[4 * k + 3] = 60 + 150 * Math.max(torn, share * 0.4);
  }
  return bitmap(image);
}

// The box around a mask with some space, inside the image.
function around(pixels, height, width) {
  const box = pixels && bounds(pixels, height, width);
  if (!box) return { left: 0, top: 0, right: width, bottom: height };
  const space = 12 + 0.3 * Math.max(box.right - box.left, box.bottom - box.top);
  return {
    left: Math.max(0, box.left - space), top: Math.max(0, box.top - space),
    right: Math.min(width, box.right + space), bottom: Math.min(height, box.bottom + space),
  };
}
