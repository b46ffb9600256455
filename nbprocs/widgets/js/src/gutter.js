// Left of the terminal's rows: a bar where stderr wrote, and on request the time at which a row came to this page.

import { h } from "./dom.js";

/** @import {IMarker, Terminal} from "@xterm/xterm" */
/** @import {Stream} from "./streams.js" */
/** @typedef {{marker: IMarker | undefined, stream: Stream, time: string}} Mark where a piece of output ended */

export class Gutter {
  /**
   * @param {Terminal} term
   * @param {HTMLElement} screen that it is in
   */
  constructor(term, screen) {
    this.term = term;
    /** @type {Mark[]} */
    this.marks = []; // oldest first
    this.node = h("div.nb-gutter", { "aria-hidden": "true" });
    this.screen = screen;
    screen.append(this.node);
    /** @type {HTMLElement[]} */
    this.rows = [];
    this.height = 0; // of each, in pixels
    /** @type {HTMLElement | null} */
    this.inner = screen.querySelector(".xterm-screen");
    this.timed = false;
    this.gone = false;
    this.ends = [term.onRender(() => this.draw()), term.onResize(() => this.draw())];
  }

  reset() {
    for (const { marker } of this.marks) marker?.dispose();
    this.marks = [];
  }

  /**
   * A piece of output has just been written.
   * @param {Stream} stream
   * @param {boolean} old before this page looked
   */
  wrote(stream, old) {
    const time = old ? "" : new Date().toTimeString().slice(0, 8);
    const last = this.marks.at(-1);
    const { active } = this.term.buffer;
    const open = active.cursorX > 0; // the row goes on
    if (last?.stream === stream && last.time === time) {
      last.marker?.dispose();
      this.marks.pop();
    }
    this.marks.push({ marker: this.term.registerMarker(open ? 0 : -1), stream, time });
    if (this.marks.length > 4000) this.marks = this.marks.filter(({ marker }) => marker && !marker.isDisposed);
  }

  toggle() {
    this.screen.classList.toggle("nb-timed");
    this.timed = !this.timed;
    this.draw();
    this.screen.dispatchEvent(new Event("resize"));
  }

  /**
   * The piece that a row belongs to: the first that ends at it or below.
   * @param {number} row
   * @returns {Mark | undefined}
   */
  of(row) {
    let low = 0;
    let high = this.marks.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.marks[middle].marker?.line ?? -1) < row) low = middle + 1;
      else high = middle;
    }
    return this.marks[low];
  }

  /** Pixels of a row, from what the terminal gave its screen: to ask the page would make it lay itself out, for each piece of output. */
  rowHeight() {
    return parseFloat(this.inner?.style.height ?? "") / this.term.rows || 0;
  }

  draw() {
    const height = this.rowHeight();
    if (!height || this.gone) return;
    const { viewportY, type } = this.term.buffer.active;
    while (this.rows.length < this.term.rows) this.rows.push(this.node.appendChild(h("i", { style: { height: `${height}px` } })));
    let before = "";
    this.rows.forEach((node, i) => {
      const mark = i < this.term.rows && type === "normal" ? this.of(viewportY + i) : undefined;
      const time = this.timed && mark && mark.time !== before ? mark.time : "";
      before = mark?.time ?? before;
      if (node.dataset.stream !== (mark?.stream ?? "")) node.dataset.stream = mark?.stream ?? "";
      if (node.textContent !== time) node.textContent = time;
      if (height !== this.height) node.style.height = `${height}px`;
    });
    this.height = height;
  }

  destroy() {
    this.gone = true;
    for (const end of this.ends) end.dispose();
  }
}
