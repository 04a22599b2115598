// All layers and heads at once, small: what the token pointed to attends to in each.
"use strict";

const BINS = 64; // of a text, which is drawn as a strip
const GAP = 3, LABEL = 22;

class HeadsView {
  // named: whether the name of the model is shown. choose: called with the number of a layer and that of a head, which
  // is counted from 0.
  constructor(look, tokens, named, choose) {
    Object.assign(this, { look, tokens });
    this.part = tokens.parts.find(part => part.kind === "picture") || null;
    this.heads = Math.max(...look.layers.map(layer => layer.heads));
    this.canvas = element("canvas", { class: "heads", "aria-hidden": "true" });
    this.canvas.addEventListener("click", event => {
      const { width, height } = this.tile(), box = this.canvas.getBoundingClientRect();
      const head = Math.floor((event.clientX - box.left - LABEL) / (width + GAP));
      const row = Math.floor((event.clientY - box.top - LABEL) / (height + GAP));
      const layer = look.layers[row];
      if (layer && head >= 0 && head < layer.heads) choose(layer.number, head);
    });
    this.root = element("div", {}, ...(named ? [element("p", { class: "muted" }, look.name)] : []), this.canvas);
    new ResizeObserver(() => this.drawn && this.draw(...this.drawn)).observe(this.root);
  }

  // Rows and columns of a tile's picture.
  get grid() { return this.part ? this.part.grid : [1, Math.min(BINS, this.tokens.count)]; }

  tile() {
    const room = this.root.clientWidth - LABEL - GAP * this.heads;
    const width = Math.max(8, Math.min(72, Math.floor(room / this.heads)));
    const aspect = this.part ? this.part.aspect : 3;
    return { width, height: Math.max(6, Math.round(width / aspect)) };
  }

  async draw(kind, token, chosen) {
    this.drawn = [kind, token, chosen];
    if (!this.root.clientWidth) return;
    const all = await Promise.all(this.look.layers.map(layer => this.look.matrices(layer.number, kind)));
    if (this.drawn[1] !== token || this.drawn[0] !== kind) return; // another token is pointed to by now
    const { width, height } = this.tile(), ratio = Math.min(window.devicePixelRatio || 1, 2);
    const wide = LABEL + this.heads * (width + GAP), high = LABEL + all.length * (height + GAP);
    Object.assign(this.canvas, { width: wide * ratio, height: high * ratio });
    Object.assign(this.canvas.style, { width: `${wide}px`, height: `${high}px` });
    const context = this.canvas.getContext("2d"), style = getComputedStyle(this.canvas);
    context.scale(ratio, ratio);
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.imageSmoothingEnabled = false;
    context.fillStyle = style.color;
    for (let head = 0; head < this.heads; head++) {
      context.fillText(head + 1, LABEL + head * (width + GAP) + width / 2, LABEL / 2);
    }
    all.forEach((matrices, row) => {
      const layer = this.look.layers[row], y = LABEL + row * (height + GAP);
      context.fillStyle = style.color;
      context.fillText(layer.number, LABEL / 2, y + height / 2);
      matrices.slice(0, -1).forEach((matrix, head) => {
        const x = LABEL + head * (width + GAP);
        context.drawImage(this.picture(this.look.row(matrix, token)), x, y, width, height);
        if (layer.number !== chosen.layer || (chosen.head !== head && chosen.head !== "mean")) return;
        context.strokeStyle = "#38bdf8";
        context.lineWidth = 2;
        context.strokeRect(x, y, width, height);
      });
    });
  }

  picture(values) {
    const [rows, columns] = this.grid, cells = new Float32Array(rows * columns);
    for (let token = 0; token < values.length; token++) {
      let at = token;
      if (this.part) {
        at = token - this.part.first;
        if (at < 0 || at >= this.part.length) continue;
        if (this.part.step[0] < 0) at = (rows - 1 - Math.floor(at / columns)) * columns + (at % columns);
      } else at = Math.floor((token * columns) / values.length);
      cells[at] = Math.max(cells[at], values[token]);
    }
    const most = cells.reduce((a, b) => Math.max(a, b), 0) || 1, image = new ImageData(columns, rows);
    cells.forEach((value, at) => {
      const colour = heat(value / most), share = Math.sqrt(value / most), dark = [15, 23, 42];
      dark.forEach((part, i) => { image.data[4 * at + i] = colour[i] * share + part * (1 - share); });
      image.data[4 * at + 3] = 255;
    });
    const made = this.scratch || (this.scratch = document.createElement("canvas"));
    Object.assign(made, { width: columns, height: rows });
    made.getContext("2d").putImageData(image, 0, 0);
    return made;
  }
}
