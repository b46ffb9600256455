import { describe, expect, it } from "vitest";
import { short } from "../src/dom.js";
import { Rows } from "../src/rows.js";
import { tableSnapshot } from "./kernel.js";

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
