// Plays the stretch of a sound that a token covers.
"use strict";

const SHORTEST = 0.3; // seconds: less can hardly be heard

class Player {
  constructor(source, show) {
    this.audio = new Audio(source);
    this.show = show; // called with the time while it plays, and with null at the end
    this.until = Infinity;
    this.audio.addEventListener("ended", () => this.stop());
  }

  async play(from, to) {
    const length = Math.max(to - from, SHORTEST), middle = (from + to) / 2;
    const start = Math.max(0, middle - length / 2);
    this.until = start + length;
    this.audio.currentTime = start;
    await this.audio.play();
    this.follow();
  }

  playAll() { return this.play(0, this.audio.duration || 1e6); }

  follow() {
    if (this.audio.paused) return;
    if (this.audio.currentTime >= this.until) {
      this.stop();
      return;
    }
    this.show(this.audio.currentTime);
    requestAnimationFrame(() => this.follow());
  }

  stop() {
    this.audio.pause();
    this.show(null);
  }
}
