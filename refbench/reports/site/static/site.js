"use strict";
// Shared by all pages: data that arrives as scripts, the state in the address, and texts that are never read as HTML.

const root = document.body.dataset.root;
const arrived = new Map();
const awaited = new Map();

/** Called by the files in data/: pages that are opened from the file system cannot fetch. */
function refbenchData(name, content) {
  arrived.set(name, content);
  (awaited.get(name) || []).forEach((resolve) => resolve(content));
  awaited.delete(name);
}

/** The content of data/<name>.js, loaded when it is first needed. */
function load(name) {
  if (arrived.has(name)) return Promise.resolve(arrived.get(name));
  return new Promise((resolve, reject) => {
    const first = !awaited.has(name);
    awaited.set(name, [...(awaited.get(name) || []), resolve]);
    if (!first) return;
    const script = document.createElement("script");
    script.src = `${root}data/${name}.js`;
    script.onerror = () => reject(new Error(`${name} is not part of this site`));
    document.head.append(script);
  });
}

/** An element with text and attributes. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** Fill a select with [value, label] pairs. */
function fill(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, label]) => element("option", { value }, label)));
  if (pairs.some(([value]) => value === chosen)) select.value = chosen;
}

const state = {
  read: () => new URLSearchParams(location.hash.slice(1)),
  /** Put values into the address; empty ones are left out. Navigation back and forth is kept for `step`. */
  write(values, step = false) {
    const all = state.read();
    for (const [key, value] of Object.entries(values)) {
      if (value === "" || value === null || value === undefined) all.delete(key);
      else all.set(key, value);
    }
    const address = `#${all}`;
    if (address === (location.hash || "#")) return;
    if (step) history.pushState(null, "", address);
    else history.replaceState(null, "", address);
  },
};

/** Text that is read aloud and shown for a moment. */
function say(place, text) {
  place.textContent = text;
}

function download(name, text) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // From the file system, some browsers have no clipboard.
    const area = element("textarea", {}, text);
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
