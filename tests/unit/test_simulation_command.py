"""`faceapp simulate`: its table, its plots, arrivals from a CSV file, and what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from celery_sqs.commands import main as framework
from celery_sqs.errors import ConfigurationError
from celery_sqs.simulation import report, workloads
from celery_sqs.simulation.world import Bound, World
from celery_sqs.simulation.world import Result as Run
from faceapp.cli import main


def faceapp(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["simulate", *arguments])


@pytest.fixture
def arrivals(tmp_path: Path) -> Path:
    path = tmp_path / "monday.csv"
    path.write_text("photo,seconds\n" + "".join(f"{n}.jpg,{10 + n / 10}\n" for n in range(40)))
    return path


def test_the_table_has_a_row_for_each_policy_and_workload(arrivals: Path) -> None:
    said = faceapp("--policy", "naive", "--policy", "keda", "--workload", str(arrivals), "--workload", "bursts-10")
    assert said.exit_code == 0, said.output
    lines = [re.split(r"\s{2,}", line) for line in said.output.splitlines()]
    assert [line[:2] for line in lines[-4:]] == [
        ["keda", "monday"],
        ["naive", "monday"],
        ["keda", "bursts-10"],
        ["naive", "bursts-10"],
    ]
    assert lines[-4][2] == "40"
    assert {len(line) for line in lines[-4:]} == {14}


def test_the_same_seed_prints_the_same_and_a_new_one_is_printed() -> None:
    first = faceapp("--workload", "bursts-10", "--seed", "4").output
    assert faceapp("--workload", "bursts-10", "--seed", "4").output == first
    assert first.startswith("seed 4;")
    assert faceapp("--workload", "bursts-10").output.startswith("seed ")


def test_the_bound_is_a_column(arrivals: Path) -> None:
    said = faceapp("--policy", "self-stop", "--workload", str(arrivals), "--bound", "--instances", "1")
    ratio = float(said.output.split()[-1])
    assert 1.0 <= ratio < 3


def test_plots_go_to_the_terminal_and_into_a_file(arrivals: Path, tmp_path: Path) -> None:
    path = tmp_path / "day.png"
    said = faceapp("--policy", "work/fast", "--workload", str(arrivals), "--plot", "--png", str(path), "--runs", "2")
    assert said.exit_code == 0, said.output
    assert "work/fast on monday" in said.output
    lines = said.output.splitlines()
    (visible,) = [line for line in lines if "messages: visible" in line]
    assert int(visible.split()[2]) == 40
    assert "█" in visible
    with Image.open(path) as image:
        colours = {colour for _, colour in image.getcolors(maxcolors=1 << 16) or []}
    assert {(9, 105, 218), (188, 76, 0)} <= colours


def test_a_plot_that_cannot_be_written_is_a_sentence(arrivals: Path, tmp_path: Path) -> None:
    said = faceapp("--workload", str(arrivals), "--png", str(tmp_path / "nowhere" / "day.png"))
    assert said.exit_code == 2
    assert "the plot cannot be written to" in said.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--policy", "wrok"), "there is no policy 'wrok' to simulate: there are work/fast,"),
        (("--workload", "tuesday"), "there is no workload 'tuesday': workloads are step,"),
        (("--faults", "rain"), "there is no fault 'rain': faults are lying-counts,"),
        (("--workload", "nowhere.csv"), "the arrivals in nowhere.csv cannot be read"),
        (("--instances", "0"), "Invalid value for '--instances'"),
        (("--slo", "soon"), "Invalid value for '--slo'"),
    ],
)
def test_what_cannot_be_simulated_is_refused(arguments: tuple[str, ...], sentence: str) -> None:
    said = faceapp(*arguments)
    assert said.exit_code == 2
    assert sentence in said.output


@pytest.mark.parametrize(
    "text", ["seconds\n3\n1\n2\n", "1\n2\n3\n", "Name, Seconds \na,1\nb,2.0\n\nc,3e0\n", "\ufeffseconds\n1\n2\n3\n"]
)
def test_arrivals_come_out_of_csv_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8")
    assert workloads.make(str(path), 1, World()).arrivals_s == (1, 2, 3)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no arrivals"),
        ("seconds\n", "has no arrivals"),
        ("time,photo\n1,a\n", "has no column 'seconds': its header is time, photo"),
        ("seconds\n1\nsoon\n", "line 3: 'soon' is not a time of arrival"),
        ("seconds\n-1\n", "line 2: '-1' is not a time of arrival"),
        ("seconds\nnan\n", "line 2: 'nan' is not a time of arrival"),
        ("seconds\ninf\n", "line 2: 'inf' is not a time of arrival"),
        ("photo,seconds\na,1\nb\n", "line 3: '' is not a time of arrival"),
        ("\udcff\n", "cannot be read"),
    ],
)
def test_a_csv_that_cannot_be_used_is_refused_with_its_line(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ConfigurationError, match=sentence):
        workloads.make(str(path), 1, World())


def a_run(policy: str, workload: str, *latencies_s: float, billed_s: float, messages: int | None = None) -> Run:
    return Run(
        policy=policy,
        workload=workload,
        seed=1,
        slo_s=120,
        messages=len(latencies_s) if messages is None else messages,
        latencies_s=latencies_s,
        done_s=latencies_s,
        dead_letters=0,
        billed_s=billed_s,
        launches=2,
        kills=1,
        losses=0,
        duplicates=0,
        end_s=300,
    )


def test_the_report_adds_up() -> None:
    runs = [
        a_run("ours", "a", 10, 20, 30, 130, billed_s=120),
        a_run("ours", "b", 50, billed_s=400, messages=2),
        a_run("theirs", "a", 10, billed_s=240),
        a_run("theirs", "b", 100, billed_s=200),
    ]
    bounds = [Bound(workload=name, seed=1, billed_s=100) for name in "ab"]
    overall = report.overall(report.rows(runs, bounds))
    ours, theirs = overall["ours"], overall["theirs"]
    first, second = ours.rows
    assert (first.mean_s, first.quantile_s(0.5), first.quantile_s(0.95)) == (47.5, 20, 130)
    assert (first.miss_share, second.miss_share, ours.miss_share) == (0.25, 0.5, 0.375)
    assert (first.ratio, ours.worst_ratio) == (1.2, 4.0)
    assert ours.ratio == pytest.approx((1.2 * 4.0) ** 0.5)
    assert ours.cost_over(theirs) == pytest.approx(1.0)
    assert ours.mean_over(theirs) == pytest.approx((4.75 * 0.5) ** 0.5)
    assert ours.message_mean_s == pytest.approx((10 + 20 + 30 + 130 + 50) / 5)
    assert ours.kills == 2
    cells = dict(zip(report.HEADER, first.cells(price_usd_per_h=3.6), strict=True))
    assert cells["$ / 1,000"] == "30.0000"
    assert cells["missed"] == "25.0 %"
    assert report.percent(0) == "0"
    assert report.percent(0.0004) == "0.04 %"


def test_it_is_the_frameworks_command_and_faceapps() -> None:
    arguments = ["simulate", "--workload", "bursts-10", "--seed", "4"]
    assert CliRunner().invoke(framework, arguments).output == CliRunner().invoke(main, arguments).output


@pytest.mark.parametrize("missing", ["numpy", "PIL", "rich"])
def test_without_its_extra_it_says_what_to_install(missing: str) -> None:
    code = f"import sys\nsys.modules[{missing!r}] = None\nfrom celery_sqs.commands import main\nmain(['simulate'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    [said] = done.stderr.splitlines()
    assert said.startswith(f"Error: The simulation needs {missing}")
    assert said.endswith("pip install '.[simulation]'.")
