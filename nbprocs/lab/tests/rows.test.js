// The pure part of the panel.
import assert from "node:assert/strict";
import { test } from "node:test";
import { detail, duration, lives, load, ordered, running, size, title } from "../src/rows.js";

const row = { id: "1", name: "web", status: "running", started: 1000, rss: 81_000_000, socket: "s.sock", detached: false, kernel_alive: true, kernel: "k", path: "a.ipynb", pid: 7 };

test("durations are short", () => {
  assert.deepEqual([0, 59.9, 61, 3599, 3600, 90000, 200000].map(duration), ["0 s", "59 s", "1:01", "59:59", "1:00 h", "1 d", "2 d"]);
});

test("sizes are short", () => {
  assert.deepEqual([0, 999, 1500, 81e6, 3.2e9].map(size), ["0 B", "999 B", "1.5 KB", "81 MB", "3.2 GB"]);
});

test("the load needs two looks", () => {
  assert.equal(load(undefined, { cpu: 1, at: 1 }), undefined);
  assert.equal(load({ cpu: 1, at: 1 }, { cpu: 2, at: 3 }), 50);
  assert.equal(load({ cpu: 2, at: 1 }, { cpu: 1, at: 3 }), 0);
  assert.equal(load({ cpu: 1, at: 3 }, { cpu: 2, at: 3 }), undefined);
});

test("the vital word comes first", () => {
  assert.equal(detail(row, 1090, 12.4), "1:30 12% 81 MB");
  assert.match(detail({ ...row, paused: true }, 1090, undefined), /^paused /);
  assert.match(detail({ ...row, ended: 1030, exit_code: 3 }, 2000, 0), /^exit 3 30 s$/);
  assert.match(detail({ ...row, detached: true }, 1090, 0), /detached$/);
  assert.match(detail({ ...row, kernel_alive: false }, 1090, 0), /kernel gone$/);
});

test("the living come first, the youngest on top", () => {
  const rows = [{ ...row, name: "old" }, { ...row, name: "dead", ended: 5 }, { ...row, name: "young", started: 2000 }];
  assert.deepEqual(ordered(rows).map((r) => r.name), ["young", "old", "dead"]);
  assert.equal(running([...rows, { ...row, status: "stray" }]), 2);
  assert.equal(lives(rows[1]), false);
});

test("the tooltip names the command and the notebook", () => {
  assert.equal(title({ ...row, command: "python -m http.server" }), "web (pid 7)\npython -m http.server\na.ipynb");
  assert.match(title({ ...row, path: "", kernel: "" }), /unknown to this server/);
});
