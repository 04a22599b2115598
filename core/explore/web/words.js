// Tokens that are pieces of a text.
"use strict";

class WordsView {
  constructor(tokens, part, owner) {
    this.part = part;
    this.labels = part.pieces.map(([text, start, end, joined], at) => {
      const kind = start === end ? "piece special" : joined ? "piece joined" : "piece";
      return element("span", { class: kind, "data-token": part.first + at }, text);
    });
    this.root = element("p", { class: "words" });
    this.labels.forEach((label, at) => this.root.append(...(at && !part.pieces[at][3] ? [" "] : []), label));
    pointing(this.root, owner, tokenOf);
  }

  draw(drawn) {
    this.labels.forEach(label => colourLabel(label, drawn));
  }

  // The piece above or below one, or null if it is in the first or last line.
  beside(token, key) {
    const boxes = this.labels.map(label => label.getBoundingClientRect()), own = boxes[token - this.part.first];
    const middle = own.left + own.width / 2, up = key === "ArrowUp";
    let best = null, least = Infinity;
    boxes.forEach((box, at) => {
      const lines = up ? own.top - box.top : box.top - own.top;
      const distance = lines * 1e4 + Math.abs(box.left + box.width / 2 - middle);
      if (lines > own.height / 2 && distance < least) [best, least] = [this.part.first + at, distance];
    });
    return best;
  }
}
