import { expect, it } from "vitest";
import { Samples } from "../src/charts.js";
import { bytes, clock, seconds } from "../src/dom.js";
import { found } from "../src/links.js";
import { Streams } from "../src/streams.js";

const encode = (text) => new TextEncoder().encode(text);

it("joins characters that are split between chunks, each stream by itself", () => {
  const streams = new Streams();
  const euro = encode("€");
  expect(streams.text("stdout", euro.slice(0, 2))).toBe("");
  expect(streams.text("stderr", encode("x"))).toContain("x");
  expect(streams.text("stdout", euro.slice(2))).toBe("€");
});

it("shows what is not text, and what reorders it, as a replacement", () => {
  const streams = new Streams();
  expect(streams.text("stdout", new Uint8Array([0xff, 65]))).toBe("\ufffdA");
  expect(streams.text("stdout", encode("user\u202egnp.exe\u200b"))).toBe("user\ufffdgnp.exe\ufffd");
  const joined = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \ud83d\udc69\u200d\ud83d\udc67";
  expect(streams.text("stdout", encode(joined))).toBe(joined);
  expect(streams.text("stdout", encode("r\u200dm\u0645\u200c\u200c\u0645"))).toBe("r\ufffdm\u0645\ufffd\u200c\u0645");
});

it("says durations and sizes", () => {
  expect([0.5, 3.21, 75, 7260, 200000].map(seconds)).toEqual(["500 ms", "3.2 s", "1 m 15 s", "2 h 01 m", "2 d 07 h"]);
  expect(clock(59.9)).toBe("59 s");
  expect([512, 1536, 3 * 2 ** 30].map(bytes)).toEqual(["512 B", "1.5 KiB", "3.0 GiB"]);
});

it("puts samples of different processes on one axis", () => {
  const samples = new Samples();
  samples.fill([
    [
      1,
      "a",
      [
        [10, 1, 5],
        [11, 2, 6],
      ],
    ],
    [2, "b", [[11, 9, 1]]],
  ]);
  samples.tick(12, [[2, 8, 2]]);
  expect(samples.times).toEqual([10, 11, 12]);
  expect(samples.lines.get(1).cpu).toEqual([1, 2, null]);
  expect(samples.lines.get(2).cpu).toEqual([null, 9, 8]);
});

it("draws ten lines at most, and the sum of the others", () => {
  const samples = new Samples();
  for (let i = 1; i <= 30; i++) samples.add(i, `p${i}`);
  samples.tick(
    1,
    Array.from({ length: 30 }, (_, i) => [i + 1, i + 1, 1]),
  );
  const drawn = samples.drawn();
  expect(drawn.length).toBe(10);
  expect(drawn.at(-1).name).toBe("21 others");
  expect(drawn.at(-1).cpu).toEqual([(21 * 22) / 2]);
  for (let i = 0; i < 700; i++) samples.tick(2 + i, [[1, 1, 1]]);
  expect(samples.times.length).toBe(600);
  expect([...samples.lines.keys()]).toEqual([1]);
});

it("finds what can be opened in a line", () => {
  const text = 'see http://localhost:8000/a?b=1, (https://x.org/y). src/app.py:12:3 and File "/tmp/x.py", line 3, at 127.0.0.1:9000 or 12:30';
  const all = found(text).map(({ start, end, address, path, line }) => [text.slice(start, end), address ?? `${path}:${line}`]);
  expect(all).toEqual([
    ["http://localhost:8000/a?b=1", "http://localhost:8000/a?b=1"],
    ["https://x.org/y", "https://x.org/y"],
    ["127.0.0.1:9000", "http://127.0.0.1:9000"],
    ["src/app.py:12:3", "src/app.py:12"],
    ['File "/tmp/x.py", line 3', "/tmp/x.py:3"],
  ]);
  expect(found("javascript:alert(1) data:text/html,x")).toEqual([]);
});
