// The one entry of all views. The hub's model fills the holes of all outputs; a view that is a widget of its own is rendered as such.

import { hub } from "./hub.js";
import { Root } from "./root.js";

/** @import {Model} from "./protocol.js" */

/** @param {{model: Model, signal?: AbortSignal}} view */
function initialize({ model, signal }) {
  if (model.get("role") === "hub") return hub(model, signal);
}

/** @param {{model: Model, el: HTMLElement}} view */
function render({ model, el }) {
  if (model.get("role") === "hub") return;
  const root = new Root(model);
  el.classList.add("nb-el");
  root.place(el);
  return () => root.destroy();
}

export default { initialize, render };
