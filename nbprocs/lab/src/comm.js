// A comm of the panel's own, by hand, over any connection to a kernel.
//
// JupyterLab gives the comms of a kernel to the first of a page's connections to it, and to no other. One that was made for a tab of output took them
// from a notebook that was opened after it: no widget came to life there. It also closed every comm that the kernel opened, having no widgets of its
// own. And a second notebook on one kernel has none to give. So the panel takes none of them: its few messages are made and read here.
import { KernelMessage } from "@jupyterlab/services";
import { UUID } from "@lumino/coreutils";

/** @typedef {import("@jupyterlab/services").Kernel.IKernelConnection} Kernel */

const ENDS = ["restarting", "autorestarting", "dead"];

/**
 * Open a comm and hear it; returns what closes it. `closed` is called once, when the kernel closed it, ended or was restarted.
 * @param {Kernel} kernel @param {string} target @param {import("@lumino/coreutils").JSONObject} data
 * @param {{heard: (data: any, buffers: (ArrayBuffer | ArrayBufferView)[]) => void, closed: () => void}} on
 * @returns {() => Promise<void>}
 */
export function openComm(kernel, target, data, on) {
  const id = UUID.uuid4();
  /** @param {Kernel} _ @param {KernelMessage.IIOPubMessage} message */
  const listen = (_, message) => {
    if (KernelMessage.isCommMsgMsg(message)) {
      if (message.content.comm_id === id) on.heard(message.content.data, message.buffers ?? []);
    } else if (KernelMessage.isCommCloseMsg(message) && message.content.comm_id === id) over();
  };
  /** @param {Kernel} _ @param {string} status */
  const turn = (_, status) => {
    if (ENDS.includes(status)) over();
  };
  const quiet = () => {
    kernel.iopubMessage.disconnect(listen);
    kernel.statusChanged.disconnect(turn);
  };
  const over = () => {
    quiet();
    on.closed();
  };
  const about = { channel: /** @type {"shell"} */ ("shell"), session: kernel.clientId, username: kernel.username };
  kernel.iopubMessage.connect(listen);
  kernel.statusChanged.connect(turn);
  const opened = beside(kernel, (subshellId) =>
    KernelMessage.createMessage({ ...about, subshellId, msgType: "comm_open", content: { comm_id: id, target_name: target, data } }),
  ).catch(() => {}); // it ended or was restarted meanwhile
  const close = () => {
    if (kernel.isDisposed || kernel.status === "dead") return;
    kernel.sendShellMessage(KernelMessage.createMessage({ ...about, msgType: "comm_close", content: { comm_id: id, data: {} } }));
  };
  return () => {
    quiet();
    return opened.then(close);
  };
}

/**
 * Say one thing to a kernel, where it can without waiting for the cell that runs: in a subshell, which is there for no longer than that takes.
 * @param {Kernel} kernel @param {(subshell: string | null) => KernelMessage.IShellMessage<"comm_open">} message
 */
async function beside(kernel, message) {
  await kernel.info;
  if (!kernel.supportsSubshells) {
    kernel.sendShellMessage(message(null));
    return;
  }
  const { subshell_id } = (await kernel.requestCreateSubshell({}).done).content;
  await kernel.sendShellMessage(message(subshell_id)).done;
  await kernel.requestDeleteSubshell({ subshell_id }).done;
}
