// When the panes of a page draw. A frame costs the page style, layout and paint, however little is new in it: panes that talk at the same time
// draw in the same frame, and the more of them there are, the less often. One that was quiet draws at once.

const EACH = 50; // ms between two draws for each pane that talks: one alone is drawn as often as the kernel sends, every 100 ms
const MOST = 500; // ms between two draws, however many talk
const REST = 1000; // ms without a draw, and a pane was quiet

/** @typedef {{flush: () => void}} Drawer */

export class Turns {
  constructor() {
    /** @type {Set<Drawer>} */
    this.waiting = new Set();
    /** @type {Map<Drawer, number>} */
    this.drawn = new Map(); // when each drew, of those that talk
    this.last = 0; // when those that waited drew
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
  }

  /**
   * It has something to draw.
   * @param {Drawer} drawer
   */
  want(drawer) {
    const now = performance.now();
    if (now - (this.drawn.get(drawer) ?? -REST) >= REST && !this.waiting.has(drawer)) {
      this.drawn.set(drawer, now);
      drawer.flush();
      return;
    }
    this.waiting.add(drawer);
    this.timer ??= setTimeout(() => this.draw(), Math.max(0, this.last + Math.min(EACH * this.drawn.size, MOST) - now));
  }

  draw() {
    const now = performance.now();
    const drawers = [...this.waiting];
    this.waiting.clear();
    this.timer = undefined;
    this.last = now;
    for (const [drawer, at] of this.drawn) if (now - at >= REST) this.drawn.delete(drawer);
    for (const drawer of drawers) {
      this.drawn.set(drawer, now);
      drawer.flush();
    }
  }

  /**
   * It is gone.
   * @param {Drawer} drawer
   */
  forget(drawer) {
    this.waiting.delete(drawer);
    this.drawn.delete(drawer);
  }
}

export const turns = new Turns(); // of all panes of a kernel in this page
