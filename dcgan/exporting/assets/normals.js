// The normals of torch's CPU generator: torch.randn(n, generator=torch.Generator().manual_seed(seed)).

// Matsumoto and Nishimura, "Mersenne Twister", ACM TOMACS 8 (1998), mt19937ar.c: init_genrand and
// genrand_int32. torch takes a seed modulo 2^32 (ATen/core/MT19937RNGEngine.h).
function mersenneTwister(seed) {
  const state = new Uint32Array(624);
  state[0] = Number(BigInt.asUintN(32, BigInt(seed)));
  for (let j = 1; j < 624; j++) {
    const last = state[j - 1] ^ (state[j - 1] >>> 30);
    state[j] = Math.imul(last, 1812433253) + j;
  }
  let place = 624;
  const twist = () => {
    for (let j = 0; j < 624; j++) {
      const joined = (state[j] & 0x80000000) | (state[(j + 1) % 624] & 0x7fffffff);
      state[j] = state[(j + 397) % 624] ^ (joined >>> 1) ^ (joined & 1 ? 0x9908b0df : 0);
    }
    place = 0;
  };
  return () => {
    if (place === 624) twist();
    let word = state[place++];
    word ^= word >>> 11;
    word ^= (word << 7) & 0x9d2c5680;
    word ^= (word << 15) & 0xefc60000;
    return (word ^ (word >>> 18)) >>> 0;
  };
}

// ATen/native/cpu/DistributionTemplates.h: normal_fill for 16 numbers and more, in float32, and
// for fewer normal_distribution<double> (ATen/core/DistributionsHelper.h).
function randn(seed, n) {
  const word = mersenneTwister(seed);
  return n < 16 ? inPairs(word, n) : inSixteens(word, n);
}

function inPairs(word, n) {
  const uniform = () => {
    const high = word(), low = word();
    return ((high & 0x1fffff) * 2 ** 32 + low) * 2 ** -53;
  };
  const normals = new Float32Array(n);
  for (let j = 0; j < n; j += 2) {
    const angle = 2 * Math.PI * uniform(), radius = Math.sqrt(-2 * Math.log1p(-uniform()));
    normals[j] = radius * Math.cos(angle);
    if (j + 1 < n) normals[j + 1] = radius * Math.sin(angle);
  }
  return normals;
}

function inSixteens(word, n) {
  const normals = new Float32Array(n);
  const fill = (start) => {
    for (let j = start; j < n; j++) normals[j] = (word() & 0xffffff) * 2 ** -24;
  };
  const transform = (start) => {
    for (let j = start; j < start + 8; j++) {
      const radius = Math.fround(Math.sqrt(-2 * Math.log(1 - normals[j])));
      const angle = Math.fround(Math.fround(2 * Math.PI) * normals[j + 8]);
      normals[j] = radius * Math.cos(angle);
      normals[j + 8] = radius * Math.sin(angle);
    }
  };
  fill(0);
  for (let start = 0; start + 16 <= n; start += 16) transform(start);
  if (n % 16) { // the last sixteen are drawn again, whole
    fill(n - 16);
    transform(n - 16);
  }
  return normals;
}
