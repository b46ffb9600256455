// A tab with the output of one process: a read-only terminal. A detached process's log comes from its shim, any other's from its kernel.
import { Widget } from "@lumino/widgets";
import { openComm } from "./comm.js";
import { TEXTS } from "./texts.js";

/** @typedef {import("./rows.js").Process} Process */

const AGAIN = 500; // ms between two looks at the log of a live detached process
const COMM = "nbprocs.panel";

export class OutputTab extends Widget {
  /** @param {Process} row @param {(tab: OutputTab) => () => void} source starts the flow, returns what ends it */
  constructor(row, source) {
    super();
    this.row = row;
    this.source = source;
    this.addClass("nbprocs-output");
    this.title.label = TEXTS.outputOf(row.name);
    this.title.closable = true;
    this.note = document.createElement("div");
    this.note.className = "nbprocs-output-note";
    this.note.setAttribute("role", "status");
    this.host = document.createElement("div");
    this.host.style.height = "calc(100% - 1.6em)";
    this.node.append(this.note, this.host);
    this.end = () => {};
  }

  /** @param {import("@lumino/messaging").Message} message */
  onAfterAttach(message) {
    super.onAfterAttach(message);
    void this.begin();
  }

  async begin() {
    if (this.terminal) return;
    const { Terminal, FitAddon, css } = await import("./terminal.js");
    if (this.isDisposed) return;
    const style = document.createElement("style");
    style.textContent = css;
    this.node.append(style);
    const colours = getComputedStyle(this.node);
    this.terminal = new Terminal({
      convertEol: true,
      disableStdin: true,
      scrollback: 100000,
      screenReaderMode: true,
      fontSize: 13,
      theme: {
        background: colours.getPropertyValue("--jp-layout-color0").trim(),
        foreground: colours.getPropertyValue("--jp-content-font-color1").trim(),
      },
    });
    this.fitting = new FitAddon();
    this.terminal.loadAddon(this.fitting);
    this.terminal.open(this.host);
    this.fitting.fit();
    this.end = this.source(this);
  }

  /** @param {Uint8Array} data */
  write(data) {
    this.note.textContent = "";
    this.terminal?.write(data);
  }

  /** @param {string} text */
  say(text) {
    this.note.textContent = text;
  }

  onResize() {
    if (this.isVisible) this.fitting?.fit();
  }

  dispose() {
    if (this.isDisposed) return;
    this.end();
    this.terminal?.dispose();
    super.dispose();
  }
}

/** The log of a detached process, from its first byte. @param {import("./model.js").Processes} processes @param {OutputTab} tab */
export function fromShim(processes, tab) {
  let offset = 0;
  let over = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  const look = async () => {
    try {
      const query = new URLSearchParams({ socket: tab.row.socket, id: tab.row.id, offset: String(offset) });
      const answer = await processes.request(`output?${query}`);
      if (over) return;
      if (answer.ok === false) throw new Error(answer.error);
      const data = Uint8Array.from(atob(answer.data), (c) => c.charCodeAt(0));
      tab.write(data);
      offset = answer.offset + data.length;
      if (answer.ended && offset >= answer.end) {
        tab.say(TEXTS.ended);
        return;
      }
      timer = setTimeout(() => void look(), offset < answer.end ? 0 : AGAIN);
    } catch (error) {
      if (over) return;
      tab.say(error instanceof Error ? error.message : String(error));
      timer = setTimeout(() => void look(), 4 * AGAIN); // a busy shim, a server that was away, a laptop that slept: the log is there when they are
    }
  };
  void look();
  return () => {
    over = true;
    clearTimeout(timer);
  };
}

/** What a kernel's own process wrote, told by that kernel. @param {import("@jupyterlab/services").Kernel.IKernelConnection} kernel @param {OutputTab} tab */
export function fromKernel(kernel, tab) {
  tab.say(TEXTS.busy);
  const over = new Set();
  return openComm(kernel, COMM, { op: "output", id: tab.row.id }, {
    heard: (content, buffers) => {
      if (content.ended) over.add(content.stream);
      for (const buffer of buffers) {
        tab.write(buffer instanceof ArrayBuffer ? new Uint8Array(buffer) : new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength));
      }
      tab.say(content.unknown ? TEXTS.unknown : over.size === 2 ? TEXTS.ended : "");
    },
    closed: () => {
      if (over.size < 2 && tab.note.textContent !== TEXTS.unknown) tab.say(TEXTS.kernelGone);
    },
  });
}
