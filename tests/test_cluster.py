import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event, get_ident

import dask
import pytest
from dask import config
from dask.distributed import LocalCluster

from headrace import cluster as module
from headrace.cluster import WorkerLost, cluster, crew, each, gpus, on_each
from headrace.errors import ServerUnreachable
from tests.conftest import free_port


@pytest.fixture(scope="module")
def pair():
    with cluster(workers=2) as client:
        yield client


def test_by_default_the_worker_is_this_process():
    with cluster() as client:
        (worker,) = crew(client)

        assert worker.address.startswith("inproc://")
        assert client.submit(os.getpid).result() == os.getpid()


def test_clusters_that_overlap_leave_dask_as_it_was_whichever_ends_first():
    before = dict(config.config)

    first, second = cluster(), cluster()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)

    assert config.config == before
    assert dask.delayed(divmod)(7, 2).compute() == (3, 1)


def test_several_workers_are_processes_that_only_this_machine_can_reach(pair):
    workers = crew(pair)

    pids = on_each(pair, workers, os.getpid, [(), ()])

    assert len({*pids, os.getpid()}) == 3
    assert all(worker.address.startswith("tcp://127.0.0.1:") for worker in workers)
    assert pair.scheduler.address.startswith("tcp://127.0.0.1:")


def test_each_worker_gets_its_own_arguments_in_a_fixed_order(pair):
    workers = crew(pair)

    assert [worker.name for worker in workers] == ["0", "1"]
    assert on_each(pair, workers, divmod, [(7, 2), (9, 4)]) == [(3, 1), (2, 1)]


def test_workers_without_a_gpu_of_their_own_train_on_processors():
    def some(*devices):
        return [module.Worker(str(i), f"tcp://h:{i}", 1, device) for i, device in enumerate(devices)]

    assert gpus(some("a", "b"))
    assert not gpus(some("a", "a"))
    assert not gpus(some("a", ""))
    assert module.without_gpu(some("a", "b"), asked=True) == module.without_gpu(some("", "")) == ""
    assert "no worker has one" in module.without_gpu(some("", ""), asked=True)
    assert "2 workers have 1 GPUs between them" in module.without_gpu(some("a", "a"))


def test_more_than_nine_workers_sort_as_xgboost_sorts_them():
    eleven = LocalCluster(n_workers=11, processes=False, threads_per_worker=1, dashboard_address=None)
    with eleven as local, cluster(local.scheduler_address) as client:
        names = [worker.name for worker in crew(client)]

    assert names == sorted(map(str, range(11)), key=lambda name: f"[xgboost.dask-{name}]")


def test_an_address_is_joined_and_left_running():
    with LocalCluster(
        n_workers=1, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address=None
    ) as local:
        for _ in range(2):
            with cluster(local.scheduler_address) as client:
                assert client.submit(sum, [1, 2]).result() == 3


def test_a_scheduler_that_does_not_answer_is_reported_quickly(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 1)
    started = time.monotonic()

    with (
        pytest.raises(ServerUnreachable, match=r"answer at tcp://127\.0\.0\.1:1:"),
        cluster("tcp://127.0.0.1:1"),
    ):
        pass

    assert time.monotonic() - started < 20  # Dask's own patience is 30 s


def test_an_address_that_makes_no_sense_is_reported_the_same_way():
    with pytest.raises(ServerUnreachable, match="nonsense"), cluster("nonsense://x:1"):
        pass


def test_a_scheduler_without_workers_is_reported(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 1)
    empty = LocalCluster(n_workers=0, processes=False, dashboard_address=None)
    with (
        empty as local,
        cluster(local.scheduler_address) as client,
        pytest.raises(ServerUnreachable, match="has none"),
    ):
        crew(client)


def test_work_waits_for_workers_for_a_while_and_then_says_that_there_are_none(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    monkeypatch.setattr(module, "WORKERLESS", 3.0)
    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=None) as there:
        address = there.scheduler_address
        with pytest.raises(ServerUnreachable, match=r"A Dask worker .* the scheduler has none"):
            list(each(divmod, [(7, 2)], address))
        with ThreadPoolExecutor() as aside:
            done = aside.submit(lambda: dict(each(divmod, [(7, 2), (9, 4)], address)))
            time.sleep(1)
            there.scale(1)  # one that is back in time takes the work
            assert done.result() == {0: (3, 1), 1: (2, 1)}


def test_a_scheduler_that_dies_in_the_middle_is_told(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 1)
    command = [
        sys.executable,
        "-m",
        "distributed.cli.dask_scheduler",
        "--host",
        "127.0.0.1",
        "--no-dashboard",
    ]
    port = free_port()

    def start():
        return subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.DEVNULL)

    first = start()
    with ThreadPoolExecutor() as aside:
        done = aside.submit(lambda: list(each(divmod, [(7, 2)], f"tcp://127.0.0.1:{port}")))
        time.sleep(4)
        first.kill()
        first.wait()
        second = start()
        with pytest.raises(ServerUnreachable, match=r"The Dask scheduler .* broke off in the middle"):
            done.result()
    second.terminate()
    second.wait()


def test_a_worker_that_dies_fails_collective_work_instead_of_stalling_it(pair):
    started = time.monotonic()

    with pytest.raises(WorkerLost):
        on_each(pair, crew(pair), _die_or_wait, [(True,), (False,)])

    assert time.monotonic() - started < 20


def _die_or_wait(die):
    if die:
        os._exit(1)
    time.sleep(2)


def test_clusters_that_are_wanted_at_once_by_threads_all_start():
    def work(number):
        with cluster() as client:
            return client.submit(lambda x: x + 1, number).result(timeout=30)

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(work, range(12))) == list(range(1, 13))


BEGUN, GO_ON, OVER = Event(), Event(), Event()


def test_one_that_is_told_to_end_does_not_wait_for_what_its_threads_are_at():
    with pytest.raises(KeyboardInterrupt), cluster() as client:
        task = client.submit(_linger)
        assert BEGUN.wait(60)
        assert not task.done()
        raise KeyboardInterrupt

    assert not OVER.is_set()
    GO_ON.set()


def _linger():
    BEGUN.set()
    GO_ON.wait(25)
    OVER.set()


@pytest.mark.parametrize("pieces", [2, 3])
def test_a_failure_keeps_no_other_piece_from_being_done_in_a_cluster_or_without(pieces):
    done = []

    with pytest.raises(ZeroDivisionError):
        for place, result in each(divmod, [(1, divisor) for divisor in range(pieces)]):
            done.append((place, result))

    assert sorted(done) == [(n, divmod(1, n)) for n in range(1, pieces)]


def test_few_pieces_are_done_in_this_thread():
    assert dict(each(get_ident, [(), ()])) == {0: get_ident(), 1: get_ident()}
    assert get_ident() not in dict(each(get_ident, [(), (), ()])).values()
