// The plugin: a section of the Running panel, a number in the status bar, commands, and the announcer. Every token is optional: Notebook 7
// lacks some of them on some of its pages, and a plugin that requires one would be absent without a word.
import { ICommandPalette, Notification as Toast } from "@jupyterlab/apputils";
import { INotebookTracker, NotebookActions } from "@jupyterlab/notebook";
import { IRunningSessionManagers } from "@jupyterlab/running";
import { IStatusBar } from "@jupyterlab/statusbar";
import { consoleIcon, terminalIcon } from "@jupyterlab/ui-components";
import { Widget } from "@lumino/widgets";
import { Announcer } from "./notify.js";
import { Processes } from "./model.js";
import { OutputTab, fromKernel, fromShim } from "./output.js";
import { detail, lives, running, title } from "./rows.js";
import { TEXTS } from "./texts.js";

/** @typedef {import("./rows.js").Process} Process */
/** @typedef {import("@jupyterlab/application").JupyterFrontEnd} App */

const ROW = "nbprocs-row:"; // before the key of a row, in an item's context

const COMMANDS = {
  stop: "nbprocs:stop",
  show: "nbprocs:show",
  output: "nbprocs:output",
  pause: "nbprocs:pause",
  resume: "nbprocs:resume",
  interrupt: "nbprocs:interrupt",
  copy: "nbprocs:copy",
  adopt: "nbprocs:adopt",
  refresh: "nbprocs:refresh",
  panel: "nbprocs:panel",
};

/** @type {import("@jupyterlab/application").JupyterFrontEndPlugin<void>} */
const plugin = {
  id: "nbprocs:processes",
  description: "The processes of all kernels, and the news of their ends.",
  autoStart: true,
  optional: [IRunningSessionManagers, IStatusBar, ICommandPalette, INotebookTracker],
  activate: (app, /** @type {any} */ managers, /** @type {any} */ statusBar, /** @type {any} */ palette, /** @type {any} */ tracker) => {
    const desk = new Panel(app, tracker);
    desk.addCommands(palette);
    if (managers) desk.addSection(managers);
    if (statusBar) desk.addStatus(statusBar);
    if (tracker) desk.listenTo(tracker);
  },
};

class Panel {
  /** @param {App} app @param {INotebookTracker | null} tracker */
  constructor(app, tracker) {
    this.app = app;
    this.tracker = tracker;
    this.processes = new Processes(app.serviceManager.serverSettings, () => this.seen());
    this.announcer = new Announcer((id) => {
      const row = this.processes.rows.find((candidate) => candidate.id === id);
      if (row) this.openOutput(row);
    });
  }

  /** Whether the Running panel is on screen. */
  seen() {
    if (!document.hidden && document.querySelector("#jp-running-sessions")) {
      const node = /** @type {HTMLElement} */ (document.querySelector("#jp-running-sessions"));
      return node.offsetParent !== null;
    }
    return false;
  }

  // -- what it shows

  /** @param {import("@jupyterlab/running").IRunningSessionManagers} managers */
  addSection(managers) {
    managers.add({
      name: TEXTS.section,
      running: () => this.processes.rows.map((row) => this.item(row)),
      shutdownAll: () => {
        for (const row of this.processes.rows.filter(lives)) void this.order(row, "stop");
      },
      refreshRunning: () => void this.processes.poll.refresh(),
      runningChanged: this.processes.changed,
      shutdownLabel: TEXTS.stop,
      shutdownAllLabel: TEXTS.stopAll,
      shutdownAllConfirmationText: TEXTS.stopAllQuestion,
    });
  }

  /** @param {Process} row */
  item(row) {
    const key = this.processes.key(row);
    return {
      label: () => row.name,
      labelTitle: () => title(row),
      detail: () => detail(row, Date.now() / 1000, this.processes.loads.get(key)),
      icon: () => (row.detached ? consoleIcon : terminalIcon),
      className: lives(row) ? "nbprocs-item" : "nbprocs-item nbprocs-dead",
      context: ROW + key,
      open: () => void this.show(row),
      ...(lives(row) && row.id ? { shutdown: () => void this.order(row, "stop") } : {}),
    };
  }

  /** @param {import("@jupyterlab/statusbar").IStatusBar} statusBar */
  addStatus(statusBar) {
    const item = new Widget({ node: document.createElement("button") });
    item.addClass("nbprocs-status");
    item.addClass("jp-StatusBar-TextItem");
    item.node.addEventListener("click", () => void this.app.commands.execute(COMMANDS.panel));
    const draw = () => {
      const n = running(this.processes.rows);
      item.node.textContent = TEXTS.running(n);
      item.node.title = TEXTS.runningTitle(n);
    };
    draw();
    statusBar.registerStatusItem("nbprocs:running", {
      align: "left",
      item,
      isActive: () => running(this.processes.rows) > 0,
      activeStateChanged: this.processes.changed,
    });
    this.processes.changed.connect(draw);
  }

  /** @param {INotebookTracker} tracker */
  listenTo(tracker) {
    // A kernel is asked for news when the server says that it has loaded nbprocs; a cell that ran may just have done that.
    this.processes.changed.connect(() => {
      const known = new Set(this.processes.kernels);
      const shown = [.../** @type {Iterable<any>} */ (this.app.shell.widgets("main"))]; // consoles, too
      tracker.forEach((panel) => void shown.push(panel));
      for (const widget of shown) {
        const kernel = widget.sessionContext?.session?.kernel;
        if (kernel && known.has(kernel.id)) this.announcer.listen(kernel);
      }
    });
    NotebookActions.executed.connect(() => {
      if (!document.hidden) void this.processes.poll.refresh();
    });
  }

  // -- commands

  /** The row that a context menu was opened on. @returns {Process | undefined} */
  hit() {
    const node = this.app.contextMenuHitTest((candidate) => Boolean(candidate.dataset.context?.startsWith(ROW)));
    return node ? this.processes.find(/** @type {string} */ (node.dataset.context).slice(ROW.length)) : undefined;
  }

  /** @param {ICommandPalette | null} palette */
  addCommands(palette) {
    /** @param {string} id @param {string} label @param {(row: Process) => void} act @param {(row: Process) => boolean} fits */
    const onRow = (id, label, act, fits) => {
      const fitting = () => {
        const row = this.hit();
        return row !== undefined && fits(row);
      };
      this.app.commands.addCommand(id, {
        label,
        describedBy: { args: null },
        isVisible: fitting,
        isEnabled: fitting,
        execute: () => {
          const row = this.hit();
          if (row) act(row);
        },
      });
    };
    const alive = (/** @type {Process} */ row) => lives(row) && Boolean(row.id);
    onRow(COMMANDS.stop, TEXTS.stop, (row) => void this.order(row, "stop"), alive);
    onRow(COMMANDS.pause, TEXTS.pause, (row) => void this.order(row, "pause"), (row) => alive(row) && !row.paused);
    onRow(COMMANDS.resume, TEXTS.resume, (row) => void this.order(row, "resume"), (row) => alive(row) && Boolean(row.paused));
    onRow(COMMANDS.interrupt, TEXTS.interrupt, (row) => void this.order(row, "interrupt"), alive);
    onRow(COMMANDS.show, TEXTS.show, (row) => void this.show(row), (row) => Boolean(row.path));
    onRow(COMMANDS.output, TEXTS.output, (row) => this.openOutput(row), (row) => Boolean(row.id));
    onRow(COMMANDS.copy, TEXTS.copy, (row) => void navigator.clipboard.writeText(row.command ?? ""), (row) => Boolean(row.command));
    onRow(COMMANDS.adopt, TEXTS.adopt, (row) => void this.adopt(row), (row) => row.detached && Boolean(this.tracker?.currentWidget));
    this.app.commands.addCommand(COMMANDS.refresh, { label: TEXTS.refresh, describedBy: { args: null }, execute: () => this.processes.poll.refresh() });
    this.app.commands.addCommand(COMMANDS.panel, {
      label: TEXTS.panel,
      describedBy: { args: null },
      execute: () => this.app.shell.activateById("jp-running-sessions"),
    });
    for (const command of [COMMANDS.refresh, COMMANDS.panel]) palette?.addItem({ command, category: TEXTS.category });
    Object.values(COMMANDS)
      .filter((command) => command !== COMMANDS.refresh && command !== COMMANDS.panel)
      .forEach((command, rank) => this.app.contextMenu.addItem({ command, selector: ".jp-RunningSessions-item.nbprocs-item", rank }));
  }

  /** @param {Process} row @param {string} op */
  async order(row, op) {
    try {
      await this.processes.order(row, op);
    } catch (error) {
      Toast.error(TEXTS.refused(op, row.name, error instanceof Error ? error.message : String(error)), { autoClose: 10000 });
    }
  }

  /** @param {Process} row */
  async show(row) {
    if (row.path && this.app.commands.hasCommand("docmanager:open")) await this.app.commands.execute("docmanager:open", { path: row.path });
    else this.openOutput(row);
  }

  /** @param {Process} row */
  openOutput(row) {
    const id = `nbprocs-output-${row.id}`;
    const open = [...this.app.shell.widgets("main")].find((widget) => widget.id === id);
    if (open) {
      this.app.shell.activateById(id);
      return;
    }
    const tab = new OutputTab(row, (started) => (row.detached ? fromShim(this.processes, started) : this.flowOf(row, started)));
    tab.id = id;
    this.app.shell.add(tab, "main");
    if (!tab.isAttached) this.app.shell.add(tab, "down"); // Notebook 7 has one document in its main area
    this.app.shell.activateById(id);
  }

  /** @param {Process} row @param {OutputTab} tab @returns {() => void} */
  flowOf(row, tab) {
    if (!row.kernel) {
      tab.say(TEXTS.noNotebook);
      return () => {};
    }
    const own = this.app.serviceManager.kernels.connectTo({ model: { id: row.kernel, name: "" }, handleComms: false }); // a notebook's may end before the tab
    const end = fromKernel(own, tab);
    return () => {
      void end().then(() => own.dispose());
    };
  }

  /** @param {Process} row */
  async adopt(row) {
    const panel = this.tracker?.currentWidget;
    if (!panel) return;
    const name = row.name.replace(/\W/g, "_").replace(/^(?=\d)/, "p");
    NotebookActions.insertBelow(panel.content);
    panel.content.activeCell?.model.sharedModel.setSource(`import nbprocs\n${name} = await nbprocs.adopt(${JSON.stringify(row.id)})\n${name}`);
    await NotebookActions.run(panel.content, panel.sessionContext);
  }
}

export default plugin;
