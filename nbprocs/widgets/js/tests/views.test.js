import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import views from "../src/index.js";
import { COLUMNS, frame, Model, tableSnapshot } from "./kernel.js";

const HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>";
let clean = [];

function show(kind, snapshot, spec = {}) {
  const model = new Model({ parts: [{ name: kind, kind }], ...spec });
  const el = document.createElement("div");
  document.body.append(el);
  const done = views.render({ model, el });
  clean.push(done);
  const hello = model.last("hello");
  model.say({ n: 0, to: hello.view, s: { [kind]: snapshot } });
  return { model, el, done, delta: (n, content) => model.say({ n, p: { [kind]: content } }) };
}

beforeEach(() => {
  Object.defineProperty(HTMLElement.prototype, "clientHeight", { configurable: true, get: () => 300 });
});
afterEach(() => {
  for (const done of clean) done();
  clean = [];
  document.body.replaceChildren();
});

const press = (node, key, more = {}) => node.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...more }));

describe("the table", () => {
  it("makes only the rows in sight, of five hundred", async () => {
    const { el } = show("table", tableSnapshot(Array.from({ length: 500 }, (_, i) => ({ name: `p${i}` }))));
    await frame();
    const made = el.querySelectorAll(".nb-space .nb-row").length;
    expect(made).toBeGreaterThan(5);
    expect(made).toBeLessThan(30);
    expect(el.querySelector(".nb-space").style.height).toBe("15000px");
    expect(el.querySelector("[role=grid]").getAttribute("aria-rowcount")).toBe("501");
  });

  it("shows names as text, whatever they hold", async () => {
    const { el } = show("table", tableSnapshot([{ name: HOSTILE, cmd: HOSTILE, line: HOSTILE }]));
    await frame();
    expect(el.querySelector("script, img")).toBeNull();
    expect(el.querySelector(".nb-c-name b").textContent).toBe(HOSTILE);
  });

  it("stops, pauses and restarts by its buttons", async () => {
    const { el, model } = show("table", tableSnapshot([{ name: "web" }]));
    await frame();
    for (const [label, op] of [
      ["Stop", "stop"],
      ["Pause", "pause"],
      ["Restart", "restart"],
    ]) {
      el.querySelector(`.nb-space [aria-label="${label}"]`).click();
      expect(model.last(op).args).toEqual({ ids: ["id1"] });
    }
  });

  it("has a bell in each row, which is set, shown and taken back", async () => {
    const { el, model, delta } = show("table", tableSnapshot([{ name: "a" }, { name: "b", status: "completed", took: 1 }]));
    await frame();
    const [bell, ended] = el.querySelectorAll('.nb-space [aria-label="Tell me when it is done"]');
    expect([bell.getAttribute("aria-pressed"), ended.disabled]).toEqual(["false", true]);
    bell.click();
    expect(model.last("bell").args).toEqual({ ids: ["id1"], on: true });
    delta(1, { u: [[1, COLUMNS.indexOf("told"), true]] });
    await frame();
    expect(bell.getAttribute("aria-pressed")).toBe("true");
    expect(el.querySelector(".nb-told").hidden).toBe(false);
    const body = el.querySelector(".nb-body");
    body.dispatchEvent(new Event("focus"));
    press(body, "Home");
    press(body, "b");
    expect(model.last("bell").args).toEqual({ ids: ["id1"], on: false });
  });

  it("speaks the page's language where the page has words of its own", async () => {
    globalThis.__nbprocs_texts = { "table.stop": "Beenden", "table.ask": "{n} × {op}?" };
    try {
      const { el } = show("table", tableSnapshot([{ name: "a" }, { name: "b" }]));
      await frame();
      expect(el.querySelector('.nb-space [aria-label="Beenden"]')).toBeTruthy();
      expect(el.querySelector('.nb-space [aria-label="Restart"]')).toBeTruthy();
      const body = el.querySelector(".nb-body");
      body.dispatchEvent(new Event("focus"));
      press(body, "a", { ctrlKey: true });
      press(body, "k");
      expect(el.querySelector(".nb-ask").textContent).toContain("2 × kill?");
    } finally {
      delete globalThis.__nbprocs_texts;
    }
  });

  it("is used by keys alone", async () => {
    const { el, model } = show("table", tableSnapshot([{ name: "a" }, { name: "b" }, { name: "c" }]));
    await frame();
    const body = el.querySelector(".nb-body");
    body.dispatchEvent(new Event("focus"));
    press(body, "ArrowDown");
    press(body, "s");
    expect(model.last("stop").args.ids).toEqual(["id2"]);
    press(body, " ");
    press(body, "ArrowDown");
    press(body, " ");
    press(body, "p");
    expect(model.last("pause").args.ids).toEqual(["id2", "id3"]);
    press(body, "k");
    expect(model.last("kill")).toBeUndefined(); // two at once: asks first
    const question = el.querySelector(".nb-ask");
    expect(question.textContent).toContain("kill 2 processes?");
    press(body, "Escape");
    expect(question.hidden).toBe(true);
    press(body, "k");
    expect(model.last("kill")).toBeUndefined(); // the question was withdrawn, so it is asked anew
    press(body, "k");
    expect(model.last("kill").args.ids).toEqual(["id2", "id3"]);
    expect(question.hidden).toBe(true);
    press(body, "s");
    question.querySelector(".nb-yes").click();
    expect(model.last("stop").args.ids).toEqual(["id2", "id3"]);
    await frame();
    expect([...el.querySelectorAll("[data-active]")].map((row) => row.querySelector("b").textContent)).toEqual(["c"]);
    press(body, "Enter");
    expect(model.last("show").args).toEqual({ id: "id3" });
    press(body, "/");
    expect(document.activeElement).toBe(el.querySelector(".nb-filter"));
  });

  it("keeps keys from the notebook around it", async () => {
    const { el } = show("table", tableSnapshot([{}]));
    const outer = vi.fn();
    document.body.addEventListener("keydown", outer);
    press(el.querySelector(".nb-body"), "ArrowDown");
    press(el.querySelector(".nb-body"), "x");
    expect(outer).not.toHaveBeenCalled();
    press(el.querySelector(".nb-body"), "s", { ctrlKey: true });
    expect(outer).toHaveBeenCalledTimes(1);
  });

  it("can do nothing when its manager is closed, but show output", async () => {
    const { el, model, delta } = show("table", tableSnapshot([{ name: "a" }]));
    await frame();
    delta(1, { closed: true });
    await frame();
    expect(el.querySelector(".nb-state").textContent).toContain("manager is closed");
    const usable = [...el.querySelectorAll(".nb-space button")].filter((button) => !button.disabled && !button.hidden).map((button) => button.title);
    expect(usable).toEqual(["Show output"]);
    el.querySelector(".nb-body").dispatchEvent(new Event("focus"));
    press(el.querySelector(".nb-body"), "k");
    expect(model.last("kill")).toBeUndefined();
  });

  it("sorts by its heads and says so", async () => {
    const { el } = show(
      "table",
      tableSnapshot([
        { name: "b", cpu: 1 },
        { name: "a", cpu: 9 },
      ]),
    );
    await frame();
    const order = () =>
      [...el.querySelectorAll(".nb-space .nb-row")]
        .sort((x, y) => x.getAttribute("aria-rowindex") - y.getAttribute("aria-rowindex"))
        .map((row) => row.querySelector("b").textContent);
    const head = el.querySelector('[data-key="name"]');
    head.querySelector("button").click();
    await frame();
    expect(order()).toEqual(["a", "b"]);
    expect(head.getAttribute("aria-sort")).toBe("ascending");
    head.querySelector("button").click();
    await frame();
    expect(order()).toEqual(["b", "a"]);
    head.querySelector("button").click();
    expect(head.getAttribute("aria-sort")).toBe("none");
  });

  it("says what a refusal says", async () => {
    const { el, model } = show("table", tableSnapshot([{}]));
    await frame();
    el.querySelector('.nb-space [aria-label="Stop"]').click();
    model.refuse(model.last("stop"), "web: still there");
    await frame();
    const notice = el.querySelector(".nb-notice");
    expect(notice.hidden).toBe(false);
    expect(notice.textContent).toContain("web: still there");
  });

  it("marks what outlives the kernel", async () => {
    const { el } = show("table", tableSnapshot([{ name: "train", detached: true }, { name: "plain" }]));
    await frame();
    const marked = [...el.querySelectorAll(".nb-space .nb-row")].filter((row) => !row.querySelector(".nb-mark").hidden);
    expect(marked.map((row) => row.querySelector("b").textContent)).toEqual(["train"]);
  });

  it("tells how to begin when it is empty", async () => {
    const { el } = show("table", tableSnapshot([]));
    expect(el.querySelector(".nb-empty").textContent).toContain("await pm.spawn");
  });

  it("has a name for everything that can be pressed", async () => {
    const { el } = show("table", tableSnapshot([{}]));
    await frame();
    for (const node of el.querySelectorAll("button, input, select")) {
      expect(node.getAttribute("aria-label") || node.textContent.trim(), node.outerHTML).toBeTruthy();
    }
  });
});

it("is as high as the caller says; among several parts that is the table's height", () => {
  for (const [kind, spec, high] of [
    ["pool", { height: 400 }, "370px"],
    ["queue", { height: 400 }, "370px"],
    ["charts", { height: 400 }, "380px"],
    ["pool", { height: 400, arranged: "dashboard" }, "180px"],
  ]) {
    const el = document.createElement("div");
    clean.push(views.render({ model: new Model({ parts: [{ name: kind, kind }], ...spec }), el }));
    const { style } = el.querySelector(".nb-list, .nb-plot");
    expect([kind, style.maxHeight || style.height]).toEqual([kind, high]);
  }
});

describe("the form", () => {
  const form = () => show("form", { history: ["ls -l"], cwd: "/home", ready: [] });

  it("asks the kernel for the line and shows errors at the field", async () => {
    vi.useFakeTimers();
    const { el, model } = show("form", { history: [], cwd: "/home", ready: [], options: [["nice", "Niceness", "added to its priority", "text"]] });
    el.querySelector('[data-field="nice"] input').value = "5";
    const input = el.querySelector("input[role=combobox]");
    input.value = "sleep 5";
    input.dispatchEvent(new Event("input"));
    vi.advanceTimersByTime(300);
    vi.useRealTimers();
    expect(model.last("check").args).toMatchObject({ command: "sleep 5", shell: false, env: {}, options: { nice: "5" } });
    model.reply(model.last("check"), { line: "proc = await pm.spawn('sleep', '5')", secret: [] });
    await frame();
    expect(el.querySelector(".nb-line").textContent).toBe("proc = await pm.spawn('sleep', '5')");
    el.querySelector("form").dispatchEvent(new Event("submit", { cancelable: true }));
    model.refuse(model.last("run"), "that name is taken", "name");
    await frame();
    expect(el.querySelector('[data-field="name"] .nb-error').textContent).toBe("that name is taken");
    expect(el.querySelector('[data-field="name"] input').getAttribute("aria-invalid")).toBe("true");
    expect(el.querySelector("details").open).toBe(true);
    for (const field of ["cwd", "env"]) {
      el.querySelector("form").dispatchEvent(new Event("submit", { cancelable: true }));
      model.refuse(model.last("run"), "not that", field);
      await frame();
      expect(el.querySelector(`[data-field="${field}"] > .nb-error`).textContent).toBe("not that");
    }
  });

  it("goes through its history with the arrows", () => {
    const { el } = form();
    const input = el.querySelector("input[role=combobox]");
    press(input, "ArrowUp");
    expect(input.value).toBe("ls -l");
    press(input, "ArrowDown");
    expect(input.value).toBe("");
  });

  it("shows a value only when the kernel says that it is no secret, whatever is wrong elsewhere", async () => {
    vi.useFakeTimers();
    const { el, model } = form();
    el.querySelector('[aria-label="Add a variable"]').click();
    const [name, value] = el.querySelectorAll(".nb-envrow input");
    expect(value.type).toBe("password");
    name.value = "API_KEY";
    name.dispatchEvent(new Event("input"));
    vi.advanceTimersByTime(300);
    vi.useRealTimers();
    model.reply(model.last("check"), { error: "name a program", field: "command", secret: ["API_KEY"] });
    await frame();
    expect(value.type).toBe("password");
    model.reply(model.last("check"), { error: "name a program", field: "command", secret: [] });
  });

  it("hides the value of a secret", async () => {
    vi.useFakeTimers();
    const { el, model } = form();
    el.querySelector('[aria-label="Add a variable"]').click();
    const [name, value] = el.querySelectorAll(".nb-envrow input");
    name.value = "API_KEY";
    value.value = "k";
    el.querySelector("input[role=combobox]").value = "x";
    name.dispatchEvent(new Event("input"));
    vi.advanceTimersByTime(300);
    vi.useRealTimers();
    model.reply(model.last("check"), { line: "", secret: ["API_KEY"] });
    await frame();
    expect(value.getAttribute("type")).toBe("password");
  });
});

describe("the boards", () => {
  const status = {
    running: 1,
    limit: 2,
    waiting: 1,
    counts: { running: 1, queued: 1, succeeded: 2 },
    paused: false,
    halted: "",
    closed: false,
    eta: [1, 2, 3],
    next: null,
    resources: [["gpu", 1, 2]],
  };
  const queue = {
    columns: ["name", "cmd", "state", "priority", "level", "group", "tries", "due", "expected", "why", "worker", "host"],
    rows: [
      ["t1", ["train", "python train.py", "running", 2, "HIGH", "", "", 0, 10, "", "", ""]],
      ["t2", [HOSTILE, HOSTILE, "queued", 1, "NORMAL", "g", "", 1, null, HOSTILE, "", ""]],
    ],
    bars: [["t1", Date.now() / 1000 - 4, null, "running"]],
    status,
    now: Date.now() / 1000,
    priorities: { LOW: 0, HIGH: 2 },
  };

  it("show the queue and act on it", async () => {
    const { el, model, delta } = show("queue", queue);
    expect(el.querySelector("script, img")).toBeNull();
    expect(el.querySelector(".nb-facts").textContent).toContain("gpu 1/2");
    expect(el.querySelector("[role=progressbar]").getAttribute("aria-valuenow")).toBe("50");
    expect(el.querySelectorAll(".nb-timeline i").length).toBe(1);
    el.querySelector('[aria-label="Select train"]').click();
    el.querySelector('[data-op="cancel"]').click();
    expect(model.last("cancel").args).toEqual({ ids: ["t1"] });
    el.querySelector('[aria-label="Pause the queue"]').click();
    expect(model.last("pause").args).toEqual({ on: true });
    delta(1, { status: { ...status, paused: true }, "-": ["t2"], b: [["t1", queue.bars[0][1], Date.now() / 1000, "succeeded"]] });
    expect(el.querySelector('[aria-label="Resume the queue"]')).not.toBeNull();
    expect(el.querySelectorAll(".nb-list .nb-row").length).toBe(1);
    expect(el.querySelector('.nb-timeline [data-state="succeeded"]')).not.toBeNull();
  });

  it("show what a task was expected to take beside what it takes and what it took", () => {
    const end = queue.bars[0][1] + 7;
    const done = [["t1", queue.rows[0][1].with(2, "succeeded")]];
    expect(show("queue", queue).el.querySelector(".nb-list .nb-row").textContent).toContain("of about 10.0 s");
    const { el } = show("queue", { ...queue, rows: done, bars: [["t1", queue.bars[0][1], end, "succeeded"]] });
    expect(el.querySelector(".nb-list .nb-row").textContent).toContain("7.0 s, about 10.0 s expected");
  });

  it("have columns of where tasks run once one runs on a worker, and keep them", () => {
    const { el, delta } = show("queue", queue);
    const grid = el.querySelector(".nb-g-queue");
    expect(grid.classList.contains("nb-far")).toBe(false);
    const row = ["t1", queue.rows[0][1].toSpliced(-2, 2, `alice ${HOSTILE}`, "node-7")];
    delta(1, { u: [row] });
    expect(grid.classList.contains("nb-far")).toBe(true);
    const cells = ["worker", "host"].map((name) => el.querySelector(`.nb-list .nb-c-${name}`));
    expect(cells.map((cell) => [cell.textContent, cell.title])).toEqual([
      [`alice ${HOSTILE}`, `alice ${HOSTILE}`],
      ["node-7", "node-7"],
    ]);
    expect(el.querySelector(".nb-list .nb-c-name").title).toBe(`python train.py\non alice ${HOSTILE}, node-7`);
    expect(el.querySelector("script, img")).toBeNull();
    delta(2, { "-": ["t1"] });
    expect(grid.classList.contains("nb-far")).toBe(true);
  });

  it("say how much work is left, and what is not due yet", () => {
    const next = Date.now() / 1000 + 3601;
    const { el } = show("queue", { ...queue, status: { ...status, counts: { running: 1, scheduled: 2 }, eta: [1, 90, 120], next } });
    expect(el.querySelector(".nb-facts").textContent).toContain("1 m 30 s of work left (1 s to 2 m 00 s) · 2 not due yet, the next in 1 h 00 m");
  });

  it("show the pool", () => {
    const figures = {
      workers: 2,
      starting: 0,
      busy: 1,
      most: 4,
      queued: 3,
      running: 1,
      completed: 1234,
      failed: 1,
      retries: 0,
      crashed: 0,
      average: 0.25,
      closed: false,
    };
    const { el, model, delta } = show("pool", {
      columns: ["state", "pid", "born", "done", "held", "titles", "why"],
      rows: [
        ["w-10", ["idle", 1, 0, 5, 0, "", ""]],
        ["w-2", ["busy", 2, 0, 5, 1, "work", ""]],
      ],
      figures,
      rates: [1, 2],
      now: 0,
    });
    expect([...el.querySelectorAll(".nb-list .nb-c-name")].map((n) => n.textContent)).toEqual(["w-2", "w-10"]);
    expect(el.querySelector(".nb-tiles").textContent).toContain("1,234");
    el.querySelector('[aria-label^="Renew"]').click();
    expect(model.last("renew")).toBeTruthy();
    delta(1, { "-": ["w-2"], figures: { ...figures, closed: true }, rate: 3 });
    expect(el.querySelector(".nb-facts").textContent).toBe("closed");
  });
});

describe("the workers of a cluster", () => {
  const figures = { workers: 2, slots: 4, running: 1, why: "", closed: false };
  const snapshot = {
    columns: ["name", "host", "state", "slots", "running", "cpu", "used", "memory", "tasks"],
    rows: [
      ["tcp://10.0.0.2:41", ["w10", "node-2", "silent", 2, 0, null, null, null, ""]],
      ["tcp://10.0.0.1:40", [HOSTILE, "node-1", "joined", 2, 1, 153, 3 << 29, 8 * 2 ** 30, "train"]],
    ],
    figures,
    now: 0,
  };
  let sight;

  beforeEach(() => {
    vi.useFakeTimers();
    sight = { top: 10, bottom: 300, height: 290 };
    vi.spyOn(HTMLElement.prototype, "getBoundingClientRect").mockImplementation(() => sight);
  });
  afterEach(() => {
    vi.restoreAllMocks();
    vi.useRealTimers();
  });

  it("show what each has to do and takes", () => {
    const { el, delta } = show("workers", snapshot);
    const cells = (name) => [...el.querySelectorAll(`.nb-list .nb-c-${name}`)].map((cell) => cell.textContent);
    expect(el.querySelector("script, img")).toBeNull();
    expect(cells("name")[0]).toBe(`${HOSTILE}tcp://10.0.0.1:40`);
    expect([cells("host")[0], cells("pid")[0], cells("cpu")[0], cells("mem")[0], cells("line")[0]]).toEqual([
      "node-1",
      "1 / 2",
      "153 %",
      "1.5 GiB / 8.0 GiB",
      "train",
    ]);
    expect([cells("status")[1], cells("cpu")[1], cells("mem")[1]]).toEqual(["silent", "", ""]);
    expect(el.querySelector(".nb-facts").textContent).toBe("2 workers · 1 of 4 slots busy");
    delta(1, { "-": ["tcp://10.0.0.1:40", "tcp://10.0.0.2:41"], figures: { ...figures, workers: 0, slots: 0, running: 0, why: "a worker" } });
    expect(el.querySelector(".nb-facts").textContent).toBe("0 workers · 0 of 0 slots busy · waits for a worker");
    expect(el.textContent).toContain("No worker has joined.");
  });

  it("are asked for a look each second, one at a time, while the view is in sight", async () => {
    const { model, delta, done } = show("workers", snapshot);
    const looks = () => model.sent.filter((message) => message.op === "look").length;
    expect(looks()).toBe(1);
    vi.advanceTimersByTime(5000);
    expect(looks()).toBe(1); // the first is not answered yet
    const answer = () => {
      model.reply(model.last("look"));
      return vi.advanceTimersByTimeAsync(1000);
    };
    await answer();
    expect(looks()).toBe(2);
    for (const hidden of [
      { top: 0, bottom: 0, height: 0 },
      { top: 5000, bottom: 5290, height: 290 },
      { top: -400, bottom: -110, height: 290 },
    ]) {
      sight = hidden;
      await answer();
    }
    sight = { top: 10, bottom: 300, height: 290 };
    const state = vi.spyOn(document, "visibilityState", "get").mockReturnValue("hidden");
    await answer();
    expect(looks()).toBe(2);
    state.mockReturnValue("visible");
    await answer();
    expect(looks()).toBe(3);
    delta(1, { figures: { ...figures, closed: true } });
    await answer();
    delta(2, { figures });
    done();
    await vi.advanceTimersByTimeAsync(5000);
    expect(looks()).toBe(3);
  });
});

describe("a view that is shown again", () => {
  it("is a second view when the first is still in the page", () => {
    const { el, model } = show("table", tableSnapshot([]));
    const other = document.createElement("div");
    document.body.append(other);
    clean.push(views.render({ model, el: other }));
    expect(el.firstChild).not.toBe(other.firstChild);
    expect(new Set(model.sent.filter((m) => m.do === "hello").map((m) => m.view)).size).toBe(2);
  });

  it("says so when its kernel is gone", () => {
    const { el, model } = show("table", tableSnapshot([]));
    model.comm_live_update();
    expect(el.querySelector(".nb-state").textContent).toContain("gone");
    expect(el.querySelector(".nb-view").classList.contains("nb-stale")).toBe(true);
  });

  it("leaves nothing when it is removed", () => {
    const { el, model, done } = show("table", tableSnapshot([]));
    done();
    expect(el.childElementCount).toBe(0);
    expect(model.listeners.size).toBe(0);
    expect(model.comm_live_update).toBeUndefined();
    expect(model.last("bye")).toBeTruthy();
  });
});
