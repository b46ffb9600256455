// The terminal renderer: an asset of its own, because only panes need it and it is the largest part.
export { Terminal } from "@xterm/xterm";
export { FitAddon } from "@xterm/addon-fit";
export { SearchAddon } from "@xterm/addon-search";
import css from "@xterm/xterm/css/xterm.css";
export { css };
