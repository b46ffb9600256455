// The output pane: a terminal filled from the kernel's log. The toolbar works before the terminal is there.

import { button, bytes, clock, copy, h, say, seconds, set, short } from "./dom.js";
import { Gutter } from "./gutter.js";
import { guard } from "./guard.js";
import { links } from "./links.js";
import { asset, octets, reason } from "./protocol.js";
import { Streams } from "./streams.js";
import { colours } from "./theme.js";
import { t } from "./texts.js";
import { turns } from "./turns.js";

const SCROLLBACK = 20_000; // lines held by the terminal; what is older is paged in from the log
const WIDE = 500; // columns without wrapping
const FEWEST = 4; // rows of a pane that has little to show; it grows with its content, and never shrinks by itself
const QUEUE = 4_000_000; // bytes the terminal may be behind before this side skips

/** @import {FitAddon} from "@xterm/addon-fit" */
/** @import {ISearchOptions, SearchAddon} from "@xterm/addon-search" */
/** @import {Terminal} from "@xterm/xterm" */
/** @import {Bytes} from "./protocol.js" */
/** @import {Context} from "./root.js" */
/** @import {Stream} from "./streams.js" */
/** @typedef {{Terminal: typeof Terminal, FitAddon: typeof FitAddon, SearchAddon: typeof SearchAddon}} Modules of terminal.js */
/**
 * @typedef {{name: string, cmd: string, status: string, pid: number | null, start: number, took: number | null, end: string, stdin: boolean, pty: boolean,
 *   cwd: string, py: string, dropped: number, told: boolean}} Head what is known of the process; took: null while it lives
 */
/** @typedef {[stream: Stream, size: number, lost: number][]} Segments of a buffer, in bytes; lost: no longer in the log, before it */
/** @typedef {{at: number, end: number}} Page of the log: where it is, and how far the log goes */

/** @type {Stream[]} */
const STREAMS = ["stdout", "stderr"];
/** @type {Head} */
const UNKNOWN = { name: "", cmd: "", status: "", pid: null, start: 0, took: 0, end: "", stdin: false, pty: false, cwd: "", py: "", dropped: 0, told: false };

export class Pane {
  /**
   * @param {Context} context
   * @param {string} name of the part
   * @param {{onclose?: () => void, height?: number}} options onclose: there is a button for it; height: px at most
   */
  constructor(context, name, { onclose, height } = {}) {
    this.context = context;
    this.part = name;
    this.height = height ?? context.spec.height ?? 300;
    this.streams = new Streams();
    this.follow = true;
    this.wrap = true;
    this.behind = 0;
    this.behindSkipped = 0;
    this.head = UNKNOWN;
    this.offset = 0; // the kernel's clock against this one
    this.typing = false;
    this.gone = false;
    /** @type {Terminal | undefined} */
    this.term = undefined; // until it is loaded, and what belongs to it
    /** @type {FitAddon | undefined} */
    this.fit = undefined;
    /** @type {SearchAddon | undefined} */
    this.finder = undefined;
    /** @type {Gutter | undefined} */
    this.gutter = undefined;
    /** @type {((term: Terminal) => void)[]} */
    this.pending = []; // for when it is
    /** @type {{out: Segments, skip?: number, buffers: Bytes[]}[]} */
    this.held = []; // output until its turn to be drawn
    /** @type {number | undefined} */
    this.paged = undefined; // where the page of the log begins that is shown instead of what is new
    /** @type {Stream} */
    this.pagedOf = "stdout";
    this.match = -1; // which one the search is at
    this.ownHeight = "";
    this.toldSize = "";
    this.dot = h("i.nb-dot", { "aria-hidden": "true" });
    this.title = h("b", {});
    this.command = h("code.nb-cmd", {});
    this.facts = h("span.nb-facts", {});
    this.find = h("input.nb-input.nb-find", {
      type: "search",
      placeholder: t("pane.search"),
      "aria-label": t("pane.searchInTheOutput"),
      spellcheck: "false",
      oninput: () => this.search(1, true),
      onkeydown: (event) => {
        if (event.key === "Enter") this.search(event.shiftKey ? -1 : 1);
        else if (event.key === "Escape") this.endSearch();
        else return;
        event.preventDefault();
        event.stopPropagation(); // shift+enter would run the cell
      },
    });
    this.matches = h(
      "span.nb-matches",
      {},
      button("up", t("pane.previousMatch"), () => this.search(-1)),
      button("down", t("pane.nextMatch"), () => this.search(1)),
    );
    this.found = h("span.nb-found", { "aria-live": "polite" });
    this.followButton = button("follow", t("pane.followTheOutput"), () => this.setFollow(!this.follow), { "aria-pressed": "true" });
    this.wrapButton = button("wrap", t("pane.wrapLongLines"), () => this.setWrap(!this.wrap), { "aria-pressed": "true" });
    this.stopButton = button("stop", t("pane.stopTheProcess"), () => this.call("stop"));
    this.stopButton.classList.add("nb-danger");
    this.earlier = button("earlier", t("pane.earlierOutput"), () => this.pageBack());
    this.typeButton = button("keyboard", t("pane.typeIntoTheProgramShift"), () => this.setTyping(!this.typing), { "aria-pressed": "false", hidden: true });
    this.bellButton = button("bell", t("bell.off"), () => this.call("bell", { on: !this.head.told }), { "aria-pressed": "false" });
    this.bar = h(
      "div.nb-bar.nb-pane-bar",
      {},
      h("span.nb-who", {}, this.dot, this.title, this.command),
      this.facts,
      h(
        "span.nb-tools",
        { role: "toolbar", "aria-label": t("pane.output") },
        this.find,
        this.found,
        this.matches,
        this.earlier,
        this.wrapButton,
        this.followButton,
        this.typeButton,
        this.menu(),
        this.bellButton,
        button("download", t("pane.downloadTheWholeLog"), () => this.download()),
        this.stopButton,
        onclose && button("close", t("pane.close"), onclose),
      ),
    );
    this.screen = h("div.nb-screen", { role: "log", "aria-label": t("pane.processOutput") });
    this.setHeight(FEWEST * 16 + 8);
    this.note = h("button.nb-note", { type: "button", hidden: true, onclick: () => this.setFollow(true) }, t("pane.newOutputBelow"));
    this.input = h("input.nb-input", {
      type: "text",
      "aria-label": t("pane.sendALineToThe"),
      placeholder: t("pane.stdinALineEnterSends"),
      autocomplete: "off",
      spellcheck: "false",
      onkeydown: (event) => this.inputKey(event),
    });
    this.stdin = h(
      "div.nb-stdin",
      { hidden: true },
      h("span", { "aria-hidden": "true" }, "›"),
      this.input,
      h("button.nb-button.nb-text", { type: "button", onclick: () => this.call("close_stdin"), title: t("pane.closeStdinEndOfInput") }, t("pane.eof")),
    );
    /** @type {string[]} */
    this.sent = [];
    this.sentAt = 0;
    this.root = h(
      "section.nb-pane",
      { role: "group", "aria-label": t("pane.outputPane") },
      this.bar,
      h("div.nb-frame", {}, this.screen, this.note),
      this.stdin,
    );
    this.timer = setInterval(() => this.root.isConnected && this.drawFacts(), 1000);
    this.load();
  }

  menu() {
    /** @type {Record<string, () => unknown>} */
    const acts = {
      [t("pane.copyTheOutput")]: () => this.copied(this.text()),
      [t("pane.copyTheCommand")]: () => this.copied(this.head.cmd),
      [t("pane.copyTheSameInPython")]: () => (this.head.py ? this.copied(this.head.py) : this.context.notice(t("pane.theCommandHoldsASecret"))),
      [t("pane.showOrHideTimes")]: () => this.gutter?.toggle(),
      [t("pane.forScreenReaders")]: () => this.term && (this.term.options.screenReaderMode = !this.term.options.screenReaderMode),
    };
    return h(
      "select.nb-input.nb-menu",
      {
        "aria-label": t("pane.more"),
        title: t("pane.more"),
        onchange: ({ currentTarget: menu }) => {
          const act = acts[menu.value];
          menu.value = "";
          act?.();
        },
      },
      h("option", { value: "" }, "⋯"),
      ...Object.keys(acts).map((name) => h("option", { value: name }, name)),
    );
  }

  /** @param {string} text */
  async copied(text) {
    this.context.notice((await copy(text)) ? t("pane.copied") : t("pane.thisPageMayNotUse"));
  }

  /** What the terminal holds, wrapped lines joined. */
  text() {
    const buffer = this.term?.buffer.active;
    let text = "";
    for (let i = 0; i < (buffer?.length ?? 0); i++) {
      const line = buffer?.getLine(i);
      text += (i && !line?.isWrapped ? "\n" : "") + (line?.translateToString(true) ?? "");
    }
    return `${text.trimEnd()}\n`;
  }

  // -- height: grows with the content up to the most, until a hand drags the edge

  /** @param {number} pixels */
  setHeight(pixels) {
    this.ownHeight = `${Math.round(pixels)}px`;
    this.screen.style.height = this.ownHeight;
  }

  grow() {
    if (!this.term || this.screen.style.height !== this.ownHeight || parseFloat(this.ownHeight) >= this.height) return; // or a hand has set it
    const { active } = this.term.buffer;
    const row = this.gutter?.rowHeight() || 16;
    const lines = this.head.pty && this.head.took === null ? Infinity : active.baseY + active.cursorY + 1;
    const wanted = Math.min(this.height, lines * row + 8);
    if (wanted > parseFloat(this.ownHeight) + 1) this.setHeight(wanted);
  }

  async load() {
    try {
      const modules = await asset(this.context.connection, "terminal");
      if (!this.gone) this.open(modules);
    } catch (error) {
      this.screen.append(h("div.nb-empty", {}, t("pane.failed", { why: reason(error) })));
    }
  }

  /** @param {Modules} modules */
  open({ Terminal, FitAddon, SearchAddon }) {
    const term = new Terminal({
      convertEol: !this.head.pty,
      disableStdin: true,
      scrollback: SCROLLBACK,
      fontFamily: "var(--jp-code-font-family, ui-monospace, SFMono-Regular, Menlo, monospace)",
      fontSize: 12,
      lineHeight: 1.2,
      cursorStyle: "bar",
      cursorInactiveStyle: "none",
      screenReaderMode: false,
      allowProposedApi: true,
      theme: colours(this.root),
      minimumContrastRatio: 4.5,
      linkHandler: null,
    });
    const font = getComputedStyle(this.root).getPropertyValue("--jp-code-font-family").trim();
    term.options.fontFamily = font || "ui-monospace, SFMono-Regular, Menlo, monospace";
    guard(term, () => this.head.pty);
    this.fit = new FitAddon();
    this.finder = new SearchAddon({ highlightLimit: 500 });
    term.loadAddon(this.fit);
    term.loadAddon(this.finder);
    this.finder.onDidChangeResults(({ resultIndex, resultCount }) => {
      this.match = resultIndex;
      say(this.found, this.find.value ? (resultCount ? `${resultIndex + 1}/${resultCount}` : t("pane.noneHereSearchesTheLog")) : "");
    });
    term.open(this.screen);
    term.attachCustomKeyEventHandler((event) => this.terminalKey(term, event));
    term.onScroll(() => this.scrolled());
    term.onData((text) => this.typing && this.call("send", { text, newline: false }));
    term.registerLinkProvider(links(term, this));
    this.gutter = new Gutter(term, this.screen);
    this.screen.addEventListener("wheel", () => requestAnimationFrame(() => this.scrolled(true)), { passive: true });
    this.term = term;
    this.resized = () => this.refit();
    this.observer = new ResizeObserver(this.resized);
    this.observer.observe(this.screen);
    this.themes = new MutationObserver(() => (term.options.theme = colours(this.root)));
    this.themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"] });
    this.refit();
    const waiting = this.pending;
    this.pending = [];
    for (const apply of waiting) apply(term);
  }

  refit() {
    if (!this.term || !this.screen.clientWidth) return;
    const size = this.fit?.proposeDimensions();
    if (!size?.cols || !size.rows) return;
    const cols = this.wrap ? Math.max(20, size.cols) : WIDE;
    if (cols !== this.term.cols || size.rows !== this.term.rows) this.term.resize(cols, Math.max(2, size.rows));
    if (this.follow) this.term.scrollToBottom();
    this.tellSize(this.term);
  }

  /**
   * A program on a pseudo-terminal is told how large it is.
   * @param {{rows: number, cols: number}} size
   */
  tellSize({ rows, cols }) {
    if (!this.head.pty || this.head.took !== null || !this.wrap || this.toldSize === `${rows}x${cols}`) return;
    this.toldSize = `${rows}x${cols}`;
    clearTimeout(this.sizing);
    this.sizing = setTimeout(() => this.call("resize", { rows, columns: cols }), 150);
  }

  /**
   * Keys go to the program: for editors, pagers, prompts.
   * @param {boolean} on
   */
  setTyping(on) {
    this.typing = on && this.head.pty && this.head.took === null;
    set(this.typeButton, { "aria-pressed": String(this.typing) });
    set(this.screen, { "data-lm-suppress-shortcuts": this.typing ? "true" : null, "data-typing": this.typing });
    if (!this.term) return;
    this.term.options.disableStdin = !this.typing;
    if (this.typing) this.term.focus();
  }

  /** @param {(term: Terminal) => void} apply */
  whenOpen(apply) {
    if (this.term) apply(this.term);
    else this.pending.push(apply);
  }

  // -- what the kernel tells

  /**
   * @param {{head: Head, now: number, out: Segments, more: boolean, ends: Record<Stream, number>}} content
   * @param {Bytes[]} buffers
   */
  snapshot(content, buffers) {
    this.offset = content.now - Date.now() / 1000;
    this.earlier.disabled = !content.more;
    this.ends = content.ends;
    this.setHead(content.head);
    this.held = []; // what came before is in the snapshot
    this.pending = [];
    this.whenOpen((term) => {
      term.reset();
      this.streams = new Streams();
      if (content.more) term.write(`\x1b[2m… ${t("pane.earlier")}\x1b[22m\r\n`);
      this.gutter?.reset();
      this.write(term, content.out, buffers, true);
      this.setFollow(true);
      term.write("", () => {
        if (term.buffer.active.type !== "alternate" || this.head.took !== null) return;
        this.call("resize", { rows: term.rows - 1, columns: term.cols }); // a full-screen program paints itself anew when its size changes
        this.toldSize = "";
        this.tellSize(term);
      });
    });
  }

  /**
   * @param {{head?: Head, out?: Segments, skip?: number}} content
   * @param {Bytes[]} buffers
   */
  delta(content, buffers) {
    if (content.head) this.setHead(content.head);
    if (!content.out) return;
    this.held.push({ out: content.out, skip: content.skip, buffers });
    this.whenOpen(() => turns.want(this));
  }

  /** It is this pane's turn to draw what came. */
  flush() {
    const { held, term } = this;
    if (!term) return;
    this.held = [];
    if (held.length && this.paged !== undefined) return this.offerNew();
    for (const { out, skip, buffers } of held) {
      if (skip) this.mark(term, t("pane.skipped", { size: bytes(skip) }));
      this.write(term, out, buffers);
    }
  }

  /**
   * @param {Terminal} term
   * @param {string} text
   */
  mark(term, text) {
    term.write(`${term.buffer.active.cursorX ? "\r\n" : ""}\x1b[0;2m… ${text}\x1b[0m\r\n`);
  }

  /**
   * @param {Terminal} term
   * @param {Segments} segments
   * @param {Bytes[]} buffers
   * @param {boolean} old written before this page looked
   */
  write(term, segments, buffers, old = false) {
    const data = buffers.length ? octets(buffers[0]) : new Uint8Array();
    let at = 0;
    for (const [stream, size, lost] of segments) {
      if (lost) this.mark(term, t("pane.lost", { size: bytes(lost) }));
      const chunk = data.subarray(at, at + size);
      at += size;
      if (this.behind > QUEUE) {
        this.behindSkipped += size;
        continue;
      }
      if (this.behindSkipped) {
        this.mark(term, t("pane.behind", { size: bytes(this.behindSkipped) }));
        this.behindSkipped = 0;
      }
      this.behind += size;
      term.write(this.streams.text(stream, chunk), () => {
        this.behind -= size;
        this.gutter?.wrote(stream, old);
        this.grow();
        if (!this.follow) this.offerNew();
      });
    }
  }

  /** @param {Head} head */
  setHead(head) {
    this.head = head;
    this.dot.dataset.status = head.status;
    say(this.title, head.name);
    say(this.command, short(head.cmd));
    this.command.title = head.cmd;
    this.stdin.hidden = !head.stdin;
    this.stopButton.disabled = head.took !== null;
    this.bellButton.disabled = head.took !== null;
    set(this.bellButton, { "aria-pressed": String(Boolean(head.told)), title: t(head.told ? "bell.on" : "bell.off") });
    this.typeButton.hidden = !head.pty || !head.stdin;
    if (this.typing && head.took !== null) {
      this.setTyping(false);
      this.term?.blur(); // keys that come late go nowhere: neither to the notebook's commands nor, as text being typed, in the way of the record
    }
    if (this.term) this.term.options.convertEol = !head.pty;
    this.grow();
    if (this.term && this.screen.clientWidth) this.tellSize(this.term); // the terminal may have been there before it was known to be on one
    this.drawFacts();
  }

  drawFacts() {
    const { head } = this;
    if (!head.status) return;
    const live = head.took === null;
    const time = head.took === null ? clock(Date.now() / 1000 + this.offset - head.start) : seconds(head.took);
    const facts = [
      head.status,
      head.end,
      live && head.pid ? t("pane.pid", head) : "",
      time,
      head.dropped ? t("pane.dropped", { size: bytes(head.dropped) }) : "",
    ];
    say(this.facts, facts.filter(Boolean).join(" · "));
  }

  // -- following

  scrolled(byHand = false) {
    if (!this.term) return;
    const { viewportY, baseY } = this.term.buffer.active;
    if (viewportY >= baseY) {
      if (byHand && !this.follow && this.paged === undefined) this.setFollow(true);
      this.note.hidden = this.follow || this.note.hidden;
    } else if (byHand) this.setFollow(false);
  }

  /** @param {boolean} on */
  setFollow(on) {
    this.follow = on;
    set(this.followButton, { "aria-pressed": String(on) });
    if (!on) return;
    this.note.hidden = true;
    if (this.paged !== undefined) {
      this.paged = undefined;
      this.context.refresh(this.part);
      return;
    }
    this.term?.scrollToBottom();
  }

  offerNew() {
    this.note.hidden = false;
  }

  /** @param {boolean} on */
  setWrap(on) {
    this.wrap = on;
    set(this.wrapButton, { "aria-pressed": String(on) });
    this.screen.classList.toggle("nb-wide", !on);
    this.refit();
  }

  /** The kernel is gone. A closed manager's output can still be read, paged and searched. */
  close() {
    this.stdin.hidden = true;
    this.stopButton.disabled = this.bellButton.disabled = true;
  }

  /**
   * False: not for xterm.
   * @param {Terminal} term
   * @param {KeyboardEvent} event
   */
  terminalKey(term, event) {
    if (this.typing && event.key === "Escape" && event.shiftKey) {
      if (event.type === "keydown") this.setTyping(false);
      return false;
    }
    if (event.type !== "keydown") return true;
    if ((event.ctrlKey || event.metaKey) && event.key === "c" && term.hasSelection()) {
      event.stopPropagation(); // the browser's own copy follows, which xterm answers with its selection
      return false;
    }
    if (this.typing) return true;
    if ((event.ctrlKey || event.metaKey) && event.key === "f") {
      event.preventDefault();
      event.stopPropagation();
      this.find.focus();
      return false;
    }
    if (event.ctrlKey || event.metaKey) return false; // the notebook's: Ctrl+S saves it, also from here
    /** @type {Record<string, number>} */
    const moves = { PageUp: -term.rows, PageDown: term.rows, ArrowUp: -1, ArrowDown: 1 };
    if (event.key in moves) {
      term.scrollLines(moves[event.key]);
      requestAnimationFrame(() => this.scrolled(true));
    } else if (event.key === "Home") {
      this.setFollow(false);
      term.scrollToTop();
    } else if (event.key === "End") this.setFollow(true);
    else return true;
    event.preventDefault();
    event.stopPropagation();
    return false;
  }

  // -- searching

  /**
   * @param {number} direction
   * @param {boolean} incremental
   */
  search(direction, incremental = false) {
    const { finder } = this;
    if (!finder) return;
    const text = this.find.value;
    this.root.classList.toggle("nb-searching", Boolean(text));
    if (!text) return this.endSearch();
    this.setFollow(false);
    const options = searchOptions(text, incremental);
    // On a page that the log was searched for, "previous" of its first match is the next page's affair.
    const further = direction < 0 && this.paged !== undefined && this.match === 0;
    const hit = !further && (incremental || direction < 0 ? finder.findPrevious(text, options) : finder.findNext(text, options));
    if (!hit && !incremental) this.searchLog(text, further ? this.paged : undefined);
  }

  /**
   * What the terminal does not hold, the log may: show the page of the last match before a position.
   * @param {string} text
   * @param {number} [before]
   */
  async searchLog(text, before) {
    try {
      for (const stream of before === undefined ? STREAMS : [this.pagedOf]) {
        const args = { stream, text, exact: exactly(text), ...(before === undefined ? {} : { before }) };
        const { data, buffers } = await this.context.connection.call(this.part, "find", args);
        if (this.gone || this.find.value !== text) return;
        if (buffers.length) {
          this.showPage(stream, data, buffers, () => this.finder?.findPrevious(text, searchOptions(text, false)));
          return;
        }
      }
      say(this.found, before === undefined ? t("pane.notInTheLog") : t("pane.noEarlierMatch"));
    } catch (error) {
      this.context.notice(reason(error), "error");
    }
  }

  endSearch() {
    this.root.classList.remove("nb-searching");
    this.find.value = "";
    say(this.found, "");
    this.finder?.clearDecorations();
    this.term?.clearSelection();
    this.setFollow(true);
  }

  // -- the log

  async pageBack() {
    /** @type {Stream} */
    const stream = this.paged === undefined ? (this.ends?.stdout ? "stdout" : "stderr") : this.pagedOf;
    const before = this.paged ?? Math.max(0, (this.ends?.[stream] ?? 0) - 256_000);
    try {
      const { data, buffers } = await this.context.connection.call(this.part, "page", { stream, before });
      if (!buffers.length || data.at >= data.end) return this.context.notice(t("pane.thisIsTheBeginningOf"));
      this.showPage(stream, data, buffers);
    } catch (error) {
      this.context.notice(reason(error), "error");
    }
  }

  /**
   * @param {Stream} stream
   * @param {Page} data
   * @param {Bytes[]} buffers
   * @param {() => void} [then]
   */
  showPage(stream, data, buffers, then) {
    const { term } = this;
    if (!term) return;
    this.setFollow(false);
    this.paged = data.at;
    this.pagedOf = stream;
    term.reset();
    this.streams = new Streams();
    this.mark(term, t("pane.page", { from: data.at.toLocaleString(), to: data.end.toLocaleString(), stream }));
    term.write(this.streams.text(stream, octets(buffers[0])), then);
  }

  async download() {
    try {
      for (const stream of STREAMS) {
        const parts = [];
        let position = 0;
        for (;;) {
          const { data, buffers } = await this.context.connection.call(this.part, "file", { stream, position });
          if (buffers.length) parts.push(octets(buffers[0]));
          position = data.next;
          if (position >= data.end || !buffers.length) break;
        }
        if (stream === "stderr" && !parts.some((part) => part.byteLength)) continue;
        const name = `${this.head.name.replace(/[^\w.-]+/g, "_")}.${stream}.log`;
        const url = URL.createObjectURL(new Blob(parts, { type: "text/plain" }));
        const link = h("a", { href: url, download: name });
        link.click();
        setTimeout(() => URL.revokeObjectURL(url), 10_000);
      }
    } catch (error) {
      this.context.notice(reason(error), "error");
    }
  }

  /** @param {KeyboardEvent} event */
  inputKey(event) {
    if (event.key === "Enter") {
      const text = this.input.value;
      this.input.value = "";
      if (text) this.sent.push(text);
      this.sentAt = this.sent.length;
      this.call("send", { text });
    } else if (event.key === "ArrowUp" && this.sentAt > 0) this.input.value = this.sent[--this.sentAt];
    else if (event.key === "ArrowDown" && this.sentAt < this.sent.length) this.input.value = this.sent[++this.sentAt] ?? "";
    else if (event.key === "d" && event.ctrlKey) this.call("close_stdin");
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /**
   * @param {string} op
   * @param {Record<string, unknown>} args
   */
  async call(op, args = {}) {
    try {
      await this.context.connection.call(this.part, op, args);
    } catch (error) {
      this.context.notice(reason(error), "error");
    }
  }

  destroy() {
    this.gone = true;
    turns.forget(this);
    clearInterval(this.timer);
    clearTimeout(this.sizing);
    this.gutter?.destroy();
    this.observer?.disconnect();
    this.themes?.disconnect();
    this.term?.dispose();
  }
}

/**
 * Upper case in what is searched for means that case matters.
 * @param {string} text
 */
function exactly(text) {
  return text !== text.toLowerCase();
}

/**
 * @param {string} text
 * @param {boolean} incremental
 * @returns {ISearchOptions}
 */
function searchOptions(text, incremental) {
  const decorations = { matchBackground: "#f2cc60", matchOverviewRuler: "#f2cc60", activeMatchBackground: "#ff9632", activeMatchColorOverviewRuler: "#ff9632" };
  return { incremental, decorations, caseSensitive: exactly(text) };
}
