// The kernel's side for tests: a model as anywidget gives it, whose messages a test reads and answers.
export class Model {
  constructor(spec = {}) {
    this.spec = { uid: `uid-${Math.random()}`, parts: [], ...spec };
    this.sent = [];
    this.listeners = new Set();
  }
  get(name) {
    return this[name];
  }
  on(name, listener) {
    if (name === "msg:custom") this.listeners.add(listener);
    else this[name] = listener;
  }
  off(name, listener) {
    if (name === "msg:custom") this.listeners.delete(listener);
    else delete this[name];
  }
  send(message) {
    this.sent.push(message);
  }
  say(message, buffers = []) {
    for (const listener of [...this.listeners]) listener(message, buffers);
  }
  last(what) {
    return this.sent.findLast((message) => message.do === what || message.op === what);
  }
  reply(call, data, buffers) {
    this.say({ to: call.view, re: call.id, ok: true, data }, buffers);
  }
  refuse(call, error, field = "") {
    this.say({ to: call.view, re: call.id, ok: false, error, field });
  }
}

export const COLUMNS = ["id", "name", "cmd", "status", "pid", "start", "took", "end", "restarts", "ports", "line", "cpu", "mem", "stdin", "detached", "told"];

export function cells(fields = {}) {
  const all = {
    id: "i",
    name: "n",
    cmd: "c",
    status: "running",
    pid: 1,
    start: 0,
    took: null,
    end: "",
    restarts: 0,
    ports: "",
    line: "",
    cpu: null,
    mem: null,
    stdin: false,
    detached: false,
    told: false,
    ...fields,
  };
  return COLUMNS.map((name) => all[name]);
}

export function tableSnapshot(rows) {
  return {
    columns: COLUMNS,
    rows: rows.map((fields, i) => [i + 1, cells({ id: `id${i + 1}`, ...fields }), [], []]),
    now: Date.now() / 1000,
    closed: false,
    signals: ["SIGINT"],
    every: 1,
  };
}

export const frame = () => new Promise((resolve) => setTimeout(resolve, 40));
