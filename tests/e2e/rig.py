"""An installation as it is run by many: each part a server of its own, several twice, on several machines.

Two API servers of Prefect behind one port, with PostgreSQL and Redis between them; MLflow with passwords
and its artifacts in an object store; a Dask scheduler with two workers; two machines that run flows and
two that serve models behind one port. A machine is a home: no two of them share a folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from headrace import services
from headrace.services import Service
from headrace.serving.keys import Keys
from tests.conftest import free_port

USER, PASSWORD = "ops", "opensesame-0b9f"
DATABASES = ("prefect", "mlflow", "logins", "headrace", "feast")
MIGRATED = {"PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false"}
BALANCER = """
defaults
  mode http
  timeout connect 2s
  timeout client 1h
  timeout server 1h
  option redispatch
  default-server check inter 500ms fall 2 rise 1
"""


def wanted(*programs: str) -> None:
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")


@dataclass(frozen=True)
class Rig:
    """Where it listens, and what its parts are; ``folder`` holds the state of each."""

    folder: Path
    ports: Mapping[str, int]
    key: str = ""
    """With what models are asked."""

    @classmethod
    @contextmanager
    def laid(cls) -> Iterator[Rig]:
        wanted("haproxy", "redis-server")
        if not cls._postgres():
            pytest.skip("PostgreSQL is not installed (Debian package `postgresql`)")
        names = (
            *("postgres", "redis", "s3", "mlflow", "dask", "prefect", "prefect-1", "prefect-2"),
            *("serve", "serve-1", "serve-2"),
        )
        # Not below pytest's own folder, which is for one user's eyes only, and PostgreSQL's is another.
        with tempfile.TemporaryDirectory(prefix="headrace-rig-") as folder:
            Path(folder).chmod(0o755)
            key = Keys(Path(folder, "keys.json")).add("shop", ("pumps",), ("predict",))
            yield cls(Path(folder), {name: free_port() for name in names}, key)

    @staticmethod
    def _postgres() -> Path | None:
        return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)

    def at(self, name: str) -> str:
        return f"127.0.0.1:{self.ports[name]}"

    def database(self, name: str, driver: str = "psycopg") -> str:
        return f"postgresql+{driver}://headrace:{PASSWORD}@{self.at('postgres')}/{name}"

    @property
    def told_to_machines(self) -> dict[str, str]:
        """What every machine is told: where the others are, and how to log in there."""
        return {
            "HEADRACE_LAKE": "s3://headrace/lake",
            "HEADRACE_LEDGER": self.database("headrace"),
            "HEADRACE_MLFLOW": f"http://{USER}:{PASSWORD}@{self.at('mlflow')}",
            "HEADRACE_DASK_ADDRESS": f"tcp://{self.at('dask')}",
            "FEAST_REGISTRY": self.database("feast"),
            "FEAST_ONLINE": f"{self.at('redis')},db=1,password={PASSWORD}",
            "HEADRACE_API_KEYS": str(self.folder / "keys.json"),
            "PREFECT_API_URL": f"http://{self.at('prefect')}/api",
            "PREFECT_API_AUTH_STRING": f"{USER}:{PASSWORD}",
            **self.store,
        }

    @property
    def store(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://{self.at('s3')}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": USER,
            "AWS_SECRET_ACCESS_KEY": PASSWORD,
        }

    def machine(self, name: str) -> dict[str, str]:
        """Return the environment of a machine of its own."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        return self.told_to_machines | {"HEADRACE_HOME": str(home), "PREFECT_HOME": str(home / "prefect")}

    @property
    def foundation(self) -> list[Service]:
        """What keeps all state: PostgreSQL, Redis, an object store."""
        data, redis = self.folder / "postgres", self.folder / "redis"
        redis.mkdir(exist_ok=True)
        binaries = self._postgres()
        assert binaries
        as_user: list[str] = []
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]
        if not data.exists():
            data.mkdir(mode=0o700)
            if as_user:
                shutil.chown(data, "postgres", "postgres")
            given = self.folder / "password"
            given.write_text(PASSWORD)
            init = [*as_user, str(binaries / "initdb"), "-D", str(data), "-U", "headrace"]
            init += ["-A", "scram-sha-256", "--pwfile", str(given)]
            subprocess.run(init, check=True, stdout=subprocess.DEVNULL, cwd="/")
        options = (
            f"-c listen_addresses=127.0.0.1 -c port={self.ports['postgres']} -c fsync=off "
            "-c unix_socket_directories= -c max_connections=300"
        )
        return [
            Service("postgres", [*as_user, str(binaries / "postgres"), "-D", str(data), *options.split()]),
            Service(
                "redis",
                [
                    *("redis-server", "--bind", "127.0.0.1", "--port", str(self.ports["redis"])),
                    *("--dir", str(redis), "--save", "", "--appendonly", "yes", "--requirepass", PASSWORD),
                ],
            ),
            Service(
                "s3",
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.ports["s3"])],
                health=f"http://{self.at('s3')}/moto-api/",
            ),
        ]

    def found(self) -> None:
        """Make what the servers want there: databases with their tables, and a bucket."""
        import boto3

        with psycopg.connect(self.database("postgres").replace("+psycopg", ""), autocommit=True) as con:
            for name in DATABASES:
                con.execute(f"CREATE DATABASE {name}")
        boto3.client("s3", endpoint_url=self.store["AWS_ENDPOINT_URL"]).create_bucket(Bucket="headrace")
        migrate = [*services.PREFECT, "server", "database", "upgrade", "-y"]
        subprocess.run(migrate, check=True, env=os.environ | self.told_to_prefect, stdout=subprocess.DEVNULL)

    @property
    def told_to_prefect(self) -> dict[str, str]:
        """What Prefect's servers are told so that there may be several of them."""
        redis = "prefect_redis"
        return {
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": self.database("prefect", "asyncpg"),
            "PREFECT_MESSAGING_BROKER": f"{redis}.messaging",
            "PREFECT_MESSAGING_CACHE": f"{redis}.messaging",
            "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": f"{redis}.ordering",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": f"{redis}.lease_storage",
            "PREFECT_REDIS_MESSAGING_URL": f"redis://:{PASSWORD}@{self.at('redis')}/0",
            "PREFECT_SERVER_DOCKET_URL": f"redis://:{PASSWORD}@{self.at('redis')}/2",
            "PREFECT_SERVER_API_AUTH_STRING": f"{USER}:{PASSWORD}",
        }

    @property
    def servers(self) -> list[Service]:
        """What flows talk to, and the balancer."""
        logins = self.folder / "logins.ini"
        logins.write_text(
            "[mlflow]\ndefault_permission = NO_PERMISSIONS\nadmin_username = ops\n"
            f"database_uri = {self.database('logins')}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            "grant_default_workspace_access = false\nauth_cache_ttl_seconds = 60\n"
        )
        logins.chmod(0o600)
        mlflow = Service(
            "mlflow",
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"),
                *("--port", str(self.ports["mlflow"]), "--app-name", "basic-auth"),
                *("--artifacts-destination", "s3://headrace/mlflow"),
            ],
            health=f"http://{self.at('mlflow')}/health",
            env=self.store
            | {
                "MLFLOW_BACKEND_STORE_URI": self.database("mlflow"),
                "MLFLOW_AUTH_CONFIG_PATH": str(logins),
                "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
                "MLFLOW_FLASK_SERVER_SECRET_KEY": "for the tests alone",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_S3_ENDPOINT_URL": self.store["AWS_ENDPOINT_URL"],
            },
        )
        background = Service(
            "prefect services",
            [*services.PREFECT, "server", "services", "start"],
            env=self.told_to_prefect | MIGRATED,
        )
        return [mlflow, background, *map(self.api, (1, 2)), self.balancer]

    def api(self, number: int) -> Service:
        port = str(self.ports[f"prefect-{number}"])
        command = [
            *services.PREFECT,
            "server",
            "start",
            "--no-services",
            "--host",
            "127.0.0.1",
            "--port",
            port,
        ]
        health = f"http://127.0.0.1:{port}/api/health"
        # All would write down at once what blocks there are.
        blocks = {"PREFECT_API_BLOCKS_REGISTER_ON_START": str(number == 1).lower()}
        return Service(
            f"prefect {number}", command, health=health, env=self.told_to_prefect | MIGRATED | blocks
        )

    @property
    def balancer(self) -> Service:
        config = self.folder / "haproxy.cfg"
        parts = [BALANCER]
        for name, check in (("prefect", "/api/health"), ("serve", "/readyz")):
            parts.append(f"listen {name}\n  bind {self.at(name)}\n  option httpchk GET {check}\n")
            parts += [f"  server {name}-{n} {self.at(f'{name}-{n}')}\n" for n in (1, 2)]
        config.write_text("".join(parts))
        return Service("balancer", ["haproxy", "-db", "-f", str(config)])

    @property
    def dask(self) -> list[Service]:
        dask = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
        scheduler = Service(
            "dask",
            [
                *(*dask, "--host", "127.0.0.1", "--port", str(self.ports["dask"])),
                "--no-dashboard",
            ],
        )
        return [scheduler, *map(self.dask_worker, (1, 2))]

    def dask_worker(self, number: int) -> Service:
        return Service(
            f"dask worker {number}",
            [
                *(sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://{self.at('dask')}"),
                *("--name", f"worker-{number}", "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"),
                *("--local-directory", str(self.folder / f"dask-{number}")),
            ],
            env=self.machine(f"dask-{number}"),
        )

    def worker(self, number: int) -> Service:
        command = [*services.PREFECT, "worker", "start", "--pool", "headrace", "--type", "process"]
        env = self.machine(f"worker-{number}") | {"PREFECT_WORKER_QUERY_SECONDS": "2"}
        return Service(f"worker {number}", [*command, "--name", f"worker-{number}"], env=env)

    def serve(self, number: int) -> Service:
        port = str(self.ports[f"serve-{number}"])
        env = self.machine(f"serve-{number}") | {"HEADRACE_SERVE_PORT": port}
        health = f"http://127.0.0.1:{port}/readyz"
        return Service(f"serve {number}", [*services.HEADRACE, "serve"], health=health, env=env)

    def told(self) -> str:
        """Return all that was written down: the logs of all machines, and what the databases hold."""
        logs = [file.read_text(errors="replace") for file in self.folder.glob("*/logs/*")]
        binaries = self._postgres()
        assert binaries
        dump = [str(binaries / "pg_dump"), "--data-only", "--dbname"]
        for name in DATABASES:
            url = self.database(name).replace("+psycopg", "")
            logs.append(subprocess.run([*dump, url], check=True, capture_output=True, text=True).stdout)
        return "".join(logs)
