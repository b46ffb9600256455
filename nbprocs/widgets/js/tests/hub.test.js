import { afterEach, describe, expect, it } from "vitest";
import views from "../src/index.js";
import { frame, Model, tableSnapshot } from "./kernel.js";

let abort;

function page(...uids) {
  const model = new Model();
  model.role = "hub";
  abort = new AbortController();
  for (const uid of uids) output(uid);
  views.initialize({ model, signal: abort.signal });
  return model;
}

/** What the notebook renders for one output. */
function output(uid, place = document.body.appendChild(document.createElement("div"))) {
  place.className = "jp-OutputArea-output";
  place.innerHTML = `<div class="nb-hole nb-hole-${uid}"></div><div class="nb-rec-${uid}">record</div>`;
  return place;
}

const spec = (uid) => ({ uid, parts: [{ name: "table", kind: "table" }] });
const hidden = (uid) => [...document.querySelectorAll("style")].some((style) => style.textContent.includes(`.nb-rec-${uid}`));
const settled = () => new Promise((resolve) => setTimeout(resolve));

function welcome(model, ...uids) {
  model.say({ views: Object.fromEntries(uids.map((uid) => [uid, spec(uid)])) });
  for (const hello of model.sent.filter((m) => m.do === "hello"))
    model.say({ v: hello.v, n: 0, to: hello.view, s: { table: tableSnapshot([{ name: `of-${hello.v}` }]) } });
}

afterEach(() => {
  abort.abort();
  document.body.replaceChildren();
});

describe("the hub", () => {
  it("says hello to what it knows already, and shows it when the kernel has answered", async () => {
    const model = new Model();
    model.role = "hub";
    model.specs = { a: spec("a"), gone: spec("gone") };
    abort = new AbortController();
    for (const uid of ["a", "gone", "other"]) output(uid);
    views.initialize({ model, signal: abort.signal });
    expect(model.sent.map((m) => [m.do, m.v])).toEqual([
      ["hub", undefined],
      ["hello", "a"],
      ["hello", "gone"],
    ]);
    expect([document.querySelector(".nb-view"), hidden("a")]).toEqual([null, false]);
    model.say({ v: "gone", closed: true });
    welcome(model, "a");
    await frame();
    expect(model.sent.filter((m) => m.do === "hello").length).toBe(2);
    expect(document.querySelectorAll(".nb-view").length).toBe(1);
    expect(document.querySelector(".nb-hole-a .nb-c-name b").textContent).toBe("of-a");
    expect(document.querySelector(".nb-hole-gone").textContent).toBe("");
  });

  it("shows records until the kernel says that it knows them", async () => {
    const model = page("a", "b");
    expect(model.sent).toEqual([{ do: "hub" }]);
    expect(document.querySelector(".nb-view")).toBeNull();
    welcome(model, "a");
    await frame();
    expect(document.querySelectorAll(".nb-view").length).toBe(1);
    expect(document.querySelector(".nb-hole-a .nb-c-name b").textContent).toBe("of-a");
    expect([hidden("a"), hidden("b")]).toEqual([true, false]);
  });

  it("puts the same element into a hole that was rendered anew, with what is typed, scrolled and focused", async () => {
    const model = page("a");
    welcome(model, "a");
    await frame();
    const place = document.querySelector(".jp-OutputArea-output");
    const node = place.querySelector(".nb-view");
    const filter = node.querySelector(".nb-filter");
    filter.focus();
    filter.value = "typed";
    const body = node.querySelector(".nb-body");
    body.scrollTop = 90;
    body.dispatchEvent(new Event("scroll"));
    output("a", place);
    body.scrollTop = 0;
    await settled();
    expect(place.querySelector(".nb-view")).toBe(node);
    expect(document.activeElement).toBe(filter);
    expect(body.scrollTop).toBe(90);
    expect(model.sent.filter((m) => m.do === "hello").length).toBe(1);
  });

  it("fills what comes later, and each of two outputs of one view", async () => {
    const model = page("a");
    welcome(model, "a");
    output("a");
    output("c");
    await settled();
    expect(document.querySelectorAll(".nb-view").length).toBe(2);
    model.say({ views: { c: spec("c") } });
    expect(document.querySelectorAll(".nb-view").length).toBe(3);
    expect(new Set(model.sent.filter((m) => m.do === "hello").map((m) => m.view)).size).toBe(3);
  });

  it("shows the record again when a view is closed, and says so", async () => {
    const model = page("a", "b");
    welcome(model, "a", "b");
    await frame();
    model.say({ v: "a", closed: true });
    expect([hidden("a"), hidden("b")]).toEqual([false, true]);
    expect(document.querySelector(".nb-hole-a").textContent).toContain("closed");
    expect(document.querySelectorAll(".nb-view").length).toBe(1);
  });

  it("goes when its kernel goes", async () => {
    const model = page("a");
    welcome(model, "a");
    await frame();
    model.comm_live_update();
    expect(document.querySelector(".nb-view")).toBeNull();
    expect(document.querySelector(".nb-hole-a").textContent).toContain("gone; below is its record");
    expect(hidden("a")).toBe(false);
    expect(document.querySelectorAll("style").length).toBe(0);
    output("a");
    await settled();
    expect(document.querySelector(".nb-view")).toBeNull();
  });

  it("goes when its notebook was closed, and leaves the page's next notebook to the next hub", async () => {
    const model = page("a");
    model.widget_manager = { context: { isDisposed: false } };
    welcome(model, "a");
    await frame();
    model.widget_manager.context.isDisposed = true;
    document.body.replaceChildren();
    output("a"); // the same notebook, opened again with another kernel
    await settled();
    expect([document.querySelector(".nb-view"), hidden("a")]).toEqual([null, false]);
  });

  it("ends the element of an output that replaces another's", async () => {
    const model = page("a");
    welcome(model, "a", "b");
    await frame();
    output("b", document.querySelector(".jp-OutputArea-output"));
    await settled();
    expect(model.sent.filter((m) => m.do === "bye").map((m) => m.v)).toEqual(["a"]);
    expect(document.querySelectorAll(".nb-view").length).toBe(1);
  });
});
