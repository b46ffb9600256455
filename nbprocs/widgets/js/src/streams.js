// Two byte streams become one text for the terminal: each decoded by itself (a character may be split between chunks), and characters that
// reorder or hide text made visible. Which rows are stderr's is said by the gutter, not by colour: red would be the program's own word.

const HIDDEN = /[\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]|(?<=[\0-\u02ff])[\u200c\u200d]|[\u200c\u200d](?=[\0-\u02ff\u200c\u200d])/g; // as in display.py

/** @typedef {"stdout" | "stderr"} Stream */

export class Streams {
  constructor() {
    this.decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() };
  }

  /**
   * @param {Stream} stream
   * @param {Uint8Array} chunk
   */
  text(stream, chunk) {
    return this.decoders[stream].decode(chunk, { stream: true }).replace(HIDDEN, "\ufffd");
  }
}
