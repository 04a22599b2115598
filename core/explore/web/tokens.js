// Where tokens are, what they are called, and how they are drawn: one view for each part of the input.
"use strict";

const STOPS = [[49, 18, 91], [190, 24, 93], [249, 115, 22], [253, 230, 138]];

// The colour of a weight from 0 to 1, and how much it covers of what lies below.
function heat(t) {
  const place = Math.min(Math.max(t, 0), 0.9999) * (STOPS.length - 1), at = Math.floor(place);
  const mixed = STOPS[at].map((low, i) => Math.round(low + (place - at) * (STOPS[at + 1][i] - low)));
  return [...mixed, 0.74 * Math.sqrt(t)];
}

const css = ([red, green, blue, alpha]) => `rgba(${red}, ${green}, ${blue}, ${alpha.toFixed(3)})`;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// All tokens of a look: the parts that they are in, one behind the other.
class Tokens {
  constructor(look) {
    let first = 0;
    this.count = look.tokens;
    this.parts = look.parts.map((part, number) => {
      const length = part.kind === "picture" ? part.grid[0] * part.grid[1] : (part.names || part.pieces).length;
      return { ...part, number, first: (first += length) - length, length };
    });
  }

  partOf(token) {
    return this.parts.find(part => token >= part.first && token < part.first + part.length);
  }

  name(token) {
    if (token === OUTPUT) return "the output";
    const part = this.partOf(token), at = token - part.first;
    if (part.kind === "marks") return part.names[at];
    if (part.kind === "words") return `“${part.pieces[at][0]}”`;
    const row = Math.floor(at / part.grid[1]), column = at % part.grid[1];
    if (!part.seconds) return `row ${row + 1}, column ${column + 1}`;
    const [from, to] = this.seconds(token), time = `${from.toFixed(2)}–${to.toFixed(2)} s`;
    return part.names ? `${time}, ${part.names[row]}` : time;
  }

  // Where the centre of a token is on its picture, as fractions: [down, across].
  centre(token) {
    const part = this.partOf(token), at = token - part.first;
    return [
      part.origin[0] + Math.floor(at / part.grid[1]) * part.step[0],
      part.origin[1] + (at % part.grid[1]) * part.step[1],
    ];
  }

  // The time that a token covers, if its part is a sound.
  seconds(token) {
    const part = token === OUTPUT ? null : this.partOf(token);
    if (!part || !part.seconds) return null;
    const [start, end] = part.seconds, across = this.centre(token)[1], half = part.size[1] / 2;
    return [across - half, across + half].map(x => Math.max(0, start + x * (end - start)));
  }

  // The token of a picture that is nearest to a place.
  nearest(part, down, across) {
    const [row, column] = [down, across].map((x, axis) =>
      Math.min(Math.max(Math.round((x - part.origin[axis]) / part.step[axis]), 0), part.grid[axis] - 1));
    return part.first + row * part.grid[1] + column;
  }

  // The token that is where a token of another look of the same sample is.
  like(token, others) {
    if (token === OUTPUT || others === this) return token;
    const theirs = others.partOf(token), at = token - theirs.first;
    const same = this.parts.filter(part => part.kind === theirs.kind);
    const part = same[others.parts.filter(each => each.kind === theirs.kind).indexOf(theirs)] || same[0];
    if (!part) return OUTPUT;
    if (part.kind === "picture") return this.nearest(part, ...others.centre(token));
    if (part.kind === "marks") {
      const found = part.names.indexOf(theirs.names[at]);
      return found < 0 ? OUTPUT : part.first + found;
    }
    const [text, start, end] = theirs.pieces[at], middle = (start + end) / 2;
    const found = part.pieces.findIndex((piece, place) =>
      start === end ? piece[0] === text && place >= Math.min(at, part.length - 1)
        : piece[2] > piece[1] && piece[1] <= middle && middle <= piece[2]);
    return found < 0 ? OUTPUT : part.first + found;
  }

  // The token that an arrow key leads to.
  next(token, key) {
    const part = token === OUTPUT ? null : this.partOf(token);
    const side = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[key];
    let to = token + side;
    if (part && part.kind === "picture" && (key === "ArrowUp" || key === "ArrowDown")) {
      // Rows may go upwards, as frequencies do.
      to = token + side * Math.sign(part.step[0]) * part.grid[1];
      if (to < part.first || to >= part.first + part.length) to = side < 0 ? part.first - 1 : part.first + part.length;
    }
    return Math.min(Math.max(to, OUTPUT), this.count - 1);
  }
}

// The output and the tokens that are at no place, as a row of labels; names: pairs of a token and its name.
class MarksView {
  constructor(names, owner) {
    this.labels = names.map(([token, name]) => element("span", { class: "mark", "data-token": token }, name));
    this.root = element("div", { class: "marks" }, ...this.labels);
    pointing(this.root, owner, tokenOf);
  }

  draw(drawn) {
    this.labels.forEach(label => colourLabel(label, drawn));
  }
}

function colourLabel(label, { values, scale, shown, forbidden }) {
  const token = Number(label.dataset.token), left = forbidden && token !== OUTPUT && forbidden(token);
  const weight = values && token !== OUTPUT && !left ? Math.min(1, values[token] / scale) : 0;
  label.classList.toggle("left-out", Boolean(left));
  label.classList.toggle("shown", token === shown);
  label.style.setProperty("--weight", weight > 0 ? weight.toFixed(3) : 0);
}

// The token of the label that an event is about, or null.
function tokenOf(event) {
  const label = event.target.closest("[data-token]");
  return label ? Number(label.dataset.token) : null;
}

// Calls owner.point while a pointer is over a token, owner.choose for a click; find: the token of an event, or null.
function pointing(root, owner, find) {
  root.addEventListener("pointermove", event => { if (event.pointerType === "mouse") owner.point(find(event)); });
  root.addEventListener("pointerleave", () => owner.point(null));
  root.addEventListener("click", event => {
    const token = find(event);
    if (token !== null) owner.choose(token);
  });
}
