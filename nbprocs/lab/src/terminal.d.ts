// What src/terminal.js exports: a copy of nbprocs/widgets/static/terminal.js, made by the build.
export class Terminal {
  constructor(options: Record<string, unknown>);
  open(host: HTMLElement): void;
  loadAddon(addon: object): void;
  write(data: string | Uint8Array): void;
  dispose(): void;
}
export class FitAddon {
  fit(): void;
}
export const css: string;
