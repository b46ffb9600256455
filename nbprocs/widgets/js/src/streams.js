// Two byte streams become one text for the terminal: each decoded by itself (a character may be split between chunks), stderr in its
// own colour, and characters that reorder or hide text made visible.

const HIDDEN = /[\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
const RESET = /\x1b\[(?:0*)((?:;\d+)*)m/g;
const ERROR = "31"; // red

export class Streams {
  constructor() {
    this.decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() };
  }

  text(stream, chunk) {
    const text = this.decoders[stream].decode(chunk, { stream: true }).replace(HIDDEN, "\ufffd");
    if (stream !== "stderr" || !text) return text;
    // a reset within stderr goes back to stderr's colour
    return `\x1b[${ERROR}m${text.replace(RESET, (_, rest) => `\x1b[0;${ERROR}${rest}m`)}\x1b[39m`;
  }
}
