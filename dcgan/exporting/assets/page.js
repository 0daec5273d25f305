// The page: its grid, its tools as tabs, its address, and what it says of itself.

const byId = (id) => document.getElementById(id);
const drawing = new Drawing();
const stage = byId("stage"), peek = byId("peek"), grid = byId("grid");
const tools = {
  picture: new Picture(changed),
  walk: new Walk(changed, moved),
  arithmetic: new Arithmetic(changed),
  plane: new Plane(changed, moved),
};
const tabs = [...document.querySelectorAll("[role=tab]")];
let tool = tools.picture;

function trouble(words) {
  byId("trouble").textContent = words;
  byId("trouble").hidden = !words;
}

// The stage, and what stands beside it

function moved() {
  if (!tool.ready) return;
  const { title } = tool, point = tool.point();
  drawing.request("stage", [{
    ...point,
    show: (pixels) => {
      for (const canvas of [stage, peek.firstChild]) paint(canvas, pixels);
      stage.setAttribute("aria-label", title);
      byId("caption").textContent = peek.lastChild.textContent = title;
    },
  }]);
  byId("of-label").textContent = labelWords(point.label);
  remember();
}

function changed() {
  moved();
  drawing.request("slots", tool.beside());
  byId("save").disabled = !tool.ready;
  mark();
}

new IntersectionObserver(([{ isIntersecting }]) => { peek.hidden = isIntersecting; }).observe(stage);

// The grid

function fill() {
  const [start] = readSeeds(byId("start"), 1), count = Number(byId("count").value);
  if (start === undefined) return;
  const cells = Array.from({ length: count }, (_, place) => start + BigInt(place)).filter((seed) => seed <= LAST).map((seed) => {
    const cell = Object.assign(document.createElement("button"), { type: "button", className: "cell", tabIndex: -1 });
    cell.dataset.seed = seed;
    cell.title = labelWords(labelOf(seed));
    const canvas = Object.assign(document.createElement("canvas"), { width: NET.width, height: NET.height });
    const number = Object.assign(document.createElement("span"), { className: "seed", textContent: seed });
    cell.append(canvas, number);
    return cell;
  });
  cells[0].tabIndex = 0;
  grid.replaceChildren(...cells);
  drawing.request("grid", cells.map((cell) => ({
    ...pointOf(BigInt(cell.dataset.seed)),
    show: (pixels) => { paint(cell.firstChild, pixels); cell.classList.add("drawn"); },
  })));
  mark();
  remember();
}

function mark() {
  for (const cell of grid.children) {
    const { seed } = cell.dataset;
    const marks = tool.slots.filter((slot) => slot.seeds.some((each) => String(each) === seed)).map((slot) => slot.mark);
    cell.setAttribute("aria-pressed", String(marks.length > 0));
    cell.setAttribute("aria-label", [`Seed ${seed}`, cell.title, ...marks].filter(Boolean).join(", "));
    cell.dataset.marks = marks.join(", ");
  }
}

grid.addEventListener("click", ({ target }) => {
  const cell = target.closest(".cell");
  if (!cell) return;
  focusCell(cell);
  tool.pick(BigInt(cell.dataset.seed));
  changed();
});

function focusCell(cell) {
  for (const each of grid.children) each.tabIndex = each === cell ? 0 : -1;
  cell.focus();
}

grid.addEventListener("keydown", (event) => {
  const cells = [...grid.children], place = Math.max(0, cells.indexOf(document.activeElement));
  const slot = tool.slots[Number(event.key) - 1];
  if (slot) slot.radio.checked = true;
  const across = cells.filter((cell) => cell.offsetTop === cells[0].offsetTop).length;
  const by = {
    ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across, PageUp: -cells.length, PageDown: cells.length,
    Home: -place, End: cells.length - 1 - place,
  }[event.key];
  if (by === undefined) return;
  event.preventDefault();
  const wanted = BigInt(cells[place].dataset.seed) + BigInt(by);
  const found = () => grid.querySelector(`[data-seed="${wanted}"]`);
  if (!found()) shift(by < 0 ? -1n : 1n);
  focusCell(found() ?? grid.children[place] ?? grid.lastChild);
});

function shift(by) {
  const [start = 0n] = readSeeds(byId("start"), 1), to = start + by * BigInt(byId("count").value);
  byId("start").value = to < 0n ? 0n : to > LAST ? start : to;
  fill();
}

byId("start").addEventListener("input", fill);
byId("count").addEventListener("change", fill);
byId("earlier").addEventListener("click", () => shift(-1n));
byId("later").addEventListener("click", () => shift(1n));
byId("elsewhere").addEventListener("click", () => {
  byId("start").value = randomSeed();
  fill();
});

// Labels

const choices = [...document.querySelectorAll("[data-label]")];

function readLabels() {
  const values = choices.filter((each) => each.value !== "");
  const ofClass = NET.labels?.kind === "classes";
  chooseLabels(values.map((each) => ofClass ? [Number(each.value), 1] : [Number(each.dataset.label), Number(each.value)]));
}

function relabel() {
  readLabels();
  changed();
  fill();
}

for (const each of choices) each.addEventListener("change", relabel);
byId("no-labels")?.addEventListener("click", () => {
  for (const each of choices) each.value = "";
  relabel();
});

// Tabs

function open(id) {
  tool = tools[id];
  for (const tab of tabs) {
    const on = tab.id === `tab-${id}`;
    tab.setAttribute("aria-selected", String(on));
    tab.tabIndex = on ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = !on;
  }
}

tabs.forEach((tab, place) => {
  tab.addEventListener("click", () => { open(tab.dataset.tool); changed(); });
  tab.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    const next = tabs[(place + by + tabs.length) % tabs.length];
    next.click();
    next.focus();
  });
});

// The address: a view can be kept and sent

let later = 0;
function remember() {
  clearTimeout(later); // browsers allow so many changes of an address
  later = setTimeout(() => {
    const state = new URLSearchParams({
      tool: Object.keys(tools).find((id) => tools[id] === tool),
      seeds: tool.slots.map((slot) => slot.text).join(";"),
      ...(tool.at && { at: tool.at }),
      start: byId("start").value, count: byId("count").value,
      ...(chosen.size && { labels: choices.map((each) => each.value).join(",").replace(/,+$/, "") }),
    });
    history.replaceState(null, "", `#${state}`);
  }, 300);
}

function recall() {
  const state = new URLSearchParams(location.hash.slice(1));
  const id = state.get("tool");
  open(Object.hasOwn(tools, id) ? id : "picture");
  (state.get("seeds") ?? "").split(";").forEach((text, place) => {
    if (text && tool.slots[place]) tool.slots[place].text = text;
  });
  if (state.has("at")) tool.at = state.get("at");
  for (const name of ["start", "count"]) if (state.has(name)) byId(name).value = state.get(name);
  if (!byId("count").value) byId("count").value = 64;
  if (!readSeeds(byId("start"), 1).length) byId("start").value = 0;
  (state.get("labels") ?? "").split(",").forEach((value, place) => {
    if (choices[place]) choices[place].value = value;
  });
  readLabels();
  if (chosen.size) choices[0].closest("details")?.setAttribute("open", "");
  changed();
  fill();
}

addEventListener("hashchange", () => (location.hash === "#grid" ? remember() : recall())); // or the skip link

// Files

function save(canvas, name, label) {
  const safe = label && `-${label.replaceAll(/[^\p{L}\p{N}.,=_-]+/gu, "-")}`;
  savePng(canvas, name + safe, Number(byId("scale").value)).catch((error) => trouble(`Not saved: ${error.message}`));
}

byId("save").addEventListener("click", () => save(stage, tool.file, chosenLabel() || labelWords(tool.point().label)));
byId("save-grid").addEventListener("click", () => {
  const cells = [...grid.children];
  save(asGrid(cells.map((cell) => cell.firstChild)), `seeds-${cells[0].dataset.seed}-${cells.at(-1).dataset.seed}`, chosenLabel());
});

// From the first word to the first picture

function begin() {
  const missing = ["WebAssembly", "DecompressionStream", "Worker"].filter((name) => !(name in globalThis));
  if (missing.length) {
    byId("status").textContent = "Cannot draw";
    return trouble(`This browser has no ${missing.join(", no ")}, and the net needs it. Open the page in a current Chrome, Edge, Firefox or Safari.`);
  }
  let first = 0;
  drawing.onStage = (words) => { byId("status").textContent = words; };
  drawing.onError = (words) => {
    byId("status").textContent = "Cannot draw";
    trouble(`The net does not run in this browser: ${words}`);
  };
  drawing.onDrawn = () => {
    if (!first) {
      first = performance.now() / 1000; // since the page was asked for
      document.body.classList.add("ready");
    }
    const rate = drawing.rate.toLocaleString("en", { maximumFractionDigits: drawing.rate < 10 ? 1 : 0 });
    byId("status").textContent = `Started in ${first.toFixed(1)} s · ${rate} images a second`;
  };
  recall();
  drawing.start();
}

begin();
