// Runs the net apart from the page, which stays free for the reader's hands.
"use strict";
let ort, session;

async function unpack(base64) {
  const letters = atob(base64), bytes = new Uint8Array(letters.length);
  for (let j = 0; j < letters.length; j++) bytes[j] = letters.charCodeAt(j); // from() takes a second
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function start({ module, wasm, net }) {
  postMessage({ stage: "Unpacking the runtime and the net…" });
  const [script, binary, bytes] = await Promise.all([module, wasm, net].map(unpack));
  ort = await import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
  ort.env.wasm.numThreads = 1; // more would need headers that a file has not
  ort.env.wasm.wasmBinary = binary;
  postMessage({ stage: "Starting the net…" });
  session = await ort.InferenceSession.create(bytes);
  postMessage({ stage: "Drawing the first picture…" });
}

async function draw({ count, latents, labels }) {
  const rows = (values) => new ort.Tensor("float32", values, [count, values.length / count]);
  const began = performance.now();
  const feeds = labels ? { latent: rows(latents), labels: rows(labels) } : { latent: rows(latents) };
  const { pixels } = await session.run(feeds, ["pixels"]);
  postMessage({ pixels: pixels.data, seconds: (performance.now() - began) / 1000 });
}

onmessage = async ({ data }) => {
  try {
    await (data.net ? start(data) : draw(data));
  } catch (error) {
    postMessage({ error: String(error?.message ?? error) });
  }
};
