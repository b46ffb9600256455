// What the kernel says (contract.json, written by tests/unit/test_widgets_contract.py) is what the views understand.

import { readFileSync } from "node:fs";
import { afterEach, expect, it } from "vitest";
import views from "../src/index.js";
import { frame, Model } from "./kernel.js";

const { parts, refusal } = JSON.parse(readFileSync("tests/contract.json", "utf8"));
const latin1 = (text) => Uint8Array.from(text, (c) => c.charCodeAt(0));
let done;

afterEach(() => {
  done();
  document.body.replaceChildren();
});

const SEEN = { table: "reader", form: "true", charts: "CPU", pool: "worker-1", queue: "long", workers: "0 of 4 slots busy", pane: "reader" };

it.each(Object.entries(parts))("%s: the snapshot and each delta is understood", async (kind, { snapshot, deltas }) => {
  const model = new Model({ parts: [{ name: kind, kind }] });
  const el = document.body.appendChild(document.createElement("div"));
  done = views.render({ model, el });
  const view = model.last("hello").view;
  const part = (piece, key) => ({ [key]: { [kind]: piece.content, "": { [kind]: [0, piece.buffers.length] } } });
  model.say({ n: 0, to: view, ...part(snapshot, "s") }, snapshot.buffers.map(latin1));
  deltas.forEach((delta, i) => {
    model.say({ n: i + 1, ...part(delta, "p") }, delta.buffers.map(latin1));
  });
  await frame();
  expect(el.querySelector(".nb-notice").hidden, el.querySelector(".nb-notice").textContent).toBe(true);
  if (kind === "form") {
    const command = el.querySelector("input[role=combobox]");
    command.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowUp", bubbles: true }));
    expect(command.value).toBe(SEEN[kind]);
  } else expect(el.textContent).toContain(SEEN[kind]);
  expect(el.textContent).not.toMatch(/undefined|NaN|\[object/);
});

it("a refusal has a text and a field", () => {
  done = () => {};
  expect(refusal).toMatchObject({ ok: false, field: "command", error: expect.stringContaining("no such program") });
});
