// Pictures that are wanted, and the worker that draws them.

const LONGEST = 0.06; // seconds of a batch: what is wanted next waits no longer
const LARGEST = 16; // pictures of a batch

class Drawing {
  // Queues by name, the most urgent first. A request replaces what was left of its queue, so that
  // a slider never waits for the places that it has left behind.
  #queues = { stage: [], slots: [], grid: [] };
  #worker;
  #batch = null;
  #ready = false;
  #recent = []; // [pictures, seconds] of the last batches
  onStage = () => {};
  onError = () => {};
  onDrawn = () => {};

  start() {
    const text = (id) => document.getElementById(id).textContent;
    const source = new Blob([text("worker")], { type: "text/javascript" });
    this.#worker = new Worker(URL.createObjectURL(source));
    this.#worker.onmessage = ({ data }) => this.#answer(data);
    this.#worker.onerror = (event) => this.onError(event.message || "the worker did not start");
    this.#worker.postMessage({ module: text("ort"), wasm: text("wasm"), net: text("net") });
    for (const id of ["ort", "wasm", "net"]) document.getElementById(id).remove();
  }

  // items: of { latent, label, show }; show(pixels) gets (H, W, C) levels, in order.
  request(queue, items) {
    this.#queues[queue] = [...items];
    this.#next();
  }

  get rate() {
    const total = (place) => this.#recent.reduce((sum, each) => sum + each[place], 0);
    return total(0) / total(1);
  }

  #next() {
    const queue = Object.values(this.#queues).find((each) => each.length);
    if (!this.#ready || this.#batch || !queue) return;
    const size = this.#recent.length ? Math.floor(this.rate * LONGEST) : 1;
    this.#batch = queue.splice(0, Math.min(LARGEST, Math.max(1, size)));
    const rows = (name) => Float32Array.from(this.#batch.flatMap((item) => [...item[name]]));
    const labels = this.#batch[0].label ? rows("label") : null;
    this.#worker.postMessage({ count: this.#batch.length, latents: rows("latent"), labels });
  }

  #answer({ stage, error, pixels, seconds }) {
    if (error) return this.onError(error);
    if (stage) {
      this.#ready = stage.startsWith("Drawing");
      this.onStage(stage);
    } else {
      const batch = this.#batch, size = pixels.length / batch.length;
      this.#batch = null;
      this.#recent = [...this.#recent.slice(-31), [batch.length, seconds]];
      batch.forEach((item, place) => item.show(pixels.subarray(place * size, (place + 1) * size)));
      this.onDrawn();
    }
    this.#next();
  }
}
