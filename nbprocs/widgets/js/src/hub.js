// The page's side of a kernel's hub: finds the holes that its views left in outputs, and puts a live element into each.
//
// An output is HTML: <div class="nb-hole nb-hole-UID"></div><div class="nb-rec-UID">the record</div>. Only when the hub answers is there a kernel that
// knows UID; then the record is hidden by a style rule and the hole filled. The notebook may render an output anew at any time (the kernel does so to
// keep the record current): the element is then put into the new hole in the same turn, so nothing is seen of it. One element an output: the same view
// may be in two outputs, or in two windows on one notebook.

import { h } from "./dom.js";
import { Root } from "./root.js";
import { t } from "./texts.js";

/** @import {Bytes, Channel, Listener, Model} from "./protocol.js" */
/** @import {Spec} from "./root.js" */
/** @typedef {{uid: string, root: Root, left?: number}} Shown by one output; left: since when it is out of the page */

const SWEEP = 5_000; // ms
const LEFT = 10_000; // ms out of the page, and an element is ended: its output was deleted

/** The line of one view, as its connection sees it. */
class Line {
  /**
   * @param {Channel} hub
   * @param {string} uid
   * @param {Spec} spec
   */
  constructor(hub, uid, spec) {
    this.hub = hub;
    this.uid = uid;
    this.spec = spec;
    /** @type {Set<Listener>} */
    this.listeners = new Set();
    this.up = false; // the kernel knows it
    /** @type {Root | undefined} */
    this.early = undefined; // said hello before the hub answered
  }

  get() {
    return this.spec;
  }

  /** @param {Record<string, unknown>} message */
  send(message) {
    this.hub.send({ ...message, v: this.uid });
  }

  /**
   * @param {string} event
   * @param {Listener} listener
   */
  on(event, listener) {
    if (event === "msg:custom") this.listeners.add(listener);
  }

  /**
   * @param {string} _event
   * @param {Listener} listener
   */
  off(_event, listener) {
    this.listeners.delete(listener);
  }

  /**
   * @param {unknown} message
   * @param {Bytes[]} buffers
   */
  hear(message, buffers) {
    for (const listener of [...this.listeners]) listener(message, buffers);
  }
}

/**
 * @param {Model} model
 * @param {AbortSignal} [signal]
 */
export function hub(model, signal) {
  /** @type {Map<string, Line>} */
  const lines = new Map(); // by uid, of what lives
  /** @type {Map<Element, Shown>} */
  const made = new Map(); // by output
  const holes = document.getElementsByClassName("nb-hole");
  const style = h("style", {});
  const observer = new MutationObserver((changes) => {
    if (!changes.every(({ target }) => target instanceof Element && target.closest(".nb-view"))) fit(); // a view has no holes, but changes all the time
  });

  /** The notebook was closed: its widget manager tells no model of it, and may be followed by another one in the same page. */
  function left() {
    const manager = model.widget_manager;
    return Boolean(manager?.isDisposed || manager?.context?.isDisposed);
  }

  /** @param {Element} hole */
  function uidOf(hole) {
    return [...hole.classList].find((name) => name.startsWith("nb-hole-"))?.slice(8) ?? "";
  }

  function fit() {
    if (left()) return down();
    for (const hole of [...holes]) {
      const line = lines.get(uidOf(hole));
      if (line?.up) fill(hole, line);
    }
  }

  /**
   * @param {Element} hole
   * @param {Line} line
   */
  function fill(hole, line) {
    const output = hole.closest(".jp-OutputArea-output") ?? hole.parentElement ?? hole;
    let one = made.get(output);
    if (!one || one.uid !== line.uid) {
      one?.root.destroy();
      one = { uid: line.uid, root: line.early ?? new Root(line) };
      line.early = undefined;
      made.set(output, one);
    }
    one.left = undefined;
    if (one.root.node.parentNode !== hole) one.root.place(hole);
  }

  function sweep() {
    if (left()) return down();
    for (const [output, one] of made) {
      if (one.root.node.isConnected) one.left = undefined;
      else if (Date.now() - (one.left ??= Date.now()) >= LEFT) end(output, one.root);
    }
  }

  /**
   * @param {Element} output
   * @param {Root} root
   * @param {string} say
   */
  function end(output, root, say = "") {
    const hole = root.node.parentNode;
    root.destroy();
    made.delete(output);
    if (say) hole?.replaceChildren(h("div.nb-gone", { role: "status" }, say));
  }

  function hide() {
    const records = [...lines.values()].filter((line) => line.up).map(({ uid }) => `.nb-rec-${uid}`);
    style.textContent = records.length ? `${records.join()}{display:none!important}` : "";
  }

  /**
   * @param {string} uid
   * @param {string} say
   */
  function close(uid, say) {
    lines.get(uid)?.early?.destroy();
    lines.delete(uid);
    hide();
    for (const [output, one] of [...made]) if (one.uid === uid) end(output, one.root, say);
  }

  /**
   * @param {string} uid
   * @param {Spec} spec
   */
  function known(uid, spec) {
    const line = lines.get(uid) ?? new Line(model, uid, spec);
    lines.set(uid, line);
    return line;
  }

  /**
   * @param {{views?: Record<string, Spec>, closed?: boolean, v?: string}} [message]
   * @param {Bytes[]} [buffers]
   */
  function receive(message, buffers) {
    const uid = message?.v ?? "";
    if (message?.views) {
      for (const [uid, spec] of Object.entries(message.views)) known(uid, spec).up = true;
      fit();
      hide();
    } else if (message?.closed) close(uid, t("hub.thisViewIsClosedBelow"));
    else lines.get(uid)?.hear(message, buffers ?? []);
  }

  function down() {
    model.off("msg:custom", receive);
    model.off("comm_live_update", down);
    observer.disconnect();
    clearInterval(timer);
    for (const uid of [...lines.keys()]) close(uid, t("hub.theKernelOfThisView"));
    style.remove();
  }

  document.head.append(style);
  observer.observe(document.body, { childList: true, subtree: true });
  const timer = setInterval(sweep, SWEEP);
  model.on("msg:custom", receive);
  model.on("comm_live_update", down);
  signal?.addEventListener("abort", down);
  model.send({ do: "hub" });
  const specs = model.get("specs") ?? {};
  for (const uid of new Set([...holes].map(uidOf))) {
    if (!specs[uid] || lines.get(uid)?.up) continue;
    const line = known(uid, specs[uid]); // says hello at once; it is shown when the hub has answered
    line.early = new Root(line);
  }
  globalThis.__nbprocs_made = made; // for tests, and for who looks into a page
  return down;
}
