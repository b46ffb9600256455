"""The comm ``nbprocs.notify`` of a real kernel: what a front end hears of an end."""

import uuid

from tests.waiting import until


def notices(kernel, comm_id):
    """All that came over one comm."""
    comms = [message["content"] for _, message in kernel.messages if message["msg_type"] == "comm_msg"]
    return [notice for content in comms if content["comm_id"] == comm_id for notice in content["data"]["notices"]]


def open_comm(kernel):
    comm_id = uuid.uuid4().hex
    content = {"comm_id": comm_id, "target_name": "nbprocs.notify", "data": {}}
    kernel.client.shell_channel.send(kernel.client.session.msg("comm_open", content))
    return comm_id


async def test_a_front_end_hears_of_each_end_and_of_what_it_missed(kernel):
    await kernel.run("import nbprocs\npm = nbprocs.ProcessManager()\nr = await pm.run('echo', 'early', name='early', notify=True)")
    comm_id = open_comm(kernel)
    await until(lambda: notices(kernel, comm_id), within=20, what="the notice from before the comm")
    await kernel.run("%load_ext nbprocs")
    await kernel.run("%%proc sh --notify --name cell\necho from a cell; exit 3")
    await until(lambda: len(notices(kernel, comm_id)) == 2, within=20, what="a second notice")
    early, cell = notices(kernel, comm_id)
    assert (early["name"], early["level"], early["body"], early["exit_code"]) == ("early", "success", "early", 0)
    assert cell["title"].startswith("cell failed (exit status 3) after ")
    assert (cell["level"], cell["body"], cell["kind"]) == ("error", "from a cell", "process")
    assert set(early) >= {"title", "body", "level", "process_id", "at"}
    kernel.client.shell_channel.send(kernel.client.session.msg("comm_close", {"comm_id": comm_id, "data": {}}))
    await kernel.run("r = await pm.run('true', name='late', notify=True)")
    assert len(notices(kernel, comm_id)) == 2
