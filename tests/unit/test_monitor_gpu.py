"""GPU figures from a double of nvidia-ml-py: there is no card where these tests run."""

import math
from types import SimpleNamespace

from nbprocs.monitor.gpu import Gpu

MIB = 1 << 20


class FakeNvml:
    """Two cards; process 7 is on both, 8 on the second, whose driver does not tell its memory."""

    class NVMLError(Exception):
        pass

    def __init__(self):
        self.shut = 0
        self.asked = []

    def nvmlInit(self):  # noqa: N802 - its name
        pass

    def nvmlShutdown(self):  # noqa: N802
        self.shut += 1
        return []

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, device):  # noqa: N802
        found = [SimpleNamespace(pid=7, usedGpuMemory=(100 + device) * MIB)]
        return found + [SimpleNamespace(pid=8, usedGpuMemory=None)] * device

    def nvmlDeviceGetGraphicsRunningProcesses(self, device):  # noqa: N802
        raise self.NVMLError("not supported")

    def nvmlDeviceGetProcessUtilization(self, device, since):  # noqa: N802
        self.asked.append((device, since))
        if device == 0:
            raise self.NVMLError("not found")
        return [SimpleNamespace(pid=7, smUtil=30, timeStamp=1000), SimpleNamespace(pid=7, smUtil=50, timeStamp=2000)]


def test_memory_and_load_of_each_process():
    library = FakeNvml()
    gpu = Gpu(library=library)
    found = gpu.read()
    assert found[7] == (201.0, 40.0)
    assert math.isnan(found[8][0])
    gpu.read()
    assert (1, 2000) in library.asked  # only what is newer than the last look
    gpu.close()
    assert library.shut == 1


def test_without_a_card_or_the_library_there_is_nothing():
    assert Gpu(library=None).read() == {}
    assert Gpu(library="no_such_module_at_all").read() == {}
    broken = SimpleNamespace(nvmlInit=lambda: 1 / 0)
    gpu = Gpu(library=broken)
    assert not gpu.available
    assert gpu.read() == {}
    gpu.close()
