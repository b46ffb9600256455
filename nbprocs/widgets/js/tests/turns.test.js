import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { Turns } from "../src/turns.js";

/** @type {string[]} */
let drawn;
const drawer = (name) => ({ flush: () => drawn.push(`${name}@${performance.now()}`) });

beforeEach(() => {
  drawn = [];
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"], now: 0 });
});
afterEach(() => vi.useRealTimers());

it("draws one that was quiet at once, also while others talk", () => {
  const turns = new Turns();
  const [a, b] = ["a", "b"].map(drawer);
  turns.want(a);
  expect(drawn).toEqual(["a@0"]);
  turns.want(a);
  turns.want(b);
  expect(drawn).toEqual(["a@0", "b@0"]);
  vi.advanceTimersByTime(5000);
  turns.want(a);
  expect(drawn.at(-1)).toBe("a@5000");
});

it("draws those that talk together, and the more there are, the less often", () => {
  for (const [count, most] of [
    [1, 10],
    [5, 4],
    [50, 2],
  ]) {
    const turns = new Turns();
    const all = Array.from({ length: count }, (_, i) => drawer(i));
    for (let time = 0; time < 2000; time += 100) {
      for (const one of all) turns.want(one);
      vi.advanceTimersByTime(100);
    }
    drawn = [];
    const began = performance.now();
    for (let time = 0; time < 2000; time += 100) {
      for (const one of all) turns.want(one);
      vi.advanceTimersByTime(100);
    }
    const times = new Set(drawn.map((text) => text.split("@")[1]));
    expect(times.size / 2).toBeLessThanOrEqual(most);
    expect(times.size / 2).toBeGreaterThan(most / 2);
    expect(drawn.length).toBe(times.size * count); // all of them each time
    expect(performance.now()).toBe(began + 2000);
  }
});

it("forgets who is gone", () => {
  const turns = new Turns();
  const one = drawer("one");
  turns.want(one);
  turns.want(one);
  turns.forget(one);
  vi.advanceTimersByTime(1000);
  expect(drawn).toEqual(["one@0"]);
});
