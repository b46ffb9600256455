// Bundles src/ into ../static, which is what the wheel carries. `--check` builds into memory and fails when ../static differs.
import { readFileSync } from "node:fs";
import * as esbuild from "esbuild";

const check = process.argv.includes("--check");
const options = {
  entryPoints: { views: "src/index.js", terminal: "src/terminal.js", plot: "src/plot.js" },
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  charset: "utf8",
  legalComments: "eof", // the licences of what is bundled travel with it
  loader: { ".css": "text" },
  outdir: "../static",
  write: !check,
  logLevel: "warning",
};
const style = { ...options, entryPoints: { views: "src/views.css" }, loader: {} };

let stale = 0;
for (const job of [options, style]) {
  const result = await esbuild.build(job);
  for (const file of check ? result.outputFiles : []) {
    if (readFileSync(file.path, "utf8") !== file.text) {
      console.error(`${file.path} differs from a fresh build; run: npm run build`);
      stale += 1;
    }
  }
}
process.exit(stale ? 1 : 0);
