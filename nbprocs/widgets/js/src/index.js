// The one entry of all views: builds what the spec names, connects it, and survives being shown again.

import { button, h, say } from "./dom.js";
import { Pool, Queue } from "./boards.js";
import { Charts } from "./charts.js";
import { Form } from "./form.js";
import { Pane } from "./pane.js";
import { Connection } from "./protocol.js";
import { Table } from "./table.js";

const KINDS = { table: Table, pane: Pane, form: Form, charts: Charts, pool: Pool, queue: Queue };

class Root {
  constructor(model) {
    this.model = model;
    this.parts = new Map();
    this.spec = model.get("spec");
    this.connection = new Connection(model, {
      snapshot: (part, content, buffers) => this.parts.get(part)?.snapshot(content, buffers),
      delta: (part, content, buffers) => this.parts.get(part)?.delta(content, buffers),
      gone: (text) => this.notice(text, "error"),
      state: (text) => this.state(text),
    });
    this.text = h("span", {});
    this.bar = h("div.nb-notice", { hidden: true, role: "status", "aria-live": "polite" }, this.text, button("close", "Dismiss", () => this.notice("")));
    this.node = h("div.nb-view", { "data-jp-suppress-context-menu": "true", onkeydown: keepPlainKeys });
    if (this.spec.arranged) this.node.classList.add(`nb-${this.spec.arranged}`);
    const context = {
      connection: this.connection,
      spec: this.spec,
      notice: (text, kind) => this.notice(text, kind),
      mount: (name, part) => this.mount(name, part),
      unmount: (name) => this.parts.delete(name),
      refresh: (name) => this.refresh(name),
    };
    for (const { name, kind } of this.spec.parts) {
      const part = new KINDS[kind](context, name);
      this.parts.set(name, part);
      this.node.append(h("div.nb-section", {}, part.root));
    }
    this.node.append(this.bar);
    this.node.addEventListener("focusin", (event) => this.focused(event.target));
    this.node.addEventListener("focusout", (event) => this.node.isConnected && !this.node.contains(event.relatedTarget) && this.focused(null));
    this.lost = () => this.state("The kernel that this view belongs to is gone. Run the cell again.");
    model.on("comm_live_update", this.lost);
    this.connection.hello();
  }

  /** The kernel writes no record while somebody types here: that would make the notebook render this output anew. */
  focused(node) {
    if (Boolean(node) !== Boolean(this.focus)) this.connection.call("view", "focus", { on: Boolean(node), view: this.connection.view }).catch(() => {});
    this.focus = node;
  }

  mount(name, part) {
    this.parts.set(name, part);
    this.refresh(name);
  }

  refresh(name) {
    this.connection.call("view", "snapshot", { part: name, view: this.connection.view }).catch((error) => this.notice(error.message, "error"));
  }

  notice(text, kind = "info") {
    clearTimeout(this.noticeTimer);
    this.bar.hidden = !text;
    this.bar.dataset.kind = kind;
    say(this.text, text);
    if (text && kind !== "error") this.noticeTimer = setTimeout(() => this.notice(""), 4000);
  }

  state(text) {
    this.node.classList.toggle("nb-stale", Boolean(text));
    if (text || this.stateShown) this.notice(text, "error"); // stays until it is over
    this.stateShown = Boolean(text);
  }

  destroy() {
    this.model.off("comm_live_update", this.lost);
    this.connection.bye();
    for (const part of this.parts.values()) part.destroy();
    this.node.remove();
  }
}

// When the kernel updates an output (to keep its static record current), the notebook makes a new view and forgets the old one, whose
// element it has taken out. The new one takes the old one's content over: scroll position, selection and typed text stay.
const orphans = (globalThis.__nbprocs_roots ??= new Map());

function whenPlaced(holder, then, tries = 600) {
  const { el } = holder;
  requestAnimationFrame(() => {
    if (!el.parentNode) return tries && whenPlaced(holder, then, tries - 1);
    holder.placed = true;
    holder.end = keepHeight(el);
    then();
  });
}

/** The output around the view stays as high as the view while it is rendered anew: what is below must not jump. */
function keepHeight(el) {
  const frame = el.parentNode;
  if (!globalThis.ResizeObserver || !frame.style) return () => {};
  const observer = new ResizeObserver(() => el.isConnected && el.offsetHeight && (frame.style.minHeight = `${el.offsetHeight}px`));
  observer.observe(el);
  return () => {
    observer.disconnect();
    frame.style.minHeight = "";
  };
}

/** Keys without Ctrl or the like are for the view alone, or "x" would cut the cell around it; Ctrl+S still saves the notebook. */
function keepPlainKeys(event) {
  const runs = event.key === "Enter" && event.shiftKey;
  if (!event.ctrlKey && !event.metaKey && !event.altKey && !runs) event.stopPropagation();
}

function render({ model, el }) {
  const key = model.get("spec").uid;
  const known = orphans.get(key) ?? new Set();
  orphans.set(key, known);
  const orphan = [...known].find((one) => one.placed && one.el.parentNode === null);
  known.delete(orphan);
  const holder = { root: orphan?.root ?? new Root(model), el, placed: false };
  holder.root.holder = holder;
  known.add(holder);
  el.append(holder.root.node);
  el.classList.add("nb-el");
  whenPlaced(holder, () => orphan && holder.root.focus?.focus?.({ preventScroll: true }));
  return () => {
    known.delete(holder);
    holder.end?.();
    if (holder.root.holder === holder) holder.root.destroy();
  };
}

export default { render };
