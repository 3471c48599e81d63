"""Tables: statistics over seed blocks, and what a reader sees of them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.report.latencies import latency_table, latency_text
from bench.report.leaderboard import leaderboard
from bench.report.quality import convention_notes, footnotes, grid_notes, quality_table, saturated, to_text
from bench.report.tables import aggregate, describe, plus_minus, protocols, ranked, write_results
from students.conventions import CONVENTIONS
from students.errors import FewstepError

SOLVERS = [
    "ddim", "ddpm", "euler", "heun", "dpm2", "edm_stochastic", "dpm_solver_2", "dpm_solver_3", "dpm_solver_fast",
    "dpm_solver_pp", "dpm_solver_pp_3m", "dpm_solver_pp_2s", "dpm_solver_pp_sde", "unipc", "unipc_bh1", "deis",
    "pndm", "ipndm", "ipndm_v", "euler_maruyama", "predictor_corrector", "adaptive_sde", "rk45",
    "diffusers:DDIMScheduler", "diffusers:UniPCMultistepScheduler",
]  # fmt: skip
BETTER = {
    "fd_digits_cnn": "lower", "kid_digits_cnn": "lower", "precision_digits_cnn": "higher",
    "recall_digits_cnn": "higher", "memorised": "lower",
}  # fmt: skip
TWO_EVALUATIONS = {"heun", "dpm2", "edm_stochastic", "predictor_corrector", "dpm_solver_pp_2s"}


def make_cells(folder: Path, blocks=3, samples=899, vectors=False) -> pd.DataFrame:
    """Made-up cells of 25 solvers that look like a real sweep, with stored samples under `folder`."""
    rng = np.random.default_rng(0)
    rows = []

    def add(student, steps, block, value, status="ok", reason="", nfe=None):
        path = folder / f"{student}-{steps}-{block}".replace(":", "_")
        row = {
            "task": "digits", "student": student, "family": "real" if student == "real" else "solver", "steps": steps,
            "guidance": 1.0, "dtype": "float32", "seed_block": block, "samples": samples, "status": status,
            "reason": reason, "device": "cpu x2", "cell": path.name, "path": str(path), "setup_nfe": 0.0,
        }  # fmt: skip
        if status == "ok":
            row |= {
                "nfe": float(nfe), "fd_digits_cnn": value, "kid_digits_cnn": value / 900,
                "precision_digits_cnn": 0.97 - value / 400, "recall_digits_cnn": 0.95 - value / 300, "memorised": 0.0,
                "latency_ms": 0.4 + 1.1 * nfe * (1 + 0.1 * rng.random()), "latency_p90_ms": 0.6 + 1.3 * nfe,
                "throughput_batch": 256, "throughput_ms": 0.3 * nfe, "throughput_p90_ms": 0.33 * nfe,
                "network_ms": 1.0 * nfe, "peak_memory_mb": 412.5,
            }  # fmt: skip
            if block == 0:
                path.mkdir(parents=True)
                np.savez(path / "samples.npz", samples=_samples(rng, value, vectors))
        rows.append(row)

    add("real", 0, 0, 5.21, nfe=0)
    for i, student in enumerate(SOLVERS):
        order = 1 + 1.4 * ((i * 7) % 25) / 25
        for steps in (1, 2, 4, 8, 16):
            double = student in TWO_EVALUATIONS
            nfe = 2 * steps - 1 if double else steps * (1.07 if student == "adaptive_sde" and steps > 1 else 1)
            base = 4.1 + 158 * np.exp(-((nfe - 1) ** 0.8) * 0.3 * order) + 0.1 * (i % 7)
            for block in range(blocks):
                if student == "heun" and steps == 1:
                    add(student, steps, block, None, "unsupported", "heun cannot run in 1 steps; it supports 2 and up")
                elif student == "pndm" and steps < 4:
                    add(student, steps, block, None, "unsupported", "pndm needs 4 steps or more")
                elif student == "rk45" and steps == 16 and block == blocks - 1:
                    add(student, steps, block, None, "failed", "rk45 made images that are not finite")
                else:
                    value = base if steps == 1 else base * (1 + 0.04 * rng.standard_normal())
                    add(student, steps, block, value, nfe=nfe)
    return pd.DataFrame(rows)


def _samples(rng, value, vectors) -> np.ndarray:
    if vectors:
        angle = rng.integers(0, 8, 400) * np.pi / 4
        return np.stack([np.cos(angle), np.sin(angle)], 1) + (0.08 + value / 400) * rng.standard_normal((400, 2))
    y, x = np.mgrid[:8, :8]
    ring = np.exp(-((np.hypot(y - 3.5, x - 3.5) - np.arange(16)[:, None, None] / 5) ** 2))
    return (255 * np.clip(ring + value / 300 * rng.standard_normal(ring.shape), 0, 1)).astype(np.uint8)[:, None]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return make_cells(tmp_path_factory.mktemp("run"))


def tiny(*rows, **common) -> pd.DataFrame:
    """Cells from (student, steps, block, fd)."""
    plain = {
        "task": "t", "family": "solver", "guidance": 1.0, "dtype": "float32", "samples": 100, "status": "ok",
        "reason": "", "device": "cpu", "latency_ms": 1.0, "cell": "c", "path": "nowhere",
    }  # fmt: skip
    keys = ("student", "steps", "seed_block", "fd")
    return pd.DataFrame([plain | dict(zip(keys, row, strict=True)) | {"nfe": float(row[1])} | common for row in rows])


LOWER = {"fd": "lower"}


def test_statistics_over_blocks():
    table = aggregate(tiny(("ddim", 4, 0, 1.0), ("ddim", 4, 1, 2.0), ("ddim", 4, 2, 6.0), ("ddim", 8, 0, 5.0)))
    four, eight = table.to_dict("records")
    assert (four["fd"], four["fd_min"], four["blocks"]) == (3.0, 1.0, 3)
    assert four["fd_std"] == pytest.approx(7**0.5, rel=1e-14)  # ddof 1: (4 + 1 + 9) / 2
    assert (eight["fd"], eight["fd_min"], eight["blocks"]) == (5.0, 5.0, 1)
    assert np.isnan(eight["fd_std"])


@pytest.mark.parametrize("key, other", [("samples", 50), ("guidance", 2.0), ("dtype", "bfloat16")])
def test_protocols_are_never_mixed(key, other):
    rows = ("ddim", 4, 0, 1.0), ("ddim", 4, 1, 2.0)
    cells = pd.concat([tiny(*rows), tiny(*rows, **{key: other})])
    assert list(aggregate(cells)["fd"]) == [1.5, 1.5]
    assert [set(group[key]) for group in protocols(cells)] == [{tiny(*rows)[key][0]}, {other}]
    assert to_text(cells, "fd", LOWER).count("best first") == 2


def test_published_numbers_are_refused():
    with pytest.raises(FewstepError, match="published"):
        aggregate(tiny(("ddim", 4, 0, 1.0), ("ddim", 4, 1, 2.0), family="published"))


def test_one_bad_block_takes_the_number_away():
    cells = tiny(("ddim", 4, 0, 1.0), ("ddim", 4, 1, 2.0))
    cells.loc[1, ["status", "reason"]] = "failed", "not finite"
    row = aggregate(cells).iloc[0]
    assert (row["status"], row["reason"], row["blocks"]) == ("failed", "not finite", 2)
    assert np.isnan(row["fd"])


def test_times_of_two_devices_are_not_averaged():
    cells = tiny(("ddim", 4, 0, 1.0), ("ddim", 4, 1, 2.0))
    cells.loc[1, "device"] = "gpu"
    row = aggregate(cells).iloc[0]
    assert (row["fd"], row["device"]) == (1.5, "cpu + gpu")
    assert np.isnan(row["latency_ms"])


def test_the_floor_of_a_protocol_has_no_more_samples():
    real = tiny(("real", 0, 0, 0.5), ("real", 0, 0, 0.7), family="real").assign(samples=[90, 40])
    cells = pd.concat([tiny(("ddim", 4, 0, 1.0)), tiny(("ddim", 4, 0, 2.0), samples=50), real])
    floors = [group.loc[group["student"] == "real", "fd"].tolist() for group in protocols(cells)]
    assert floors == [[0.5], [0.7]]


def test_students_are_ordered_at_the_largest_common_steps():
    cells = tiny(("a", 4, 0, 1.0), ("b", 4, 0, 2.0), ("c", 4, 0, 1.5), ("a", 8, 0, 9.0), ("b", 8, 0, 1.0))
    assert ranked(aggregate(cells), "fd", LOWER) == (["a", "c", "b"], 4)
    assert ranked(aggregate(cells), "fd", {"fd": "higher"}) == (["b", "c", "a"], 4)


def test_quality_table(sweep):
    table = quality_table(sweep, "fd_digits_cnn", BETTER)
    assert list(table.columns.levels[0]) == ["1 step", "16 steps", "2 steps", "4 steps", "8 steps"]
    assert table.index[-1] == "real"
    assert (table.loc["real"].xs("value ± se", level=1) == "5.21").all()
    at_8 = sweep[(sweep["student"] == "unipc") & (sweep["steps"] == 8)]["fd_digits_cnn"]
    assert table.loc["unipc", ("8 steps", "value ± se")] == plus_minus(at_8.mean(), at_8.std() / 3**0.5)
    assert list(table.loc["heun"].xs("NFE", level=1)) == ["", "3", "7", "15", "31"]
    assert table.loc["heun", ("1 step", "value ± se")] == "–"
    assert table.loc["rk45", ("16 steps", "value ± se")] == "failed"
    means = aggregate(sweep).query("steps == 8").set_index("student")["fd_digits_cnn"]
    assert list(table.index[:-1]) == list(means.sort_values().index)


def test_missing_cells_are_explained(sweep):
    assert footnotes(sweep, "fd_digits_cnn", BETTER) == [
        "heun 1: it supports 2 and up",
        "pndm 1, 2: pndm needs 4 steps or more",
        "rk45 16: rk45 made images that are not finite",
    ]


def test_a_floor_of_fewer_samples_is_said(sweep):
    cells = sweep[(sweep["student"] == "real") | (sweep["student"] == "ddim")].copy()
    assert footnotes(cells, "fd_digits_cnn", BETTER) == []
    cells.loc[cells["student"] == "real", "samples"] = 500
    assert footnotes(cells, "fd_digits_cnn", BETTER) == [
        "real: of 500 held-out samples; with fewer samples the distances are larger"
    ]


def test_the_floor_of_fewer_samples_is_carried_to_as_many(sweep):
    cells = sweep[(sweep["student"] == "real") | (sweep["student"] == "ddim")].copy()
    cells.loc[cells["student"] == "real", "samples"] = 500
    left_out = [5.21 + 0.1 / 19 * (500 / 899), *[5.21 + 0.1 / 19 * (500 / 899)] * 19]  # a bias of 0.1 * 500 / 899
    cells["fd_digits_cnn_jackknife"] = [left_out if name == "real" else None for name in cells["student"]]
    added = 0.1 * 500 / 899 * (1 - 500 / 899)
    assert footnotes(cells, "fd_digits_cnn", BETTER)[0].endswith(f"{5.21 - added:.2f} ± 0.00 of 899, by the jackknife")


def teacher_cells() -> pd.DataFrame:
    """The teacher at 1.0, a solver above it at 2 steps and below it at 4, a student."""
    rows = tiny(("s", 2, 0, 2.0), ("s", 4, 0, 0.9), ("d", 2, 0, 1.5), ("d", 4, 0, 1.2), ("teacher", 32, 0, 1.0))
    rows["family"] = ["solver", "solver", "distilled", "distilled", "teacher"]
    return rows.assign(teacher_pixel=[0.3, 0.2, 0.5, 0.4, 0.0])


def test_the_teacher_is_a_row_of_its_own_and_says_where_solvers_have_reached_it():
    better, cells = {"fd": "lower", "teacher_pixel": "lower"}, teacher_cells()
    assert saturated(cells, aggregate(cells), "fd", better) == 4
    table = quality_table(cells, "fd", better)
    assert list(table.index) == ["s", "d", "teacher"]
    assert (table.loc["teacher"].xs("value", level=1) == "1.00").all()
    assert list(table["4 steps"]["off teacher"]) == ["0.200", "0.400", ""] and "off teacher" not in table["2 steps"]
    assert "from 4 steps on the best solver is level" in footnotes(cells, "fd", better)[0]
    for lacking in (cells[cells["steps"] != 4], cells[cells["student"] != "teacher"]):
        assert saturated(lacking, aggregate(lacking), "fd", better) is None
    board = leaderboard([(cells, "fd", better, {})])
    assert "| teacher |" not in board and "The teacher in 32 evaluations (100 samples): fd 1.00" in board


def test_text_names_the_protocol_and_fits(sweep):
    text = to_text(sweep, "fd_digits_cnn", BETTER)
    assert "899 samples, 3 seed blocks, guidance 1, float32" in text
    assert "best first at 8 steps" in text
    assert all(note in text for note in footnotes(sweep, "fd_digits_cnn", BETTER))
    assert max(map(len, text.splitlines())) <= 122
    assert describe(tiny(("ddim", 4, 0, 1.0))).startswith("100 samples, 1 seed block,")


@pytest.mark.parametrize(
    "mean, std, text",
    [
        (163.2, 2.4, "163 ± 2"), (14.83, 0.31, "14.8 ± 0.3"), (4.5312, 0.0612, "4.53 ± 0.06"), (5.2, np.nan, "5.20"),
        (103.42, 0.31, "103.4 ± 0.3"), (0.00123456, 0.00012, "0.00123 ± 0.00012"), (0.0, 0.0, "0 ± 0"),
        (-0.5, 0.1, "-0.500 ± 0.100"), (np.nan, np.nan, "n/a"),
    ],
)  # fmt: skip
def test_plus_minus(mean, std, text):
    assert plus_minus(mean, std) == text


def test_aggregates_do_not_depend_on_the_order_in_which_cells_were_done(sweep):
    table = aggregate(sweep)
    for seed in range(5):
        pd.testing.assert_frame_equal(aggregate(sweep.sample(frac=1, random_state=seed)), table, check_exact=True)


def test_csv_reads_back_what_was_aggregated(sweep, tmp_path):
    table = aggregate(sweep)
    back = pd.read_csv(write_results(sweep, tmp_path / "results.csv"), keep_default_na=False, na_values={"reason": []})
    numbers = list(table.select_dtypes("float"))
    assert list(back) == list(table) and len(back) == 1 + 25 * 5
    for name in numbers:
        np.testing.assert_array_equal(back[name].replace("", np.nan).astype(float), table[name])  # to the last bit
    assert list(back["reason"]) == list(table["reason"])


def test_latencies_stand_side_by_side_and_never_mix_devices(tmp_path):
    cells = make_cells(tmp_path).assign(throughput_ms=0.25, throughput_batch=256.0)
    table = latency_table(cells)
    assert set(table.index) == set(cells["student"]) - {"real"}
    assert {label for _, label in table} == {"batch 1", "in batch"} and "0.25" in set(table.iloc[0])
    elsewhere = cells.assign(device="gpu")
    text = latency_text(pd.concat([cells, elsewhere]))
    assert text.count("milliseconds an image") == 2 and "in a batch of 256" in text
    assert latency_text(cells.drop(columns=["latency_ms", "throughput_ms"])) == ""


def test_the_convention_of_a_student_is_said():
    names = ("heun", "heun:convention=edm", "ddim:eta=1,convention=trailing", "own:solver,convention=unheard")
    cells = tiny(*[(name, 4, 0, 1.0) for name in names])
    edm, trailing = CONVENTIONS["edm"], CONVENTIONS["trailing"]
    notes = [
        f"convention=edm: {edm.summary} ({edm.source})",
        f"convention=trailing: {trailing.summary} ({trailing.source})",
    ]
    assert convention_notes(cells) == notes
    assert set(notes) <= set(footnotes(cells, "fd", {"fd": "lower"}))
    assert convention_notes(cells[cells["student"] == "heun"]) == []


def test_the_grids_that_were_best_are_said():
    cells = tiny(*[(name, n, 0, 1.0) for name in ("heun", "heun:grid=best") for n in (1, 2, 4)])
    cells["grid"] = ["polynomial"] * 3 + ["polynomial", "gits", "polynomial"]
    note = "heun:grid=best: polynomial at 1, 4; gits at 2"
    assert grid_notes(cells) == [note] and f"  {note}\n" in to_text(cells, "fd", {"fd": "lower"}) + "\n"
    assert aggregate(cells)["grid"].tolist() == cells["grid"].tolist()
    assert grid_notes(cells[:3]) == [] and grid_notes(cells.drop(columns="grid")) == []


def test_the_spread_over_training_seeds_includes_the_seed_that_is_shown():
    cells = tiny(("ecm", 1, 0, 1.0), ("ecm", 1, 1, 3.0), ("lcm", 1, 0, 2.0))
    cells["fd_repeats"] = [[4.0, 6.0], [4.0, 6.0], float("nan")]
    table = aggregate(cells).set_index("student")
    assert table.loc["ecm", "fd_seeds_std"] == pytest.approx(2.0)  # of 2, 4 and 6
    assert np.isnan(table.loc["lcm", "fd_seeds_std"])


def test_a_further_step_that_makes_a_student_worse_is_said_below_the_table():
    rows = [
        ("cd", n, block, value + block) for n, value in ((1, 3.0), (2, 2.0), (4, 2.5), (8, 2.4)) for block in range(3)
    ]
    cells = tiny(*rows, family="distilled")
    cells.loc[cells["steps"] == 8, "fd"] += [0.5, -0.4, 0.6]  # worse on average, but not in every block
    assert footnotes(cells, "fd", LOWER) == ["worse in more steps: cd at 4 than at 2 (0.500 ± 0.000)"]
    assert footnotes(cells, "fd", {"fd": "higher"}) == ["worse in more steps: cd at 2 than at 1 (-1.00 ± 0.00)"]
    assert footnotes(cells.assign(family="solver"), "fd", LOWER) == []
