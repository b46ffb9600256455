import { describe, expect, it } from "vitest";
import { short } from "../src/dom.js";
import { Rows } from "../src/rows.js";
import { cells, COLUMNS, tableSnapshot } from "./kernel.js";

const rows = (...fields) => {
  const found = new Rows();
  found.reset(tableSnapshot(fields));
  return found;
};
const names = (found) => found.map((row) => row.cells[1]);

describe("deltas", () => {
  it("change, add and remove rows", () => {
    const table = rows({ name: "a" }, { name: "b" });
    table.apply({ u: [[1, 3, "failed", 7, "exit 1"]], "-": [2], "+": [[3, table.byKey.get(1).cells.with(1, "c")]] });
    expect(table.get(table.byKey.get(1), "status")).toBe("failed");
    expect(table.get(table.byKey.get(1), "end")).toBe("exit 1");
    expect(names(table.view())).toEqual(["a", "c"]);
  });

  it("ignore rows that are not there", () => {
    expect(rows({}).apply({ u: [[99, 3, "failed"]], "-": [98] })).toEqual({ structure: false });
  });

  it("move sparklines with the tick, those without news as well", () => {
    const table = rows({ cpu: 1, mem: 10 }, { cpu: 2, mem: 20 }, { cpu: null });
    for (let i = 0; i < 70; i++) table.apply({ k: 1, u: [[1, 11, i]] });
    expect(table.byKey.get(1).cpu.length).toBe(60);
    expect(table.byKey.get(1).cpu.at(-1)).toBe(69);
    expect(table.byKey.get(2).mem).toEqual(new Array(60).fill(20));
    expect(table.byKey.get(3).cpu).toEqual([]);
  });
});

describe("the view", () => {
  const table = rows(
    { name: "web", status: "running", cpu: 5, pid: 30, cmd: "python -m http.server" },
    { name: "train", status: "failed", took: 2, pid: 4, line: "CUDA out of memory" },
    { name: "Alpha", status: "running", cpu: 80, pid: 100 },
  );

  it("sorts numbers as numbers and names without case", () => {
    expect(names(table.view({ sort: "pid" }))).toEqual(["train", "web", "Alpha"]);
    expect(names(table.view({ sort: "cpu", down: true }))).toEqual(["Alpha", "web", "train"]);
    expect(names(table.view({ sort: "name" }))).toEqual(["Alpha", "train", "web"]);
    expect(names(table.view({ sort: "status" }))).toEqual(["web", "Alpha", "train"]);
  });

  it("filters by words, by column and by status", () => {
    expect(names(table.view({ filter: "http python" }))).toEqual(["web"]);
    expect(names(table.view({ filter: "cuda" }))).toEqual(["train"]);
    expect(names(table.view({ filter: "status:run" }))).toEqual(["web", "Alpha"]);
    expect(names(table.view({ filter: "name:a" }))).toEqual(["train", "Alpha"]);
    expect(names(table.view({ status: "failed" }))).toEqual(["train"]);
    expect(names(table.view({ filter: "(" }))).toEqual([]);
  });

  it("counts", () => expect(table.counts()).toEqual({ running: 2, failed: 1 }));
});

it("counts up by the kernel's clock, not the browser's", () => {
  const table = new Rows();
  table.reset({ ...tableSnapshot([{ start: 1000 }]), now: 1010 });
  expect(table.uptime(table.byKey.get(1))).toBeCloseTo(10, 0);
});

it("shows a program by its name", () => {
  expect(short("/opt/venv/bin/python -m http.server")).toBe("python -m http.server");
  expect(short("C:\\Python\\python.exe x.py")).toBe("python.exe x.py");
  expect(short("ls /usr/bin/env")).toBe("ls /usr/bin/env");
  expect(short("'/a b/python' x.py")).toBe("'/a b/python' x.py");
  expect(short("/")).toBe("/");
});

describe("runs of one name", () => {
  const rows = (...all) => {
    const made = new Rows();
    made.reset({ columns: COLUMNS, rows: all.map(([name, status], i) => [i + 1, cells({ name, status }), [], []]), now: 0 });
    return made;
  };
  const names = (made, query) => made.view(query).map((row) => row.key);

  it("are one row, the newest, until they are unfolded", () => {
    const made = rows(["a", "failed"], ["b", "running"], ["a", "failed"], ["a", "running"]);
    expect(names(made)).toEqual([4, 2]);
    expect(made.folded.get(4)).toBe(2);
    expect(names(made, { unfolded: new Set(["a"]) })).toEqual([4, 1, 3, 2]);
    expect([...made.earlier]).toEqual([1, 3]);
  });

  it("that live are rows of their own", () => {
    expect(names(rows(["a", "running"], ["a", "running"]))).toEqual([1, 2]);
  });

  it("are found by a filter, and cleared when they have ended", () => {
    const made = rows(["a", "failed"], ["a", "completed"], ["b", "running"]);
    expect(names(made, { status: "failed" })).toEqual([1]);
    made.cleared.add(1).add(2);
    expect(names(made)).toEqual([3]);
    expect(made.counts()).toEqual({ running: 1 });
  });
});
