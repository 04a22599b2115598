// Tokens on a picture: an image, or a spectrogram.
"use strict";

class PictureView {
  constructor(tokens, part, owner) {
    Object.assign(this, { tokens, part });
    this.image = element("img", { src: content.files[part.image], alt: "" });
    this.canvas = element("canvas", { "aria-hidden": "true" });
    this.playhead = element("div", { class: "playhead", hidden: "" });
    this.frame = element("div", { class: "picture" }, this.image, this.canvas, this.playhead);
    this.frame.style.aspectRatio = part.aspect;
    this.root = element("div", {}, this.frame, ...(part.seconds ? [this.axis()] : []));
    pointing(this.frame, owner, event => this.find(event));
    this.image.addEventListener("load", () => {
      this.image.classList.toggle("coarse", this.image.naturalWidth < 100);
    });
    new ResizeObserver(() => this.drawn && this.draw(this.drawn)).observe(this.frame);
  }

  axis() {
    const [start, end] = this.part.seconds, middle = (start + end) / 2;
    const label = seconds => element("span", {}, `${Math.max(seconds, 0).toFixed(2)} s`);
    return element("div", { class: "axis" }, label(start), label(middle), label(end));
  }

  find(event) {
    const box = this.frame.getBoundingClientRect();
    const [down, across] = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
    return this.tokens.nearest(this.part, down, across);
  }

  draw(drawn) {
    this.drawn = drawn;
    const { values, scale, shown, forbidden } = drawn, { part, canvas } = this;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    canvas.width = Math.round(this.frame.clientWidth * ratio);
    canvas.height = Math.round(this.frame.clientHeight * ratio);
    const context = canvas.getContext("2d");
    for (let at = 0; at < part.length; at++) {
      const token = part.first + at;
      const [x, y, width, height] = this.cell(token);
      if (forbidden && forbidden(token)) {
        context.fillStyle = this.hatching(context, ratio);
        context.fillRect(x, y, width, height);
      } else if (values && values[token] > 0) {
        context.fillStyle = css(heat(Math.min(1, values[token] / scale)));
        context.fillRect(x, y, width, height);
      }
    }
    if (shown >= part.first && shown < part.first + part.length) this.outline(context, shown, ratio);
  }

  // The rectangle in which a token is drawn, in pixels of the canvas: it ends halfway to the next token, so that none
  // overlap, and at the edge of the grid where its patch ends. whole: the patch itself.
  cell(token, whole = false) {
    const { part, canvas } = this, centre = this.tokens.centre(token), at = token - part.first;
    const places = [Math.floor(at / part.grid[1]), at % part.grid[1]];
    const [[top, bottom], [left, right]] = centre.map((middle, axis) => {
      const half = part.size[axis] / 2, step = Math.abs(part.step[axis]) / 2;
      const ends = [places[axis] === 0, places[axis] === part.grid[axis] - 1];
      if (part.step[axis] < 0) ends.reverse();
      const [before, after] = ends.map(atEdge => (whole || atEdge ? half : step));
      const length = axis ? canvas.width : canvas.height;
      return [middle - before, middle + after].map(x => Math.round(Math.min(Math.max(x, 0), 1) * length));
    });
    return [left, top, right - left, bottom - top];
  }

  outline(context, token, ratio) {
    const [x, y, width, height] = this.cell(token, true), inset = 1.5 * ratio;
    for (const [colour, line] of [["#0f172a", 5], ["#38bdf8", 3]]) {
      context.lineWidth = line * ratio;
      context.strokeStyle = colour;
      context.strokeRect(x + inset, y + inset, Math.max(width - 2 * inset, 1), Math.max(height - 2 * inset, 1));
    }
  }

  hatching(context, ratio) {
    if (this.hatched && this.hatchedAt === ratio) return this.hatched;
    const side = Math.round(8 * ratio), tile = element("canvas");
    tile.width = tile.height = side;
    const brush = tile.getContext("2d");
    brush.fillStyle = "rgba(15, 23, 42, 0.72)";
    brush.fillRect(0, 0, side, side);
    brush.strokeStyle = "rgba(148, 163, 184, 0.75)";
    brush.lineWidth = ratio;
    for (const shift of [-side, 0, side]) {
      brush.beginPath();
      brush.moveTo(shift, side);
      brush.lineTo(shift + side, 0);
      brush.stroke();
    }
    this.hatchedAt = ratio;
    return (this.hatched = context.createPattern(tile, "repeat"));
  }

  // Show where a sound is being played; null: nowhere.
  play(seconds) {
    const [start, end] = this.part.seconds;
    this.playhead.hidden = seconds === null;
    if (seconds !== null) this.playhead.style.left = `${(100 * (seconds - start)) / (end - start)}%`;
  }
}
