import { beforeEach, describe, expect, it, vi } from "vitest";
import { asset, CallFailed, Connection, octets } from "../src/protocol.js";
import { Model } from "./kernel.js";

let model, seen, connection;

beforeEach(() => {
  model = new Model();
  seen = [];
  connection = new Connection(model, {
    snapshot: (part, content, buffers) => seen.push(["s", part, content, buffers]),
    delta: (part, content, buffers) => seen.push(["d", part, content, buffers]),
    gone: (text) => seen.push(["gone", text]),
    state: () => {},
  });
  connection.hello();
});

const snapshot = (n, content = 0) => model.say({ n, to: connection.view, s: { a: content } });
const delta = (n, content = n) => model.say({ n, p: { a: content } });

describe("numbers", () => {
  it("applies deltas in order after the snapshot", () => {
    snapshot(4);
    delta(5);
    delta(6);
    expect(seen.map(([kind, , content]) => [kind, content])).toEqual([
      ["s", 0],
      ["d", 5],
      ["d", 6],
    ]);
  });

  it("keeps deltas that overtake the snapshot, and drops those that it holds already", () => {
    delta(4);
    delta(5);
    snapshot(4);
    expect(seen.map(([kind, , content]) => [kind, content])).toEqual([
      ["s", 0],
      ["d", 5],
    ]);
  });

  it("says hello again when one is missing", () => {
    snapshot(1);
    delta(3);
    expect(seen.length).toBe(1);
    expect(model.sent.filter((m) => m.do === "hello").length).toBe(2);
    snapshot(3);
    delta(4);
    expect(seen.at(-1)).toEqual(["d", "a", 4, []]);
  });

  it("ignores messages for other tabs and nonsense", () => {
    model.say({ n: 1, to: "another", s: { a: 1 } });
    for (const nonsense of [null, 7, "x", [], {}, { re: 99, ok: true }, { to: connection.view, re: "x" }]) model.say(nonsense);
    expect(seen).toEqual([]);
  });

  it("slices buffers by part", () => {
    const bytes = [1, 2, 3].map((n) => new Uint8Array([n]));
    model.say({ n: 0, to: connection.view, s: { a: "A", b: "B", "": { b: [1, 2] } } }, bytes);
    expect(seen).toEqual([
      ["s", "a", "A", []],
      ["s", "b", "B", [bytes[1], bytes[2]]],
    ]);
  });
});

describe("calls", () => {
  it("resolve with data and buffers", async () => {
    const answer = connection.call("a", "stop", { ids: ["x"] });
    const call = model.last("stop");
    expect(call).toMatchObject({ do: "call", part: "a", op: "stop", args: { ids: ["x"] }, view: connection.view });
    model.reply(call, 5, [new Uint8Array(1)]);
    expect(await answer).toEqual({ data: 5, buffers: [new Uint8Array(1)] });
  });

  it("reject with the field", async () => {
    const answer = connection.call("a", "run");
    model.refuse(model.last("run"), "no", "name");
    await expect(answer).rejects.toMatchObject({ message: "no", field: "name" });
    await expect(answer).rejects.toBeInstanceOf(CallFailed);
  });

  it("reject when the view closes, which says goodbye and listens no more", async () => {
    const answer = connection.call("a", "run");
    connection.bye();
    await expect(answer).rejects.toThrow("closed");
    expect(model.last("bye").view).toBe(connection.view);
    expect(model.listeners.size).toBe(0);
  });

  it("say so when no answer comes", async () => {
    vi.useFakeTimers();
    const answer = connection.call("a", "run");
    const failed = expect(answer).rejects.toThrow("no answer");
    vi.advanceTimersByTime(61_000);
    await failed;
    vi.useRealTimers();
  });
});

it("asks again while no snapshot comes, ever less often", () => {
  vi.useFakeTimers();
  connection.hello();
  model.sent.length = 0;
  vi.advanceTimersByTime(60_000);
  const count = model.sent.filter((m) => m.do === "hello").length;
  expect(count).toBeGreaterThan(2);
  expect(count).toBeLessThan(8);
  vi.useRealTimers();
});

it("asks once more for a script, since the thread that was asked may have to run a cell first", () => {
  vi.useFakeTimers();
  asset(connection, "a script").catch(() => {});
  const asked = () => model.sent.filter((m) => m.op === "asset").length;
  vi.advanceTimersByTime(900);
  expect(asked()).toBe(1);
  vi.advanceTimersByTime(30_000);
  expect(asked()).toBe(2);
  globalThis.__nbprocs_assets.clear();
  vi.useRealTimers();
});

it("reads buffers of every kind without copying", () => {
  const bytes = new Uint8Array([9, 1, 2, 3]);
  expect([...octets(new DataView(bytes.buffer, 1, 2))]).toEqual([1, 2]);
  expect([...octets(bytes.buffer)]).toEqual([9, 1, 2, 3]);
  expect(octets(bytes)).toBe(bytes);
});
