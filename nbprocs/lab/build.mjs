// Builds labextension/, beside install.json: the terminal of the output tab is the one that nbprocs' views carry already.
import { execFileSync } from "node:child_process";
import { copyFileSync, rmSync } from "node:fs";

copyFileSync("../widgets/static/terminal.js", "src/terminal.js");
rmSync("labextension", { recursive: true, force: true });
execFileSync("jupyter-builder", ["build", "."], { stdio: "inherit" });
