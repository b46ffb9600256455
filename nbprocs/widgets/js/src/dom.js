// Small helpers around the DOM. Text only ever enters as text nodes or attributes: there is no innerHTML in these views.

const SVG = "http://www.w3.org/2000/svg";

/** @typedef {Node | string | false | null | undefined} Child of an element; what is not there is left out */
/**
 * @template {string} Name
 * @typedef {Name extends keyof HTMLElementTagNameMap ? HTMLElementTagNameMap[Name] : HTMLDivElement} Named
 */
/**
 * @template {string} Tag
 * @typedef {Named<Tag extends `${infer Name}.${string}` ? Name : Tag>} Made what h() makes of "name.class.class"
 */
/**
 * @template {Element} Of
 * @typedef {{[Type in keyof HTMLElementEventMap as `on${Type}`]?: (event: HTMLElementEventMap[Type] & {currentTarget: Of}) => unknown} &
 *   {style?: Partial<CSSStyleDeclaration>} & Record<string, unknown>} Props attributes and "on…" listeners; true is an empty attribute, false or null is none
 */

/**
 * An element: h("button.nb-x", {title, onclick, "aria-label": …}, "text", child, …).
 * @template {string} Tag
 * @param {Tag} tag
 * @param {Props<Made<Tag>>} props
 * @param {(Child | Child[])[]} children
 * @returns {Made<Tag>}
 */
export function h(tag, props = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const node = document.createElement(name || "div");
  if (classes.length) node.className = classes.join(" ");
  set(node, props);
  node.append(.../** @type {(Node | string)[]} */ (children.flat().filter((c) => c !== null && c !== undefined && c !== false)));
  return /** @type {Made<Tag>} */ (node);
}

/**
 * @template {keyof SVGElementTagNameMap} Name
 * @param {Name} name
 * @param {Record<string, string>} props
 * @param {Node[]} children
 */
export function svg(name, props = {}, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(props)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/**
 * @param {HTMLElement} node
 * @param {Record<string, unknown>} props
 */
export function set(node, props) {
  for (const [key, value] of Object.entries(props)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), /** @type {EventListener} */ (value));
    else if (key === "style") Object.assign(node.style, value);
    else if (value === true) node.setAttribute(key, "");
    else if (value === false || value === null || value === undefined) node.removeAttribute(key);
    else node.setAttribute(key, String(value));
  }
}

/**
 * Change a node's text only if it differs: an untouched node costs no layout.
 * @param {Node} node
 * @param {string} text
 */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * What can be disabled below an element.
 * @param {Element} root
 * @param {string} selector
 * @returns {NodeListOf<HTMLButtonElement | HTMLInputElement | HTMLSelectElement>}
 */
export const controls = (root, selector = "button, input, select") => root.querySelectorAll(selector);

/**
 * Put text on the clipboard; false where the page may not.
 * @param {string} text
 */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const focused = /** @type {HTMLElement | null} */ (document.activeElement);
    const area = h("textarea", { style: { position: "fixed", opacity: "0" } });
    area.value = text;
    document.body.append(area);
    area.focus();
    area.select();
    const done = document.execCommand?.("copy") ?? false; // where the page is not secure
    area.remove();
    focused?.focus(); // whoever types goes on typing
    return done;
  }
}

const ICONS = {
  keyboard: "M1.5 4.5h13v7h-13zM4 7h.01M6.7 7h.01M9.3 7h.01M12 7h.01M5 9.5h6",
  clear: "M2.5 4.5h11M2.5 8h6M2.5 11.5h4M10 9l4 4M14 9l-4 4",
  help: "M6 6a2 2 0 1 1 2.8 1.9c-.5.3-.8.6-.8 1.3M8 11.6v.2M14.2 8A6.2 6.2 0 1 1 1.8 8a6.2 6.2 0 0 1 12.4 0z",
  stop: "M4 4h8v8H4z",
  kill: "M4 4l8 8M12 4l-8 8",
  pause: "M5 3.5v9M11 3.5v9",
  resume: "M5 3l8 5-8 5z",
  restart: "M12.5 8a4.5 4.5 0 1 1-1.4-3.3M12.7 2.2v3.2H9.5",
  output: "M2 3h12v10H2zM4.5 6l2 2-2 2M8.5 10h3",
  search: "M10.2 10.2L14 14M11.5 7a4.5 4.5 0 1 1-9 0 4.5 4.5 0 0 1 9 0z",
  down: "M8 3v9M4 8.5L8 12.5l4-4",
  up: "M8 13V4M4 7.5L8 3.5l4 4",
  earlier: "M3 3h10M8 13.5V6M4.5 9.5L8 6l3.5 3.5",
  wrap: "M2 4h12M2 8h9.5a2 2 0 0 1 0 4H8M9.5 10.3L7.7 12l1.8 1.7M2 12h3",
  download: "M8 2.5v7M4.8 6.8L8 10l3.2-3.2M3 13h10",
  close: "M4 4l8 8M12 4l-8 8",
  copy: "M5.5 5.5h8v8h-8zM10.5 3h-8v8",
  play: "M5 3l8 5-8 5z",
  bell: "M8 2.2a3.7 3.7 0 0 0-3.7 3.7c0 3.3-1.3 4.3-1.3 5.3h10c0-1-1.3-2-1.3-5.3A3.7 3.7 0 0 0 8 2.2zM6.5 13.2a1.6 1.6 0 0 0 3 0",
  signal: "M9 1.5L3.5 9H8l-1 5.5L12.5 7H8z",
  follow: "M8 2v8M4.5 7L8 10.5 11.5 7M3 13.5h10",
  plus: "M8 3v10M3 8h10",
};
const FILLED = new Set(["stop", "resume", "play"]);

/** @typedef {keyof typeof ICONS} Icon */

/** @param {Icon} name */
export function icon(name) {
  return svg(
    "svg",
    { viewBox: "0 0 16 16", width: "14", height: "14", "aria-hidden": "true", class: FILLED.has(name) ? "nb-icon nb-filled" : "nb-icon" },
    svg("path", { d: ICONS[name] }),
  );
}

/**
 * A button with an icon; its label is read aloud and shown as a tooltip, or beside the icon with `shown`.
 * @param {Icon} name
 * @param {string} label
 * @param {(event: MouseEvent & {currentTarget: HTMLButtonElement}) => unknown} onclick
 * @param {{shown?: boolean} & Record<string, unknown>} more properties, and `shown`
 */
export function button(name, label, onclick, { shown = false, ...props } = {}) {
  return h("button.nb-button", { type: "button", title: label, "aria-label": label, onclick, ...props }, icon(name), shown && h("span", {}, label));
}

/** @param {number} value */
export function seconds(value) {
  if (!(value >= 0)) return "";
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 60) return `${value.toFixed(1)} s`;
  return clock(value);
}

/**
 * Whole seconds, for what counts up: a digit that changes ten times a second is noise.
 * @param {number} value
 */
export function clock(value) {
  const s = Math.max(0, Math.floor(value));
  const two = (/** @type {number} */ n) => String(n).padStart(2, "0");
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} m ${two(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${two(Math.floor(s / 60) % 60)} m`;
  return `${Math.floor(s / 86400)} d ${two(Math.floor(s / 3600) % 24)} h`;
}

/** @param {number} value */
export function bytes(value) {
  let v = value;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (v < 1024) return unit === "B" ? `${v} B` : `${v.toFixed(1)} ${unit}`;
    v /= 1024;
  }
  return `${v.toFixed(1)} TiB`;
}

/** @param {number} v */
export const mebibytes = (v) => (v >= 1024 ? `${(v / 1024).toFixed(1)} G` : `${v} M`);

/**
 * A polyline of the values, newest at the right edge.
 * @param {SVGPathElement} path
 * @param {number[]} values
 * @param {number} width
 * @param {number} height
 * @param {number} top the value at the upper edge
 */
export function sparkline(path, values, width, height, top, slots = 60) {
  if (values.length < 2) {
    path.setAttribute("d", "");
    return;
  }
  const step = width / (slots - 1);
  const x0 = width - (values.length - 1) * step;
  let d = "";
  for (let i = 0; i < values.length; i++) {
    const y = height - 1 - (height - 2) * Math.min(values[i] / top, 1);
    d += `${i ? "L" : "M"}${(x0 + i * step).toFixed(1)} ${y.toFixed(1)}`;
  }
  path.setAttribute("d", d);
}

/**
 * A command with its program by its name alone: the folder of an interpreter would push out what tells commands apart.
 * @param {string} command
 */
export function short(command) {
  return command.replace(/^(?:\/|[A-Za-z]:\\)[^\s'"]*[/\\](?=[^\s'"/\\])/, "");
}
