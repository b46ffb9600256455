import { expect, it, vi } from "vitest";
import { copy, h } from "../src/dom.js";

it("leaves the focus where it was when it copies without the clipboard's interface", async () => {
  const input = h("input", { type: "text" });
  document.body.append(input);
  input.focus();
  vi.spyOn(navigator.clipboard, "writeText").mockRejectedValue(new Error("the page is not secure"));
  /** @type {string[]} */
  const taken = [];
  document.execCommand = () => Boolean(taken.push(/** @type {HTMLTextAreaElement} */ (document.activeElement).value));
  expect(await copy("some text")).toBe(true);
  expect(taken).toEqual(["some text"]);
  expect(document.activeElement).toBe(input);
  expect(document.querySelector("textarea")).toBe(null);
});
