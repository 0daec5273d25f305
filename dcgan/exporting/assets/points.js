// What a picture is drawn from: a latent and, of a conditional net, a row of label values.

const NET = JSON.parse(document.getElementById("facts").textContent); // nz, width, height, …

// dcgan.sampling.labels: classes by number, 1 for that which was chosen; attributes, 0 or 1.
const chosen = new Map();
let examples = []; // rows of attributes that fit what was chosen

function chooseLabels(values) {
  chosen.clear();
  for (const [place, value] of values) chosen.set(place, value);
  const rows = NET.labels?.rows ?? [];
  const fits = (row) => [...chosen].every(([place, value]) => Number(row[place]) === value);
  examples = rows.some(fits) ? rows.filter(fits) : rows;
}

function labelOf(seed) {
  if (!NET.labels) return null;
  const { kind, names } = NET.labels, row = new Float32Array(names.length);
  const turn = (count) => Number(seed % BigInt(count));
  if (kind === "classes") {
    row[chosen.size ? [...chosen.keys()][0] : turn(names.length)] = 1;
  } else {
    if (examples.length) row.set([...examples[turn(examples.length)]].map(Number));
    for (const [place, value] of chosen) row[place] = value;
  }
  return row;
}

// The label that was chosen, as dcgan-sample --label reads it; "" where none was.
function chosenLabel() {
  const { kind, names } = NET.labels ?? {};
  const texts = [...chosen].map(([place, value]) => kind === "classes" ? names[place] : `${names[place]}=${value || -1}`);
  return texts.join(",");
}

function labelWords(row) {
  if (!row) return "";
  const percents = [...row].map((value) => Math.round(100 * value));
  const words = NET.labels.names.map((name, place) => percents[place] < 100 ? `${name} ${percents[place]} %` : name)
    .filter((_, place) => percents[place]);
  return words.length > 6 ? `${words.slice(0, 6).join(", ")} and ${words.length - 6} more` : words.join(", ") || "none of the attributes";
}

const pointOf = (seed) => ({ latent: randn(seed, NET.nz), label: labelOf(seed) });

const sum = (rows, weights) =>
  rows[0].map((_, j) => rows.reduce((total, row, k) => total + weights[k] * row[j], 0));

// A sum of points, each times a weight. Lengths of latents are not normalised. Label values stay
// within 0 and 1, and shares of classes add up to 1.
function combine(points, weights) {
  const latent = sum(points.map((point) => point.latent), weights);
  return { latent, label: mixLabels(points, weights) };
}

function mixLabels(points, weights) {
  if (!NET.labels) return null;
  const row = sum(points.map((point) => point.label), weights).map((value) => Math.min(1, Math.max(0, value)));
  const total = NET.labels.kind === "classes" ? row.reduce((a, b) => a + b) : 1;
  return row.map((value) => value / total);
}

const mean = (points) => combine(points, points.map(() => 1 / points.length));

// dcgan.sampling.generate.slerp: Shoemake, SIGGRAPH 1985, section 3.3.
function between(start, end, share) {
  const a = start.latent, b = end.latent;
  const dot = (x, y) => x.reduce((total, value, j) => total + value * y[j], 0);
  const cosine = dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
  const angle = Math.acos(Math.min(1, Math.max(-1, cosine))), sine = Math.sin(angle);
  let weights = [1 - share, share]; // on one line through the origin there is no arc
  if (sine >= 1e-6) weights = weights.map((each) => Math.sin(each * angle) / sine);
  const label = mixLabels([start, end], [1 - share, share]);
  return { latent: sum([a, b], weights), label };
}
