// One direction of a look: what a token attends to, or what attends to it.
"use strict";

const FEW = 5; // tokens that are listed as the strongest

function percent(value) {
  return value >= 0.0995 ? `${(100 * value).toFixed(0)} %` : `${(100 * value).toPrecision(2)} %`;
}

// A weight in words: attention and rollout are shares of 1, gradient-weighted numbers are not.
function amount(value, kind) {
  if (kind === "weights" || kind === "rollout") return value >= 5e-6 ? percent(value) : value ? "< 0.001 %" : "0 %";
  return value === 0 ? "0" : value.toPrecision(2).replace(/e-(\d+)/, " × 10⁻$1");
}

const capital = text => text.charAt(0).toUpperCase() + text.slice(1);

class Panel {
  // side: "from" for what a token attends to, "to" for what attends to it. owner: the look's view.
  constructor(tokens, side, owner) {
    Object.assign(this, { tokens, side, owner });
    const marks = tokens.parts.filter(part => part.kind === "marks" && part.first === 0);
    const rest = tokens.parts.filter(part => !marks.includes(part));
    const names = marks.flatMap(part => part.names.map((name, at) => [part.first + at, name]));
    this.views = [
      new MarksView([[OUTPUT, "output"], ...names], owner),
      ...rest.map(part => this.view(part, owner)),
    ];
    this.title = element("h3");
    this.legend = element("div", { class: "legend" }, "0", element("span", { class: "scale" }));
    this.most = element("span");
    this.leftOut = element("span", { class: "hatched", hidden: "" }, "not computed");
    this.legend.append(this.most, this.leftOut);
    this.field = element(
      "div", { class: "field", tabindex: "0", role: "application", onkeydown: event => owner.key(event, this) },
      ...this.views.map(view => view.root));
    this.list = element("ol", { class: "strongest" });
    this.root = element("section", { class: "panel" }, this.title, this.field, this.legend, this.list);
  }

  view(part, owner) {
    if (part.kind === "picture") return new PictureView(this.tokens, part, owner);
    if (part.kind === "words") return new WordsView(this.tokens, part, owner);
    return new MarksView(part.names.map((name, at) => [part.first + at, name]), owner);
  }

  // values: of each token, or null if there are none; forbidden: whether a pair was left out, of the other token.
  draw({ values, forbidden, shown, kind, title, none }) {
    const scale = this.scale(values, shown, kind);
    const drawn = { values, scale, shown, forbidden: values ? forbidden : null };
    for (const view of this.views) view.draw(drawn);
    this.title.textContent = title;
    this.field.setAttribute("aria-label", `${title} Arrow keys choose another token.`);
    this.legend.hidden = !values;
    this.most.textContent = amount(scale, kind);
    this.leftOut.hidden = !drawn.forbidden || !this.anyLeftOut(drawn.forbidden);
    const strongest = values ? this.strongest(values) : [];
    this.list.replaceChildren(...(values ? strongest.map(token => this.item(token, values, kind)) : []));
    if (!values) this.list.append(element("li", { class: "none" }, none));
    return strongest.map(token => `${this.tokens.name(token)} ${amount(values[token], kind)}`);
  }

  anyLeftOut(forbidden) {
    for (let token = 0; token < this.tokens.count; token++) if (forbidden(token)) return true;
    return false;
  }

  // The largest value of a token with a place, which gets the strongest colour. Over several layers a token keeps most
  // of itself, which would outshine the rest.
  scale(values, shown, kind) {
    let placed = 0, any = 0;
    const itself = kind === "rollout" || kind === "relevance" ? shown : null;
    for (const part of values ? this.tokens.parts : []) {
      for (let at = 0; at < part.length; at++) {
        const token = part.first + at;
        if (token === itself) continue;
        any = Math.max(any, values[token]);
        const atPlace = part.kind === "picture" || (part.kind === "words" && part.pieces[at][2] > part.pieces[at][1]);
        if (atPlace) placed = Math.max(placed, values[token]);
      }
    }
    return placed || any || 1;
  }

  strongest(values) {
    const found = [];
    for (let token = 0; token < values.length; token++) {
      if (!(values[token] > 0)) continue;
      let at = found.length;
      while (at && values[found[at - 1]] < values[token]) at--;
      if (at < FEW) found.splice(at, 0, token);
      if (found.length > FEW) found.pop();
    }
    return found;
  }

  item(token, values, kind) {
    const share = values[token] / values.reduce((sum, value) => Math.max(sum, value), 0);
    const bar = element("span", { class: "bar" });
    bar.style.width = `${(100 * share).toFixed(1)}%`;
    const button = element(
      "button", { type: "button", onclick: () => this.owner.choose(token) },
      element("span", { class: "name" }, capital(this.tokens.name(token))),
      element("span", { class: "amount" }, amount(values[token], kind)), bar);
    return element("li", {}, button);
  }

  playhead(seconds) {
    for (const view of this.views) if (view.play) view.play(seconds);
  }
}
