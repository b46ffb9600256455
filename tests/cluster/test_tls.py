"""A cluster behind TLS, with certificates of an authority of the test's own, by Dask's Security."""

import shutil
import subprocess

import pytest

from nbprocs import DaskBackend, StartupFailed, TaskScheduler
from tests.cluster.real import RealCluster, warmed


def signed(folder, name, authority=None):
    """A key and a certificate, signed by itself or by the authority: their paths."""
    key, cert = folder / f"{name}.key", folder / f"{name}.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    words += ["-subj", f"/CN={name}", "-keyout", str(key), "-out", str(cert)]
    if authority is not None:
        words += ["-CA", str(authority[1]), "-CAkey", str(authority[0]), "-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run(words, check=True, capture_output=True)
    return key, cert


@pytest.fixture(scope="module")
def papers(tmp_path_factory):
    """What Dask's configuration calls them: the authority, and one certificate for scheduler, workers and client."""
    if shutil.which("openssl") is None:
        pytest.skip("the command openssl is not there")
    folder = tmp_path_factory.mktemp("papers")
    authority = signed(folder, "authority")
    key, cert = signed(folder, "node", authority)
    return {"tls_ca_file": str(authority[1]), "tls_client_cert": str(cert), "tls_client_key": str(key)}


@pytest.fixture(scope="module")
def behind_tls(papers, tmp_path_factory):
    env = {"DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True", "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": papers["tls_ca_file"]}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        env |= {f"DASK_DISTRIBUTED__COMM__TLS__{role}__{what}": papers[f"tls_client_{what.lower()}"] for what in ("CERT", "KEY")}
    with RealCluster(tmp_path_factory.mktemp("tls"), env=env) as cluster:
        cluster.start_scheduler("--protocol", "tls").start_worker("one")
        yield warmed(cluster, tasks=2, security=secure(papers))


def secure(papers):
    from distributed import Security

    return Security(**papers, require_encryption=True)


@pytest.mark.parametrize("proxy", [False, True], ids=["direct", "by way of the scheduler"])
async def test_a_queue_runs_behind_tls_and_secrets_may_travel(behind_tls, papers, monkeypatch, proxy):
    monkeypatch.setattr("nbprocs.cluster.dask._LOCAL", ())  # as if the worker were on another host
    monkeypatch.setattr("socket.gethostname", lambda: "another-host")
    assert behind_tls.address.startswith("tls://")
    async with TaskScheduler(backend=DaskBackend(behind_tls.address, security=secure(papers), proxy=proxy)) as sch:
        result = await sch.schedule("sh", "-c", "echo $API_TOKEN", env_vars={"API_TOKEN": "abc"})
        assert result.text == "abc\n"
        assert await sch.schedule(sum, [1, 2, 3]) == 6


async def test_a_client_of_the_users_lends_its_papers(behind_tls, papers):
    from distributed import Client

    async with (
        Client(behind_tls.address, security=secure(papers), asynchronous=True, set_as_default=False) as client,
        TaskScheduler(backend=DaskBackend(client)) as sch,
    ):
        assert (await sch.schedule("echo", "in")).text == "in\n"


async def test_without_papers_nobody_gets_in(behind_tls, monkeypatch):
    monkeypatch.setattr("nbprocs.cluster.dask._CONNECT", 2.0)
    async with TaskScheduler(backend=DaskBackend(behind_tls.address)) as sch:
        with pytest.raises(StartupFailed, match="no Dask scheduler answers at tls://"):
            await sch.schedule("true")
