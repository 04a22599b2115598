// The controls, and what they show.
"use strict";

const control = id => document.getElementById(id);
const chosenOf = name => document.querySelector(`input[name=${name}]:checked`).value;

// A model's attention in the sample: its panels, and what is played.
class LookView {
  constructor(look, number, explorer) {
    Object.assign(this, { look, number, explorer });
    this.tokens = new Tokens(look);
    this.panels = ["from", "to"].map(side => new Panel(this.tokens, side, this));
    const sound = this.tokens.parts.find(part => part.sound !== null && part.sound !== undefined);
    this.player = sound ? new Player(content.files[sound.sound], seconds => this.playhead(seconds)) : null;
    const picture = this.tokens.parts.find(part => part.kind === "picture" && !part.seconds);
    const small = picture ? [element("img", { class: "small", alt: "the image itself", src: content.files[picture.image] })] : [];
    const predictions = look.predictions.map(text => element("li", {}, text));
    this.note = element("p", { class: "note" });
    this.buttons = this.player ? this.playButtons() : [];
    this.root = element(
      "article", { class: "look" },
      element("div", { class: "head" }, ...small,
        element("div", {}, element("h2", {}, look.name), element("ul", { class: "predictions" }, ...predictions))),
      ...(this.player ? [element("div", { class: "play" }, ...this.buttons)] : []),
      element("div", { class: "panels" }, ...this.panels.map(panel => panel.root)), this.note);
    this.root.classList.toggle("wide", this.tokens.parts.some(part =>
      part.kind === "picture" ? part.aspect > 2 : part.kind === "words" && part.length > 80));
    this.root.classList.toggle("text", this.tokens.parts.every(part => part.kind !== "picture"));
  }

  playButtons() {
    this.here = element("button", { type: "button", onclick: () => this.play() });
    return [this.here, element("button", { type: "button", onclick: () => this.player.playAll() }, "▶ All of it")];
  }

  point(token) { this.explorer.point(token === null ? null : { look: this.number, token }); }

  choose(token) { this.explorer.choose({ look: this.number, token }); }

  play() {
    const stretch = this.tokens.seconds(this.shown);
    return stretch ? this.player.play(...stretch) : this.player.playAll();
  }

  playhead(seconds) { for (const panel of this.panels) panel.playhead(seconds); }

  key(event, panel) {
    const { key } = event, explorer = this.explorer;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"].includes(key)) {
      const part = this.shown === OUTPUT ? null : this.tokens.partOf(this.shown);
      const words = part && panel.views.find(view => view.part === part && view.beside);
      const beside = words && !key.match(/Left|Right/) ? words.beside(this.shown, key) : null;
      this.choose(beside === null ? this.tokens.next(this.shown, key) : beside);
    } else if (key === "Home" || key === "Escape") this.choose(OUTPUT);
    else if ((key === "Enter" || key === " ") && this.player) this.play();
    else if (key === "+" || key === "-") explorer.stepLayer(key === "+" ? 1 : -1);
    else if (key === "h" || key === "H") explorer.stepHead(key === "h" ? 1 : -1);
    else return;
    event.preventDefault();
  }

  async draw(settings, place) {
    const { kind, layer, head } = settings, { look, tokens } = this;
    const theirs = this.explorer.views[place.look].tokens;
    const shown = (this.shown = tokens.like(place.token, theirs));
    const [matrix, forbidden] = await Promise.all([look.matrix(layer, kind, head), look.forbidden(layer)]);
    if (this.explorer.settings !== settings || this.shown !== shown) return []; // others have been chosen meanwhile
    const name = tokens.name(shown), [from, to] = this.titles(kind, name);
    const oneLayer = kind === "weights" || kind === "gradients";
    const none = matrix ? "Nothing: the output is what the tokens are pooled to after the last layer."
      : "There are no gradients: the model predicts no classes.";
    const said = this.panels[0].draw({
      values: matrix ? look.row(matrix, shown) : null, shown, kind, title: from, none,
      forbidden: oneLayer && forbidden ? key => forbidden(shown, key) : null,
    });
    this.panels[1].draw({
      values: matrix && shown !== OUTPUT ? matrix.column(shown) : null, shown, kind, title: to, none,
      forbidden: oneLayer && forbidden ? query => forbidden(query, shown) : null,
    });
    this.note.textContent = this.describe(look.layer(layer), kind);
    if (this.here) {
      const stretch = tokens.seconds(shown);
      this.here.textContent = stretch ? `▶ Play at ${stretch[0].toFixed(2)} s` : "▶ Play";
      this.here.disabled = !stretch;
    }
    return said.length ? [`${look.name}: ${from} ${said.join("; ")}.`] : [];
  }

  titles(kind, name) {
    const subject = capital(name), output = name === "the output";
    if (kind === "weights") return [output ? "The output is pooled from:" : `${subject} attends to:`, `What attends to ${name}:`];
    if (kind === "rollout") return [`What has reached ${name}:`, `Where ${name} has reached:`];
    const target = this.look.target;
    if (kind === "gradients") return [`${subject} attends to, for ${target}:`, `What attends to ${name}, for ${target}:`];
    return [`What has reached ${name}, for ${target}:`, `Where ${name} has reached, for ${target}:`];
  }

  describe(layer, kind) {
    const { look } = this, said = [];
    if (kind === "weights" || kind === "gradients") {
      said.push(`Layer ${layer.number}${layer.pattern ? ` attends by ${layer.pattern}` : ""}; computed by the `
        + `${layer.backend} backend: ${layer.why}.`);
    }
    if (!look.whole) {
      said.push(`To keep the page small, the ${look.count} largest numbers of each row and column are stored`
        + ` (${percent(look.share)} of the sum of all), of means over heads twice as many.`);
      if (look.layers.length < look.depth) said.push(`${look.layers.length} of ${look.depth} layers are stored.`);
    }
    if (kind === "gradients" && !look.gradient_heads) said.push("Gradients are stored for the mean over heads only.");
    return said.join(" ");
  }
}

class Explorer {
  constructor() {
    this.drawing = 0; // how many times at this moment
    content.samples.forEach((sample, number) => control("sample").append(element("option", { value: number }, sample.name)));
    control("samples").hidden = content.samples.length < 2;
    control("sample").addEventListener("change", () => this.open(Number(control("sample").value)));
    for (const id of ["layer", "head"]) control(id).addEventListener("input", () => this.change());
    for (const input of document.querySelectorAll("input[type=radio]")) input.addEventListener("change", () => this.change());
    control("all-heads").addEventListener("toggle", () => this.drawHeads());
    this.open(0);
  }

  open(number) {
    if (this.views) for (const view of this.views) if (view.player) view.player.stop();
    this.views = content.samples[number].looks.map((look, at) => new LookView(new Look(look), at, this));
    control("looks").replaceChildren(...this.views.map(view => view.root));
    control("looks").classList.toggle("several", this.views.length > 1);
    const { look } = this.views[0], heads = Math.max(...this.views.map(view => Math.max(...view.look.layers.map(layer => layer.heads))));
    const slider = control("layer"), selected = this.settings || { head: "mean" };
    slider.max = look.layers.length - 1;
    if (!this.settings) slider.value = slider.max;
    const option = head => element("option", { value: head }, `head ${head + 1}`);
    control("head").replaceChildren(element("option", { value: "mean" }, `mean over ${heads} heads`),
      ...Array.from({ length: heads }, (_, head) => option(head)));
    control("head").value = selected.head < heads ? selected.head : "mean";
    control("by-gradients").disabled = !this.views.some(view => view.look.target);
    control("by-gradients").parentElement.title = control("by-gradients").disabled
      ? "There are no gradients: the model predicts no classes." : "";
    if (control("by-gradients").disabled) control("by-weights").checked = true;
    const choose = (layer, head) => this.set(layer, head);
    this.heads = this.views.map(view => new HeadsView(view.look, view.tokens, this.views.length > 1, choose));
    control("heads").replaceChildren(...this.heads.map(view => view.root));
    this.place = { look: 0, token: OUTPUT };
    this.hover = null;
    this.change();
  }

  change() {
    const layers = this.views[0].look.layers, entry = layers[Number(control("layer").value)];
    const gradients = chosenOf("by") === "gradients", rollout = chosenOf("over") === "layers";
    const kind = rollout ? (gradients ? "relevance" : "rollout") : gradients ? "gradients" : "weights";
    const head = control("head").value === "mean" || rollout ? "mean" : Number(control("head").value);
    control("head").disabled = rollout || !this.views.some(view => view.look.hasHeads(kind));
    control("layer-value").textContent = `${rollout ? "1 to " : ""}${entry.number} of ${this.views[0].look.depth}`;
    control("layer").setAttribute("aria-valuetext", `layer ${control("layer-value").textContent}`);
    this.settings = { kind, layer: entry.number, head };
    this.draw(true);
  }

  set(layer, head) {
    const layers = this.views[0].look.layers;
    control("layer").value = layers.findIndex(each => each.number === this.views[0].look.layer(layer).number);
    control("head").value = head;
    control("over-layer").checked = true;
    this.change();
  }

  stepLayer(by) {
    control("layer").value = Number(control("layer").value) + by;
    this.change();
  }

  stepHead(by) {
    const head = control("head");
    if (head.disabled) return;
    head.selectedIndex = (head.selectedIndex + by + head.options.length) % head.options.length;
    this.change();
  }

  point(place) {
    this.hover = place;
    this.draw(false);
  }

  choose(place) {
    this.place = place;
    this.hover = null;
    this.draw(true);
  }

  // aloud: whether screen readers are told.
  draw(aloud) {
    this.aloud = this.aloud || aloud;
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(async () => {
      this.waiting = null;
      this.drawing++;
      const place = this.hover || this.place, { settings } = this, told = this.aloud;
      this.aloud = false;
      const said = await Promise.all(this.views.map(view => view.draw(settings, place)));
      if (told) control("said").textContent = said.flat().join(" ");
      await this.drawHeads();
      this.drawing--;
      document.body.dataset.drawn = Number(document.body.dataset.drawn || 0) + 1;
    });
  }

  async drawHeads() {
    if (!control("all-heads").open) return;
    const place = this.hover || this.place, theirs = this.views[place.look].tokens, { kind, layer, head } = this.settings;
    const shownKind = kind === "rollout" ? "weights" : kind === "relevance" ? "gradients" : kind;
    await Promise.all(this.heads.map((heads, at) =>
      heads.draw(shownKind, this.views[at].tokens.like(place.token, theirs), { layer, head })));
  }
}

window.explorer = new Explorer();
