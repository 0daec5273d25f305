// What can be done with pictures: each tool has slots for seeds, and a point that they make.

const MOST = 1000; // seeds in a slot
const LAST = 2n ** 63n - 1n; // as dcgan-sample takes them

// "3,17,40-42" → seeds; throws words for the reader.
function parseSeeds(text, most) {
  const seeds = [], wanted = most === 1 ? "Type one seed, such as 17" : "Type at least one seed, such as 3,17,40-42";
  for (const part of text.split(",")) {
    const found = /^\s*(\d+)\s*(?:-\s*(\d+)\s*)?$/.exec(part);
    const first = BigInt(found?.[1] ?? 1), last = BigInt(found?.[2] ?? found?.[1] ?? 0);
    if (last > LAST) throw new Error("Too large: a seed is below 2⁶³");
    if (first > last) throw new Error(wanted);
    if (last - first >= most - seeds.length) throw new Error(most === 1 ? wanted : `Too many: ${MOST.toLocaleString("en")} seeds at most`);
    for (let seed = first; seed <= last; seed++) seeds.push(seed);
  }
  return seeds;
}

// The seeds in a field; none where it is wrong, and the words after it say why.
function readSeeds(input, most) {
  let seeds = [], wrong = "";
  try { seeds = parseSeeds(input.value, most); } catch (error) { wrong = error.message; }
  input.setAttribute("aria-invalid", String(wrong !== ""));
  input.nextElementSibling.textContent = wrong;
  return seeds;
}

const randomSeed = () => BigInt(crypto.getRandomValues(new Uint32Array(1))[0]);

class Slot {
  constructor(element, changed) {
    this.mark = element.dataset.mark;
    this.many = "many" in element.dataset;
    this.radio = element.querySelector("[type=radio]");
    this.input = element.querySelector(".seeds");
    this.canvas = element.querySelector("canvas");
    this.words = element.querySelector(".of");
    const wait = () => {
      this.radio.checked = true;
      changed();
    };
    this.input.addEventListener("input", () => { this.#read(); wait(); });
    element.querySelector(".clear")?.addEventListener("click", () => { this.text = ""; wait(); });
    this.#read();
  }

  #read() { this.seeds = readSeeds(this.input, this.many ? MOST : 1); }

  get text() { return this.input.value.replaceAll(/\s/g, ""); }
  set text(value) {
    this.input.value = value;
    this.input.scrollTop = this.input.scrollHeight; // the end of a long list
    this.#read();
  }

  pick(seed) {
    if (!this.many) return (this.text = String(seed));
    const others = this.seeds.filter((each) => each !== seed);
    this.text = (others.length === this.seeds.length ? [...others, seed] : others).join(", ");
  }

  point() { return mean(this.seeds.map(pointOf)); }
}

class Tool {
  constructor(id, changed) {
    this.panel = document.getElementById(`panel-${id}`);
    this.slots = [...this.panel.querySelectorAll(".slot")].map((each) => new Slot(each, changed));
  }

  get ready() { return this.slots.every((slot) => slot.seeds.length); }
  get seeds() { return this.slots.map((slot) => slot.seeds[0]); }
  get points() { return this.slots.map((slot) => slot.point()); }

  // Puts a seed into the slot that is waiting; the next one waits for the next seed.
  pick(seed) {
    const place = this.slots.findIndex((slot) => slot.radio.checked), slot = this.slots[place];
    slot.pick(seed);
    if (!slot.many) this.slots[(place + 1) % this.slots.length].radio.checked = true;
  }

  // Pictures beside that on the stage: of the slots, and what a tool has more where all are filled.
  beside() {
    return this.slots.filter((slot) => slot.canvas && slot.seeds.length).map((slot) => {
      const point = slot.point();
      const show = (pixels) => {
        paint(slot.canvas, pixels);
        if (slot.words) slot.words.textContent = slot.words.title = labelWords(point.label);
        slot.canvas.setAttribute("aria-label", `${slot.mark}: ${slot.many ? "mean of seeds" : "seed"} ${slot.text}`);
      };
      return { ...point, show };
    });
  }

  // Where the reader is, apart from the slots, as text for the address.
  get at() { return ""; }
  set at(text) {}
}

class Picture extends Tool {
  constructor(changed) {
    super("picture", changed);
    const go = (seed) => {
      if (seed < 0n || seed > LAST) return;
      this.slots[0].text = String(seed);
      changed();
    };
    document.getElementById("before").addEventListener("click", () => go((this.seeds[0] ?? 0n) - 1n));
    document.getElementById("after").addEventListener("click", () => go((this.seeds[0] ?? -1n) + 1n));
    document.getElementById("any").addEventListener("click", () => go(randomSeed()));
  }

  point() { return this.slots[0].point(); }
  get title() { return `Seed ${this.seeds[0]}`; }
  get file() { return `seed-${this.seeds[0]}`; }
}

class Walk extends Tool {
  constructor(changed, moved) {
    super("walk", changed);
    this.slider = document.getElementById("walk-at");
    this.strip = [...document.querySelectorAll("#strip canvas")];
    this.slider.addEventListener("input", () => { this.#play(false); moved(); });
    this.button = document.getElementById("walk-play");
    this.button.addEventListener("click", () => this.#play(!this.timer));
    this.moved = moved;
  }

  #play(on) {
    clearInterval(this.timer);
    this.timer = on ? setInterval(() => {
      if (this.panel.hidden || this.slider.value === this.slider.max) return this.#play(false);
      this.slider.stepUp();
      this.moved();
    }, 40) : 0;
    if (on && this.slider.value === this.slider.max) this.slider.value = 0;
    this.button.textContent = on ? "Pause" : "Play";
    document.getElementById("caption").setAttribute("aria-live", on ? "off" : "polite"); // not 100 times
  }

  #place(share) { return between(...this.points, share); }
  point() { return this.#place(Number(this.slider.value) / 100); }
  get title() {
    const words = `${this.slider.value} % of the way from seed ${this.seeds[0]} to seed ${this.seeds[1]}`;
    this.slider.setAttribute("aria-valuetext", words);
    return words;
  }
  get file() { return `walk-${this.seeds.join("-")}-at-${this.slider.value}`; }
  get at() { return this.slider.value; }
  set at(text) { this.slider.value = text; }

  beside() {
    if (!this.ready) return super.beside();
    const steps = this.strip.map((canvas, place) => ({
      ...this.#place(place / (this.strip.length - 1)), show: (pixels) => paint(canvas, pixels),
    }));
    return [...super.beside(), ...steps];
  }
}

// Radford, Metz and Chintala, ICLR 2016, section 6.3.2.
class Arithmetic extends Tool {
  constructor(changed) { super("arithmetic", changed); }

  point() { return combine(this.points, [1, -1, 1]); }
  get title() {
    const [first, second, third] = this.slots.map((slot) => slot.text);
    const label = chosenLabel(), quoted = label && ` --label='${label.replaceAll("'", "'\\''")}'`;
    document.getElementById("line").textContent = `"${first} - ${second} + ${third}"${quoted}`;
    // dcgan-sample takes one row for all pictures; what is open here differs from seed to seed
    const open = NET.labels && chosen.size < (NET.labels.kind === "classes" ? 1 : NET.labels.names.length);
    document.getElementById("terminal").hidden = Boolean(open);
    document.getElementById("no-terminal").hidden = !open;
    return `${first} − ${second} + ${third}`;
  }
  get file() { return `arithmetic_${this.slots.map((slot) => slot.text).join("_")}`; }
}

class Plane extends Tool {
  #x = 0.5;
  #y = 0.5;

  constructor(changed, moved) {
    super("plane", changed);
    this.pad = document.getElementById("pad");
    this.map = this.pad.querySelector("canvas");
    this.dot = document.getElementById("dot");
    this.modes = [...this.panel.querySelectorAll("[name=mode]")];
    for (const mode of this.modes) {
      mode.addEventListener("change", () => {
        this.#go(0.5, 0.5);
        changed();
      });
    }
    document.getElementById("turn").addEventListener("click", () => {
      for (const slot of this.slots.slice(1)) slot.text = String(randomSeed());
      changed();
    });
    const point = (event) => {
      const { left, bottom, width, height } = this.pad.getBoundingClientRect();
      this.#go((event.clientX - left) / width, (bottom - event.clientY) / height);
      moved();
    };
    this.pad.addEventListener("pointerdown", (event) => {
      this.pad.setPointerCapture(event.pointerId);
      point(event);
    });
    this.pad.addEventListener("pointermove", (event) => {
      if (this.pad.hasPointerCapture(event.pointerId)) point(event);
    });
    this.pad.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? 0.1 : 0.02;
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (!way) return;
      event.preventDefault();
      this.#go(this.#x + way[0] * step, this.#y + way[1] * step);
      moved();
    });
    this.#go(0.5, 0.5);
  }

  // Whether the plane goes through three pictures, with their mean at its centre.
  get flat() { return this.modes[1].checked; }

  #go(x, y) {
    const within = (value) => Math.min(1, Math.max(0, Math.round(value * 1000) / 1000));
    [this.#x, this.#y] = [within(x), within(y)];
    this.dot.style.left = `${100 * this.#x}%`;
    this.dot.style.bottom = `${100 * this.#y}%`;
  }

  #weights(x, y) {
    if (!this.flat) return [1, 2 * x - 1, 2 * y - 1];
    const [b, c] = [x, y].map((each) => (7 * each - 2.5) / 3); // 0 and 1 in the 3rd and the 6th of 7 pictures
    return [1 - b - c, b, c];
  }

  #place(points, x, y) {
    const made = combine(points, this.#weights(x, y));
    return this.flat ? made : { ...made, label: points[0].label };
  }

  point() { return this.#place(this.points, this.#x, this.#y); }
  get title() {
    const terms = this.#weights(this.#x, this.#y).map((weight, place) =>
      `${weight < 0 ? "−" : place ? "+" : ""} ${Math.abs(weight).toFixed(2)} × seed ${this.seeds[place]}`);
    return terms.join(" ").trim();
  }
  get file() {
    return `plane-${this.seeds.join("-")}-at-${this.#weights(this.#x, this.#y).map((each) => each.toFixed(2)).join("_")}`;
  }
  get at() { return [this.flat ? 1 : 0, this.#x, this.#y].join(","); }
  set at(text) {
    const [mode, x, y] = text.split(",").map(Number);
    if (!(mode in this.modes) || !(x >= 0 && y >= 0)) return;
    this.modes[mode].checked = true;
    this.#go(x, y);
  }

  beside() {
    if (!this.ready) return super.beside();
    const { width, height } = NET, points = this.points, side = 7, items = super.beside();
    Object.assign(this.map, { width: side * width, height: side * height });
    const one = document.createElement("canvas"), context = this.map.getContext("2d");
    for (let j = 0; j < side * side; j++) {
      const across = j % side, down = Math.floor(j / side);
      items.push({
        ...this.#place(points, (across + 0.5) / side, 1 - (down + 0.5) / side),
        show: (pixels) => {
          paint(one, pixels);
          context.drawImage(one, across * width, down * height);
        },
      });
    }
    return items;
  }
}
