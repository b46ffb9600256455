// Every text that a person reads, in one table, so that a translation can be added.
export const TEXTS = {
  section: "Processes",
  stop: "Stop",
  stopAll: "Stop All",
  stopAllQuestion: "Stop all processes of all kernels, the detached ones too?",
  show: "Show in Notebook",
  output: "Open Output in a Tab",
  pause: "Pause",
  resume: "Resume",
  interrupt: "Interrupt (like Ctrl-C)",
  copy: "Copy Command",
  adopt: "Adopt in This Notebook",
  refresh: "Refresh Processes",
  panel: "Show Running Processes",
  allow: "Notify Me in the Browser, Too",
  /** @param {number} n */
  running: (n) => `${n} running`,
  /** @param {number} n */
  runningTitle: (n) => `${n} ${n === 1 ? "process" : "processes"} of nbprocs running; click for the list`,
  busy: "The kernel is busy: its output comes when it answers.",
  kernelGone: "The kernel of this process is gone.",
  unknown: "The kernel does not know this process any more.",
  noNotebook: "No notebook shows this kernel.",
  ended: "— ended —",
  over: "ended",
  /** @param {number | string} code */
  exit: (code) => `exit ${code}`,
  paused: "paused",
  stray: "stray",
  detached: "detached",
  gone: "kernel gone",
  outlives: "detached: outlives its kernel",
  /** @param {string} id */
  kernel: (id) => `kernel ${id || "unknown to this server"}`,
  /** @param {string} name @param {number} pid */
  named: (name, pid) => `${name} (pid ${pid})`,
  noReason: "no reason was given",
  category: "Processes",
  /** @param {string} name */
  outputOf: (name) => `Output of ${name}`,
  /** @param {string} op @param {string} name @param {string} why */
  refused: (op, name, why) => `${op} of ${name} was not carried out: ${why}`,
};
