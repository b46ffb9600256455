// The terminal's colours, from the page's own.

/**
 * A colour without transparency, as the terminal wants it: inverse video swaps the two, and half a colour over itself is unreadable.
 * @param {string} colour
 * @param {string} behind
 */
function opaque(colour, behind) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const brush = canvas.getContext?.("2d");
  if (!brush) return colour;
  for (const layer of [behind, colour]) {
    brush.fillStyle = layer;
    brush.fillRect(0, 0, 1, 1);
  }
  return `#${[...brush.getImageData(0, 0, 1, 1).data]
    .slice(0, 3)
    .map((v) => v.toString(16).padStart(2, "0"))
    .join("")}`;
}

/**
 * The terminal's colours from JupyterLab's own variables.
 * @param {Element} root
 */
export function colours(root) {
  const style = getComputedStyle(root);
  const pick = (/** @type {string} */ name, /** @type {string} */ fallback) => style.getPropertyValue(name).trim() || fallback;
  const dark = document.body.dataset.jpThemeLight === "false" || document.body.classList.contains("theme-dark");
  const background = opaque(pick("--jp-layout-color0", dark ? "#111111" : "#ffffff"), dark ? "#111111" : "#ffffff");
  const foreground = opaque(pick("--jp-content-font-color1", dark ? "#e0e0e0" : "#212121"), background);
  return {
    background,
    foreground,
    cursor: foreground,
    selectionBackground: dark ? "#3a5a80" : "#b3d7ff",
    black: dark ? "#484f58" : "#24292f",
    red: dark ? "#ff7b72" : "#b3261e",
    green: dark ? "#3fb950" : "#116329",
    yellow: dark ? "#d29922" : "#7d4e00",
    blue: dark ? "#58a6ff" : "#0550ae",
    magenta: dark ? "#bc8cff" : "#8250df",
    cyan: dark ? "#39c5cf" : "#1b7c83",
    white: dark ? "#b1bac4" : "#57606a",
    brightBlack: dark ? "#8b949e" : "#57606a",
    brightRed: dark ? "#ffa198" : "#a40e26",
    brightGreen: dark ? "#56d364" : "#1a7f37",
    brightYellow: dark ? "#e3b341" : "#633c01",
    brightBlue: dark ? "#79c0ff" : "#0969da",
    brightMagenta: dark ? "#d2a8ff" : "#6639ba",
    brightCyan: dark ? "#56d4dd" : "#3192aa",
    brightWhite: dark ? "#f0f6fc" : "#24292f",
  };
}
