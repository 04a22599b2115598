// What the page holds, read when it is needed: matrices in half precision, compressed (see storage.py).
"use strict";

const content = JSON.parse(document.getElementById("content").textContent);
const OUTPUT = -1; // the pooled vector, shown as if it were a token

const HALF = new Float32Array(65536).map((_, bits) => {
  const exponent = (bits >> 10) & 31, fraction = bits & 1023, sign = bits & 32768 ? -1 : 1;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
});

async function inflated(number) {
  const text = atob(document.getElementById(`chunk-${number}`).textContent);
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer);
    this.at = 0;
  }

  get ended() { return this.at >= this.bytes.length; }

  integer() { return this.view.getUint32((this.at += 4) - 4, true); }

  float() { return this.view.getFloat32((this.at += 4) - 4, true); }

  shorts(count) {
    const found = new Uint16Array(count), low = this.at, high = this.at + count;
    for (let i = 0; i < count; i++) found[i] = this.bytes[low + i] | (this.bytes[high + i] << 8);
    this.at += 2 * count;
    return found;
  }

  matrix(n, whole) {
    const count = this.integer(), most = this.float();
    const rows = whole ? null : this.shorts(n), columns = whole ? null : this.shorts(count);
    const values = Float32Array.from(this.shorts(count), half => HALF[half] * most);
    return whole ? new WholeMatrix(n, values) : new LargestOnly(n, rows, columns, values);
  }
}

class WholeMatrix {
  constructor(n, values) { Object.assign(this, { n, values }); }

  addRow(row, factor, sum) {
    for (let j = 0, at = row * this.n; j < this.n; j++, at++) sum[j] += factor * this.values[at];
  }

  column(column) {
    return Float32Array.from({ length: this.n }, (_, row) => this.values[row * this.n + column]);
  }
}

class LargestOnly {
  constructor(n, counts, columns, values) {
    const starts = new Uint32Array(n + 1);
    counts.forEach((count, row) => { starts[row + 1] = starts[row] + count; });
    Object.assign(this, { n, starts, columns, values });
  }

  addRow(row, factor, sum) {
    for (let at = this.starts[row]; at < this.starts[row + 1]; at++) sum[this.columns[at]] += factor * this.values[at];
  }

  column(column) {
    const found = new Float32Array(this.n);
    for (let row = 0; row < this.n; row++) {
      for (let at = this.starts[row]; at < this.starts[row + 1]; at++) {
        if (this.columns[at] === column) found[row] = this.values[at];
      }
    }
    return found;
  }
}

// A model's attention in a sample.
class Look {
  constructor(description) {
    Object.assign(this, description);
    this.read = new Map();
  }

  // The entry of the layer with this number, or of the nearest one that is stored.
  layer(number) {
    return this.layers.reduce((best, each) =>
      Math.abs(each.number - number) < Math.abs(best.number - number) ? each : best);
  }

  // kind: weights, gradients, rollout or relevance. The last matrix is the mean over heads.
  matrices(number, kind) {
    const chunk = this.layer(number)[kind];
    if (chunk === undefined) return Promise.resolve([]);
    return this.cached(chunk, async () => {
      const reader = new Reader(await inflated(chunk)), found = [];
      while (!reader.ended) found.push(reader.matrix(this.tokens, this.whole));
      return found;
    });
  }

  async matrix(number, kind, head) {
    const found = await this.matrices(number, kind);
    return found[head < found.length - 1 ? head : found.length - 1];
  }

  hasHeads(kind) { return kind === "weights" || (kind === "gradients" && this.gradient_heads); }

  // For each token how much of it a token, or the output, takes up.
  row(matrix, token) {
    const sum = new Float32Array(this.tokens);
    if (token !== OUTPUT) matrix.addRow(token, 1, sum);
    else this.pooling.forEach((share, row) => { if (share) matrix.addRow(row, share, sum); });
    return sum;
  }

  // Whether a pair is left out by the pattern of a layer: a function of query and key, or null for no pattern.
  async forbidden(number) {
    const chunk = this.layer(number).forbidden;
    if (chunk === undefined) return null;
    const bits = await this.cached(chunk, () => inflated(chunk)), width = Math.ceil(this.tokens / 8);
    return (query, key) => query !== OUTPUT && (bits[query * width + (key >> 3)] >> (key & 7)) & 1;
  }

  cached(chunk, read) {
    if (!this.read.has(chunk)) this.read.set(chunk, read());
    return this.read.get(chunk);
  }
}
