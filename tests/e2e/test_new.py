"""headrace as people get it: a wheel, alone in an environment; a project made with it; a model of a table."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import sysconfig
import time
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest

from headrace import services
from headrace.settings import Settings
from tests.conftest import free_port
from tests.flows.conftest import eventually
from tests.flows.test_up import answers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the commands' folder of an environment that has the wheel, and not this checkout."""
    folder = tmp_path_factory.mktemp("installed")
    uv = [sys.executable, "-m", "uv"]
    build = [*uv, "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "-o", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    python = folder / "env/bin/python"
    install = [*uv, "pip", "install", "--python", str(python), "--no-deps", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    # What it depends on is what these tests depend on, without the `.pth` that leads to this checkout.
    (packages,) = (folder / "env/lib").glob("python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "env/bin"


class Shell:
    """Somebody who types commands, in some folder."""

    def __init__(self, bin_: Path, folder: Path) -> None:
        self.bin, self.folder = bin_, folder
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("HEADRACE", "PREFECT", "PYTHONPATH"))
        }
        port = {"PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api", "COLUMNS": "200"}
        self.env = kept | port | {"HEADRACE_SERVE_PORT": str(free_port())}

    def __call__(self, *command: str, code: int = 0, cwd: Path | None = None) -> str:
        program, *rest = command
        typed = [str(self.bin / program), *rest]
        done = subprocess.run(
            typed,
            cwd=cwd or self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def shell(installed: Path, tmp_path: Path) -> Shell:
    return Shell(installed, tmp_path)


def test_the_wheel_is_headrace_alone(installed: Path, shell: Shell) -> None:
    where = "import headrace, sys; print(headrace.__file__)"
    assert str(installed.parent) in shell("python", "-c", where)
    for part in ("flows", "pipelines", "features", "validations", "deployments"):
        told = subprocess.run(
            [str(installed / "python"), "-c", f"import {part}"], cwd=shell.folder, env=shell.env, check=False
        )
        assert told.returncode == 1
    assert "headrace 0" in shell("headrace", "--version")
    assert "nor has a folder above it" in shell("headrace", "status", code=1)


def test_a_project_is_made_whole_and_passes_its_tests_at_once(shell: Shell) -> None:
    said = shell("headrace", "init", "shop")
    assert "headrace new" in said
    shop = shell.folder / "shop"
    assert {path.name for path in shop.iterdir()} >= {
        *("flows", "features", "validations", "pipelines", "deployments", "tests", "prefect.yaml"),
        *("pyproject.toml", "Makefile", "README.md", ".gitignore", ".gitlab-ci.yml", ".github"),
    }
    assert "9 passed" in shell("python", "-m", "pytest", "-q", cwd=shop)
    shell("python", "-m", "ruff", "check", ".", cwd=shop)
    shell(
        "python", "-m", "ruff", "format", "--check", "pipelines", "features", "validations", "tests", cwd=shop
    )
    assert "is not empty" in shell("headrace", "init", "shop", code=1)
    assert "cannot be called" in shell("headrace", "init", "2 shops", code=1)
    assert not (shell.folder / "2 shops").exists()


def test_a_newer_headrace_is_shown_first_and_leaves_what_was_changed_here(
    shell: Shell, installed: Path
) -> None:
    shell("headrace", "init", "shop", "--bare")
    shop = shell.folder / "shop"
    below = shop / "flows"
    assert "Nothing is newer" in shell("headrace", "upgrade", cwd=below)
    (newer,) = installed.parent.glob("lib/python*/site-packages/headrace/template/flows")
    kept = {file: file.read_bytes() for file in newer.glob("*.py")}
    try:
        for name in ("score.py", "train.py"):
            (newer / name).write_bytes(kept[newer / name] + b"# newer\n")
        (newer / "extra.py").write_text("# new\n")
        (newer / "tune.py").unlink()
        (below / "train.py").write_text("# mine\n")
        said = shell("headrace", "upgrade", cwd=below)
        assert "flows/score.py: changed" in said
        assert "+# newer" in said
        assert "flows/extra.py: new" in said
        assert "flows/tune.py: gone" in said
        assert "flows/train.py: changed here and there" in said
        assert "# newer" not in (below / "score.py").read_text()
        shell("headrace", "upgrade", "--write", cwd=below)
        assert (below / "score.py").read_bytes() == kept[newer / "score.py"] + b"# newer\n"
        assert (below / "train.py").read_text() == "# mine\n"
        assert (below / "train.py.new").read_bytes() == kept[newer / "train.py"] + b"# newer\n"
        assert ((below / "extra.py").exists(), (below / "tune.py").exists()) == (True, False)
        assert "Nothing is newer" in shell("headrace", "upgrade", cwd=below)
    finally:
        (newer / "extra.py").unlink(missing_ok=True)
        for file, content in kept.items():
            file.write_bytes(content)


def orders(file: Path) -> None:
    """Write orders as a shop's software does: in German, with what came of each beside it."""
    rng, count = np.random.default_rng(0), 8_000
    at = [
        datetime(2024, 1, 1) + timedelta(seconds=int(s))
        for s in np.sort(rng.integers(0, 140 * 86_400, count))
    ]
    who, price = rng.integers(0, 200, count), rng.gamma(3, 20, count)
    back = rng.normal(size=200)[who] + 0.02 * (price - 60) + rng.logistic(size=count) > 1
    lines = ["Nr;Bestellt;Kunde;Preis (€);Bemerkung;Erstattet am;Zurück"]
    for n in range(count):
        refund = f"{at[n] + timedelta(days=9):%d.%m.%Y %H:%M}" if back[n] else ""
        cells = (n + 70_000, f"{at[n]:%d.%m.%Y %H:%M}", f"K{who[n]:03}", f"{price[n]:.2f}".replace(".", ","))
        lines.append(";".join(map(str, (*cells, '"""so;\nso"""', refund, "ja" if back[n] else "nein"))))
    file.write_bytes(("\ufeff" + "\n".join([*lines, *lines[1:30]])).encode())


ASKED = ("--data", "orders.csv", "--target", "Zurück", "--known-after", "10d", "--entity", "Kunde")


class Returns(Shell):
    """A shop that has made a pipeline of its orders; ``said`` is what it was told."""

    @property
    def shop(self) -> Path:
        return self.folder / "shop"

    said: str


@pytest.fixture(scope="module")
def returns(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Returns:
    shell = Returns(installed, tmp_path_factory.mktemp("returns"))
    shell("headrace", "init", "shop", "--bare")
    (shell.shop / "data").mkdir()
    orders(shell.shop / "data/orders.csv")
    shell.said = shell("headrace", "new", "returns", *ASKED, "--time", "Bestellt", cwd=shell.shop / "data")
    return shell


def test_a_table_becomes_a_model_that_answers_and_is_watched(
    returns: Returns, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, said = returns.shop, returns.said
    assert "it is later than `Bestellt` in 100% of rows" in said
    assert "29 rows are exact copies" in said
    assert "version 1 released" in said
    answer = json.loads(next(line for line in said.splitlines() if line.startswith('{"model"')))
    assert (answer["model"], answer["version"]) == ("returns", 1)
    assert 0 < answer["predictions"][0]["probability"] < 1
    assert answer["predictions"][0]["missing"] == []

    (status,) = json.loads(returns("headrace", "status", "returns", "--json", cwd=shop))
    assert status["pipeline"] == "returns"
    assert status["champion"]["version"] == 1
    assert len(status["windows"]) >= 2
    assert "3 passed" in returns("python", "-m", "pytest", "-q", cwd=shop)
    returns("python", "-m", "ruff", "check", ".", cwd=shop)
    returns("python", "-m", "ruff", "format", "--check", "pipelines", "features", "validations", cwd=shop)
    again = returns("headrace", "new", "returns", *ASKED, code=1, cwd=shop / "data")
    assert "there is one of that name" in again

    for name, value in {"HEADRACE_HOME": str(shop / ".headrace"), **returns.env}.items():
        if name.startswith(("HEADRACE", "PREFECT")):
            monkeypatch.setenv(name, value)
    settings = Settings()
    with services.running([services.prefect_server(settings)], settings):
        assert "cycle/returns" in returns("headrace", "deploy", cwd=shop)


def test_a_model_is_taken_away_as_open_files(returns: Returns, tmp_path: Path) -> None:
    """Read by MLflow and by its framework's own package; the predictions are those of the holdout."""
    said = returns("headrace", "models", "export", "returns", "../../taken", cwd=returns.shop / "data")
    assert "training.parquet" in said
    taken = returns.folder / "taken"
    assert {path.name for path in taken.iterdir()} == {"model", "training.parquet", "card.md", "about.json"}
    code = """
import json
import mlflow, mlflow.sklearn, mlflow.xgboost
import pandas as pd
about = json.load(open("about.json"))
rows = pd.read_parquet("training.parquet")
held_out = rows[rows["span"] == "holdout"]
model = mlflow.pyfunc.load_model("model")
named = [column.name for column in model.metadata.get_input_schema()]
probability = model.predict(held_out[named])["probability"].to_numpy()
truth = (held_out["label"] == "ja").to_numpy()
brier = ((probability - truth) ** 2).mean()
assert abs(brier - about["scores"]["brier"]) < 1e-9, (brier, about["scores"])
flavours = {"sklearn": mlflow.sklearn, "xgboost": mlflow.xgboost}
assert flavours[about["trainer"]].load_model("model")
"""
    returns("python", "-c", code, cwd=taken)
    assert "is there already" in returns(
        "headrace", "models", "export", "returns", str(taken), cwd=returns.shop, code=1
    )


def test_what_answers_needs_none_of_what_flows_do(returns: Returns, installed: Path, tmp_path: Path) -> None:
    """The wheel without an extra, as in the image that serves, in an environment of its own."""
    (wheel,) = installed.parents[1].glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    light = Shell(tmp_path / "env/bin", returns.shop)
    install = [sys.executable, "-m", "uv", "pip", "install", "--python", str(light.bin / "python")]
    lock = ["--constraint", str(ROOT / "requirements.lock")]
    subprocess.run([*install, *lock, str(wheel)], check=True, capture_output=True)
    left_out = ("prefect", "great_expectations", "evidently", "torch", "optuna", "distributed")
    code = f"import importlib.util as u; print([u.find_spec(name) for name in {left_out}])"
    assert light("python", "-c", code).strip() == str([None] * len(left_out))

    serve = [str(light.bin / "headrace"), "serve", "returns"]
    page = f"http://127.0.0.1:{light.env['HEADRACE_SERVE_PORT']}"
    with subprocess.Popen(serve, cwd=returns.shop, env=light.env, stdout=subprocess.DEVNULL) as serving:
        try:
            eventually(lambda: answers(f"{page}/readyz"), seconds=120)
            path = "/v1/returns/predict"
            described = httpx.get(f"{page}/openapi.json", timeout=60).json()["paths"][path]["post"]
            example = described["requestBody"]["content"]["application/json"]["example"]
            answer = httpx.post(page + path, json=example, timeout=60)
            assert answer.status_code == 200, answer.text
            assert 0 < answer.json()["predictions"][0]["probability"] < 1
        finally:
            serving.terminate()
    assert "pip install 'headrace[pipelines]'" in light("headrace", "up", code=1)
    assert "`evidently` is not installed here" in light("headrace", "dashboards", code=1)
    assert "to answer with champions" in light("headrace", "doctor", "--json")


def test_all_of_it_is_brought_back_elsewhere_as_it_was(returns: Returns) -> None:
    """Also after a backup that was killed; the home of before is gone, and nothing refers to it."""
    shop, saved = returns.shop, returns.folder / "saved"
    before = returns("headrace", "status", "returns", "--json", cwd=shop)
    killed = subprocess.Popen(
        [str(returns.bin / "headrace"), "backup", str(saved)], cwd=shop, env=returns.env
    )
    while not [*returns.folder.glob(".saved-*/saved/lake/*")] and killed.poll() is None:
        time.sleep(0.01)
    killed.kill()
    assert killed.wait() != 0
    assert not saved.exists()
    assert "tables" in returns("headrace", "backup", "../../saved", cwd=shop / "data")
    assert "is there already" in returns("headrace", "backup", str(saved), cwd=shop, code=1)

    (shop / ".headrace").rename(returns.folder / "lost")
    elsewhere = returns.folder / "elsewhere" / "home"
    returns.env["HEADRACE_HOME"] = str(elsewhere)
    try:
        said = returns("headrace", "restore", str(saved), cwd=shop)
        assert "IDENTICAL" in said
        assert "raw/returns" in said
        assert returns("headrace", "status", "returns", "--json", cwd=shop) == before
        assert "no" not in returns("headrace", "verify", "returns", cwd=shop).split()
        assert "IDENTICAL" in returns("headrace", "reproduce", "returns@champion", cwd=shop)
        assert "is there already" in returns("headrace", "restore", str(saved), cwd=shop, code=1)

        returns.env["HEADRACE_HOME"] = str(returns.folder / "third")
        next((saved / "lake/raw/returns").rglob("*.parquet")).unlink()
        said = returns("headrace", "restore", str(saved), cwd=shop, code=1)
        assert "IDENTICAL" not in said
        assert "raw/returns" in said
    finally:
        del returns.env["HEADRACE_HOME"]
        (returns.folder / "lost").rename(shop / ".headrace")
    assert "has no backup.json" in returns("headrace", "restore", str(shop), cwd=shop, code=1)


def test_at_a_terminal_it_asks_for_what_was_left_out(shell: Shell) -> None:
    shell("headrace", "init", "shop", "--bare")
    orders(shell.folder / "shop" / "orders.csv")
    typed = ["Bestellt", "10d", "Kunde", "Bemerkung"]
    keyboard, screen = pty.openpty()
    command = [str(shell.bin / "headrace"), "new", "returns", "--data", "orders.csv", "--target", "Zurück"]
    asked = subprocess.Popen(
        [*command, "--no-run"],
        cwd=shell.folder / "shop",
        env=shell.env,
        stdin=screen,
        stdout=subprocess.PIPE,
        text=True,
    )
    os.write(keyboard, "".join(f"{line}\n" for line in typed).encode())
    said, _ = asked.communicate(timeout=120)
    os.close(keyboard)
    os.close(screen)
    assert asked.returncode == 0, said
    for question in (
        "When is the question asked?",
        "How long after",
        "Whose history",
        "Which columns are filled in",
    ):
        assert question in said
    pipeline = (shell.folder / "shop/pipelines/returns.py").read_text()
    assert "INTERVAL 10 DAY" in pipeline
    assert "Bemerkung: it is only known afterwards, as you say" in pipeline
    assert "entities=[entity, window]" in (shell.folder / "shop/features/returns.py").read_text()


def test_a_table_without_a_time_or_a_relation_is_no_model(shell: Shell) -> None:
    shell("headrace", "init", "shop", "--bare")
    shop, rng = shell.folder / "shop", np.random.default_rng(0)
    rows = "\n".join(
        f"{x:.4f},{y}" for x, y in zip(rng.normal(size=2_500), rng.integers(0, 2, 2_500), strict=True)
    )
    (shop / "coins.csv").write_text(f"weight,heads\n{rows}\n")
    said = shell("headrace", "new", "coins", "--data", "coins.csv", "--target", "heads", code=1, cwd=shop)
    assert "no column says: rows are dealt into days" in said
    assert "No model was released: none is proven better than a guess" in said
