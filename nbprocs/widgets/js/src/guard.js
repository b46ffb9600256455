// What output may do to the terminal: colour and move in it, nothing that takes it over, freezes the page or ends the writing.
// xterm loops over some parameters as often as they say: ten bytes (ESC [ 999999999 L) hold a page for half a minute. Its own handlers read the
// parameters from the object that ours were given, so they are cut down in place; the version is pinned, and tests/guard.test.js tries each.

const LOOPS = [..."@LMPSTXZIb"]
  .map((final) => ({ final }))
  .concat(
    [..."@A"].map((final) => ({ intermediates: " ", final })),
    [..."}~"].map((final) => ({ intermediates: "'", final })),
  );
const MARKS = 32; // UTF-16 units of a cell: a letter with its combining marks. A cell of 200,000 holds the page as well
const PRIVATE = new Set([9, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 1016]); // mouse and focus reports
const SCREENS = [47, 1047, 1048, 1049, 2004]; // the other screen, bracketed paste: for a program that is typed into
const OSC = [0, 1, 2, 4, 8, 10, 11, 12, 52, 104, 110, 111, 112]; // titles, colours, links, the clipboard

/** @import {IFunctionIdentifier, Terminal} from "@xterm/xterm" */
/** @typedef {{_combined: Record<number, string | undefined>, addCodepointToCell(index: number, ...rest: unknown[]): void, nbprocs?: boolean}} Line */
/** @typedef {{parse(this: Input, ...args: unknown[]): unknown, _parser: {reset(): void}}} Input */
/** @typedef {{params: ArrayLike<number> & {[index: number]: number}, length: number}} Parameters */
/**
 * What is used of xterm behind its interface, in which a handler can't change what the next one is given.
 * @typedef {{registerCsiHandler(id: IFunctionIdentifier, handler: (parameters: Parameters) => boolean): unknown,
 *   buffer: {lines: {get(at: number): Line}}, _inputHandler: Input}} Core
 */

/**
 * Make a terminal safe for output that nobody has read.
 * @param {Terminal} term
 * @param {() => boolean} full true while a full-screen program may have it
 */
export function guard(term, full = () => false) {
  const core = /** @type {Terminal & {_core: Core}} */ (term)._core;
  for (const id of LOOPS) {
    core.registerCsiHandler(id, ({ params, length }) => {
      const most = Math.max(term.rows, term.cols);
      for (let i = 0; i < length; i++) params[i] = Math.min(params[i], most);
      return false; // on to xterm's own
    });
  }
  /** @type {Line} */
  const line = Object.getPrototypeOf(core.buffer.lines.get(0));
  if (!line.nbprocs) {
    const add = line.addCodepointToCell;
    line.addCodepointToCell = function (index, ...rest) {
      if ((this._combined[index]?.length ?? 0) < MARKS) add.call(this, index, ...rest);
    };
    line.nbprocs = true;
  }
  const input = core._inputHandler;
  const parse = input.parse;
  input.parse = function (...args) {
    try {
      return parse.apply(this, args);
    } catch (error) {
      console.error("output that the terminal could not show was left out", error); // and the next is shown, or nothing would be any more
      this._parser.reset();
    }
  };
  const refuse = (/** @type {number} */ p) => PRIVATE.has(p) || (SCREENS.includes(p) && !full());
  for (const final of ["h", "l"]) term.parser.registerCsiHandler({ prefix: "?", final }, (params) => params.flat().some(refuse));
  for (const code of OSC) term.parser.registerOscHandler(code, () => true);
}
