// The spawn form. The kernel checks what is typed and says which line of Python does the same.

import { button, controls, h, icon, say, set } from "./dom.js";
import { CallFailed, reason } from "./protocol.js";
import { t } from "./texts.js";

const WAIT = 180; // ms after the last key before the kernel is asked

/** @type {Record<string, string>} */
const READY = { port: "8000", "log line": "Serving|ready", url: "http://localhost:8000/" }; // an example by kind

let ids = 0;

/** @import {Context} from "./root.js" */
/** @typedef {{get: () => string | boolean | Record<string, string>, error?: HTMLElement, input?: HTMLElement}} Field error: where its own is said */
/** @typedef {{text: string, kind?: string, note?: string}} Offer to complete what is typed */
/** @typedef {[name: string, label: string, help: string, kind: string]} Option of ProcessConfig; kind: "flag", or how its text is read */

export class Form {
  /**
   * @param {Context} context
   * @param {string} name of the part
   */
  constructor(context, name) {
    this.context = context;
    this.part = name;
    /** @type {string[]} */
    this.history = [];
    /** @type {number | null} */
    this.back = null; // position in the history while arrows go through it
    /** @type {Record<string, Field>} */
    this.fields = {};
    /** @type {Record<string, () => string>} */
    this.options = {}; // of ProcessConfig, as the kernel declares them: what is filled in
    /** @type {Set<{name: HTMLInputElement, value: HTMLInputElement}>} */
    this.variables = new Set();
    const id = `nb-form-${ids++}`;
    this.command = new Combo(
      id,
      t("form.command"),
      "python -m http.server 8000",
      (text) => this.offers("complete", { text, cwd: this.cwd.input.value }),
      () => this.changed(),
    );
    this.command.input.addEventListener("keydown", (event) => this.commandKey(event));
    this.cwd = new Combo(
      `${id}-cwd`,
      t("form.workingDirectory"),
      t("form.theKernelSOwn"),
      (text) => this.offers("folders", { text }),
      () => this.changed(),
    );
    /**
     * @param {string} key
     * @param {string} label
     * @param {string} placeholder
     * @param {Record<string, string>} attributes
     */
    const input = (key, label, placeholder, attributes = {}) => {
      const node = h("input.nb-input", {
        type: "text",
        id: `${id}-${key}`,
        placeholder,
        autocomplete: "off",
        spellcheck: "false",
        oninput: () => this.changed(),
        ...attributes,
      });
      return this.field(key, label, node, node.id);
    };
    /**
     * @param {string} key
     * @param {string} label
     * @param {string} title
     * @param {(on: boolean) => void} [then]
     */
    const check = (key, label, title, then) => {
      const node = h("input", { type: "checkbox", onchange: ({ currentTarget }) => (this.changed(), then?.(currentTarget.checked)) });
      this.fields[key] = { get: () => node.checked };
      return h("label.nb-check", { title }, node, label);
    };
    this.readyKind = h(
      "select.nb-input",
      { "aria-label": t("form.readyWhen"), onchange: () => this.readyChanged() },
      ...["", "port", "log line", "url"].map((v) => h("option", { value: v }, t(v ? `ready.${v.split(" ")[0]}` : "form.atOnce"))),
    );
    this.readyValue = h("input.nb-input", {
      type: "text",
      "aria-label": t("form.readyValue"),
      disabled: true,
      autocomplete: "off",
      spellcheck: "false",
      oninput: () => this.changed(),
    });
    this.fields.ready = { get: () => this.readyKind.value };
    this.fields.ready_value = { get: () => this.readyValue.value };
    this.envRows = h("div.nb-env");
    const error = h("span.nb-error", { role: "alert" });
    this.fields.env = { get: () => this.environment(), error };
    this.more = h(
      "div.nb-fields",
      {},
      input("name", t("form.name"), t("form.madeUpByItself")),
      this.field("cwd", t("form.workingDirectory"), this.cwd.root, this.cwd.input.id, this.cwd.input),
      input("timeout", t("form.timeoutSeconds"), t("form.none"), { inputmode: "decimal" }),
      this.field("ready", t("form.readyWhen"), h("span.nb-pair", {}, this.readyKind, this.readyValue), null, this.readyValue),
      h(
        "div.nb-field.nb-wide-field",
        { "data-field": "env" },
        h("span.nb-label", {}, t("form.environment")),
        this.envRows,
        button("plus", t("form.addAVariable"), () => this.addVariable(true), { shown: true }),
        error,
      ),
    );
    this.folded = h("details.nb-more", {}, h("summary", {}, t("form.options")), this.more);
    this.fields.options = { get: () => Object.fromEntries(Object.entries(this.options).map(([name, get]) => [name, get()])) };
    this.runButton = h("button.nb-button.nb-primary", { type: "submit" }, icon("play"), h("span", {}, t("form.start")));
    this.line = h("code.nb-line", {});
    this.python = "";
    this.copy = h("button.nb-button.nb-copy", { type: "button", title: t("form.copyThisLine"), onclick: () => this.copyLine() }, icon("copy"), this.line);
    this.shellNote = h("div.nb-shellnote", { hidden: true }, t("form.shellLineAndActAs"));
    this.root = h(
      "form.nb-form",
      { "aria-label": t("form.startAProcess"), novalidate: true, onsubmit: (event) => (event.preventDefault(), this.run()) },
      h("div.nb-bar.nb-form-main", {}, this.field("command", t("form.command"), this.command.root, this.command.input.id, this.command.input), this.runButton),
      h(
        "div.nb-checks",
        {},
        check("shell", t("form.shell"), t("form.runTheLineWithBin"), (on) => (this.shellNote.hidden = !on)),
        check("stdin", t("form.stdin"), t("form.keepItsStandardInputOpen")),
        check("pty", t("form.terminal"), t("form.giveItAPseudoTerminal")),
        check("detach", t("form.outliveTheKernel"), t("form.detachItItGoesOn")),
        check("restart", t("form.restartOnFailure"), t("form.startItAgainWithGrowing")),
        (this.said = h("span.nb-said", { role: "status" })),
      ),
      this.shellNote,
      this.folded,
      h("div.nb-same", {}, h("span.nb-label", {}, t("form.theSameInPython")), this.copy),
    );
    this.showLine("");
  }

  /**
   * A label, a control and a place for its error.
   * @param {string} key
   * @param {string} label
   * @param {HTMLElement} control
   * @param {string | null} forId
   * @param {HTMLElement} input
   */
  field(key, label, control, forId, input = control) {
    const error = h("span.nb-error", { role: "alert", id: `${forId ?? key}-error` });
    const root = h("div.nb-field", { "data-field": key }, h("label.nb-label", { for: forId }, label), control, error);
    set(input, { "aria-describedby": error.id });
    const get = this.fields[key]?.get ?? (() => (input instanceof HTMLInputElement ? input.value : ""));
    this.fields[key] = { get, error, input };
    return root;
  }

  /**
   * Fields for what ProcessConfig declares; its labels and its help are the kernel's.
   * @param {Option[]} options
   */
  declare(options) {
    for (const [name, label, help, kind] of options) {
      if (name in this.options) continue;
      const id = `${this.command.input.id}-${name}`;
      const node = h("input.nb-input", {
        type: kind === "flag" ? "checkbox" : "text",
        id,
        title: help,
        placeholder: help,
        autocomplete: "off",
        spellcheck: "false",
        oninput: () => this.changed(),
      });
      this.options[name] = () => (kind === "flag" ? (node.checked ? "true" : "") : node.value);
      this.more.append(this.field(name, label, node, id));
    }
  }

  values() {
    const own = Object.entries(this.fields).filter(([key]) => !(key in this.options));
    return Object.fromEntries(own.map(([key, field]) => [key, field.get()]));
  }

  // -- environment

  /** @param {boolean} focus */
  addVariable(focus) {
    const name = h("input.nb-input", {
      type: "text",
      placeholder: "NAME",
      "aria-label": t("form.variableName"),
      autocomplete: "off",
      spellcheck: "false",
      oninput: () => this.changed(),
    });
    // hidden until the kernel has said that such a name keeps no secret
    const value = h("input.nb-input", {
      type: "password",
      placeholder: t("form.value"),
      "aria-label": t("form.variableValue"),
      autocomplete: "off",
      spellcheck: "false",
      oninput: () => this.changed(),
    });
    const row = h("div.nb-envrow", {}, name, h("span", { "aria-hidden": "true" }, "="), value);
    const pair = { name, value };
    row.append(button("close", t("form.removeTheVariable"), () => (row.remove(), this.variables.delete(pair), this.changed())));
    this.variables.add(pair);
    this.envRows.append(row);
    if (focus) name.focus();
  }

  environment() {
    return Object.fromEntries([...this.variables].map(({ name, value }) => [name.value.trim(), value.value]).filter(([name]) => name));
  }

  /** @param {string[]} names */
  maskSecrets(names) {
    for (const { name, value } of this.variables) set(value, { type: names.includes(name.value.trim()) ? "password" : "text" });
  }

  readyChanged() {
    const kind = this.readyKind.value;
    this.readyValue.disabled = !kind;
    set(this.readyValue, { placeholder: READY[kind] ?? "" });
    this.changed();
  }

  // -- asking the kernel

  changed() {
    this.back = null;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.check(), WAIT);
  }

  async check() {
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const empty = !this.command.input.value.trim();
    if (empty) this.showErrors();
    if (empty) this.showLine("");
    if (empty && !Object.keys(this.environment()).length) return;
    try {
      const { data } = await this.context.connection.call(this.part, "check", this.values());
      if (turn !== this.turn) return; // typed on, or started meanwhile: that answer counts
      this.maskSecrets(data.secret);
      if (empty) return;
      this.showErrors(data.field, data.error);
      this.showLine(data.line ?? "");
    } catch (error) {
      this.showErrors("", reason(error));
    }
  }

  /** Nothing can be started any more. */
  close() {
    for (const node of controls(this.root)) node.disabled = true;
  }

  /**
   * A word beside the switches: over the line of Python it would hide what it speaks of.
   * @param {string} text
   */
  tell(text) {
    clearTimeout(this.told);
    say(this.said, text);
    this.told = setTimeout(() => say(this.said, ""), 6000);
  }

  /** @param {string} line */
  showLine(line) {
    this.python = line;
    say(this.line, line || t("form.procAwaitPmSpawn"));
    this.copy.disabled = !line;
  }

  showErrors(field = "", text = "") {
    for (const [key, { error, input }] of Object.entries(this.fields)) {
      if (!error) continue;
      say(error, key === field ? text : "");
      if (input) set(input, { "aria-invalid": key === field && text ? "true" : null });
    }
    if (field && !["command", "shell"].includes(field) && text) this.folded.open = true;
    if (text && !this.fields[field]?.error) this.context.notice(text, "error");
  }

  /**
   * @param {string} op
   * @param {Record<string, string>} args
   * @returns {Promise<Offer[]>}
   */
  async offers(op, args) {
    const { data } = await this.context.connection.call(this.part, op, args);
    return data;
  }

  async copyLine() {
    try {
      await navigator.clipboard.writeText(this.python);
      this.tell(t("form.copied"));
    } catch {
      getSelection()?.selectAllChildren(this.line);
      this.tell(t("form.selectedPressCtrlCTo"));
    }
  }

  async run() {
    if (this.busy) return;
    this.busy = true;
    this.turn = (this.turn ?? 0) + 1;
    clearTimeout(this.timer);
    this.command.close();
    set(this.runButton, { "aria-busy": "true", disabled: true });
    this.showErrors();
    try {
      const { data } = await this.context.connection.call(this.part, "run", this.values());
      this.tell(data.pid ? t("form.startedPid", data) : t("form.started", data));
    } catch (error) {
      const field = error instanceof CallFailed ? error.field : "";
      this.showErrors(field, reason(error));
      this.fields[field]?.input?.focus();
    } finally {
      this.busy = false;
      set(this.runButton, { "aria-busy": null, disabled: false });
    }
  }

  // -- history

  /** @param {KeyboardEvent} event */
  commandKey(event) {
    if (this.command.open || !["ArrowUp", "ArrowDown"].includes(event.key)) return;
    const step = event.key === "ArrowUp" ? -1 : 1;
    const at = (this.back ?? this.history.length) + step;
    if (at < 0 || at > this.history.length) return;
    this.command.input.value = this.history[at] ?? "";
    this.changed();
    this.back = at;
    event.preventDefault();
  }

  /** @param {{history: string[], options?: Option[], closed: boolean, cwd: string}} content */
  snapshot(content) {
    this.history = content.history;
    this.declare(content.options ?? []);
    if (content.closed) this.context.closed(t("form.theManagerIsClosedIt"));
    set(this.cwd.input, { placeholder: content.cwd });
  }

  /** @param {{"+"?: string[], closed?: boolean}} content */
  delta(content) {
    this.history = [...this.history, ...(content["+"] ?? [])];
    if (content.closed) this.context.closed(t("form.theManagerIsClosedIt"));
  }

  destroy() {
    clearTimeout(this.timer);
    clearTimeout(this.told);
    this.command.destroy();
    this.cwd.destroy();
  }
}

/** A text field with a list of completions below it (ARIA combobox). */
export class Combo {
  /**
   * @param {string} id
   * @param {string} label
   * @param {string} placeholder
   * @param {(text: string) => Promise<Offer[]>} ask
   * @param {() => void} changed
   */
  constructor(id, label, placeholder, ask, changed) {
    this.ask = ask;
    this.changed = changed;
    /** @type {Offer[]} */
    this.items = [];
    this.at = -1;
    this.open = false;
    this.turn = 0;
    this.list = h("ul.nb-offers", { role: "listbox", id: `${id}-list`, "aria-label": t("form.completions", { label }), hidden: true });
    this.input = h("input.nb-input.nb-mono", {
      type: "text",
      id: `${id}-input`,
      role: "combobox",
      placeholder,
      "aria-label": label,
      "aria-autocomplete": "list",
      "aria-expanded": "false",
      "aria-controls": this.list.id,
      autocomplete: "off",
      spellcheck: "false",
      oninput: () => this.typed(),
      onkeydown: (event) => this.key(event),
      onblur: () => setTimeout(() => this.close(), 120),
    });
    if ("popover" in HTMLElement.prototype) this.list.popover = "manual"; // the top layer: an output's own edge must not cut it off
    this.root = h("div.nb-combo", {}, this.input, this.list);
    // Only what moves the field: a terminal beside it scrolls with every line.
    this.away = (/** @type {Event} */ { target }) => (target === window || (target instanceof Node && target.contains(this.input))) && this.close();
  }

  typed() {
    this.changed();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.update(), WAIT);
  }

  async update() {
    const turn = ++this.turn;
    const text = this.input.value;
    if (!text) return this.close();
    const items = await this.ask(text).catch(() => /** @type {Offer[]} */ ([]));
    if (turn !== this.turn || document.activeElement !== this.input) return;
    this.show(items.filter((item) => item.text !== text));
  }

  /** @param {Offer[]} items */
  show(items) {
    this.items = items;
    this.at = -1;
    this.open = items.length > 0;
    this.list.hidden = !this.open;
    set(this.input, { "aria-expanded": String(this.open), "aria-activedescendant": null });
    if (this.open) this.float();
    else this.sink();
    this.list.replaceChildren(
      ...items.map((item, i) =>
        h(
          "li",
          { role: "option", id: `${this.list.id}-${i}`, "aria-selected": "false", onmousedown: (event) => (event.preventDefault(), this.choose(i)) },
          h("span.nb-offer", {}, item.text),
          h("span.nb-kind", {}, item.note || item.kind),
        ),
      ),
    );
  }

  /** Below the field, or above it where there is more room; it goes when anything scrolls. */
  float() {
    if (!this.list.popover) return;
    if (!this.list.matches(":popover-open")) this.list.showPopover();
    const { left, top, bottom, width } = this.input.getBoundingClientRect();
    const below = innerHeight - bottom - 8;
    const up = below < 120 && top > below;
    Object.assign(this.list.style, {
      left: `${left}px`,
      width: `${width}px`,
      top: up ? "auto" : `${bottom + 2}px`,
      bottom: up ? `${innerHeight - top + 2}px` : "auto",
      maxHeight: `${Math.min(240, up ? top - 8 : below)}px`,
    });
    addEventListener("scroll", this.away, true);
    addEventListener("resize", this.away);
  }

  sink() {
    removeEventListener("scroll", this.away, true);
    removeEventListener("resize", this.away);
    if (this.list.popover && this.list.isConnected && this.list.matches(":popover-open")) this.list.hidePopover();
  }

  /** @param {number} step */
  move(step) {
    this.at = (this.at + step + this.items.length) % this.items.length;
    const nodes = /** @type {HTMLElement[]} */ ([...this.list.children]);
    nodes.forEach((node, i) => set(node, { "aria-selected": String(i === this.at) }));
    const node = nodes[this.at];
    node.scrollIntoView?.({ block: "nearest" });
    set(this.input, { "aria-activedescendant": node.id });
  }

  /** @param {number} i */
  choose(i) {
    const { text, kind } = this.items[i];
    this.input.value = kind === "program" ? `${text} ` : text;
    this.close();
    this.changed();
    if (kind === "folder" || text.endsWith("/")) this.update();
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    if (event.key === "Escape" && this.open) this.close();
    else if (event.key === "ArrowDown" && this.open) this.move(1);
    else if (event.key === "ArrowUp" && this.open) this.move(-1);
    else if (event.key === "Enter" && this.open && this.at >= 0) this.choose(this.at);
    else if (event.key === "Tab" && this.open && !event.shiftKey) this.choose(Math.max(this.at, 0));
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  close() {
    this.turn++;
    this.open = false;
    this.list.hidden = true;
    this.sink();
    set(this.input, { "aria-expanded": "false", "aria-activedescendant": null });
  }

  destroy() {
    this.sink();
    clearTimeout(this.timer);
  }
}
