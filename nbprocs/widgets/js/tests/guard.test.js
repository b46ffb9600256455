import { Terminal } from "@xterm/xterm";
import { expect, it } from "vitest";
import { guard } from "../src/guard.js";

function terminal() {
  const term = new Terminal({ cols: 80, rows: 24, scrollback: 100, allowProposedApi: true, convertEol: true });
  guard(term);
  return term;
}

const written = (term, text) => new Promise((resolve) => term.write(text, resolve));
const line = (term, at) => term.buffer.active.getLine(term.buffer.active.baseY + at).translateToString(true);

it.each([..."@LMPSTXZIbABCDEFGHJKadefgmr`"].map((c) => [c]).concat([[" @"], [" A"], ["'}"], ["'~"]]))(
  "a huge parameter of CSI %s costs nothing",
  async (final) => {
    const term = terminal();
    const began = performance.now();
    for (const n of ["999999999", "2147483647", "4294967295", "99999999999999999999"])
      await written(term, `one\r\ntwo\x1b[${n}${final}\x9b${n};${n}${final}\x1b[9999\n9999${final}`);
    await written(term, "\x1b[2J\x1b[m\x1b[Hstill here");
    expect(line(term, 0)).toBe("still here");
    expect(performance.now() - began).toBeLessThan(1500);
  },
);

it("does to the screen what a smaller number would do", async () => {
  const term = terminal();
  await written(term, "one\r\ntwo\r\nthree\x1b[2;1H\x1b[999999999M");
  expect([line(term, 0), line(term, 1), line(term, 2)]).toEqual(["one", "", ""]);
  await written(term, "\x1b[Hx\x1b[5b");
  expect(line(term, 0)).toBe("xxxxxx");
});

it("keeps some combining marks and drops the rest, also when the cursor comes back for more", async () => {
  const term = terminal();
  await written(term, `e\u0301 a${"\u0301".repeat(200_000)}\x1b[m\u1160${"b\x1b[D\u0301".repeat(2000)}`);
  await written(term, "\r\nnext");
  expect(line(term, 0)).toContain("e\u0301 ");
  expect(line(term, 0).length).toBeLessThan(300);
  expect(line(term, 1)).toBe("next");
});

it("goes on after an error in the parser", async () => {
  const term = terminal();
  term.parser.registerCsiHandler({ final: "y" }, () => {
    throw new Error("on purpose");
  });
  await written(term, "before \x1b[1y lost");
  await written(term, "\r\nafter");
  expect(line(term, 0)).toContain("before");
  expect(line(term, 1)).toBe("after");
});

it("lets no output take the terminal over", async () => {
  const term = terminal();
  await written(term, "\x1b[?1049hhere\x1b]0;title\x07\x1b[?1000h\x1b]52;c;aGk=\x07");
  expect(term.buffer.active.type).toBe("normal");
  expect(term.modes.mouseTrackingMode).toBe("none");
  expect(line(term, 0)).toBe("here");
});
