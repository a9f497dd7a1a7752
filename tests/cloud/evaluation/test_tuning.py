"""Settings are chosen by pooled scores of devices, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud.evaluation import tuning
from cloud.evaluation.running import UserResult, Work, run, tasks
from device_runtime.bundle import RoundSettings
from device_runtime.errors import InputError

from .conftest import Finished
from .test_statistics import user

pytestmark = pytest.mark.timeout(900)  # the first test waits for an export, which a busy machine draws out
BASE = RoundSettings()


def test_every_combination_is_tried_the_settings_as_they_are_first(tmp_path: Path) -> None:
    (tmp_path / "grid.json").write_text('{"epochs": [7, 9], "rate": [0.5]}')
    grid = tuning.read_grid(tmp_path / "grid.json", BASE)
    assert grid == [{"epochs": BASE.epochs, "rate": BASE.rate}, {"epochs": 7, "rate": 0.5}, {"epochs": 9, "rate": 0.5}]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"speed": [1]}', "no setting 'speed'"),
        ('{"epochs": 3}', "it looks like"),
        ('{"epochs": ["three"]}', "cannot be"),
        ("{}", "1 to 200 can be tried"),
        ('{"epochs": []}', "1 to 200 can be tried"),
        (f'{{"epochs": {list(range(150))}, "rate": [0.1, 0.2]}}', "gives 300 settings"),
    ],
)
def test_a_grid_that_is_none_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "grid.json").write_text(text)
    with pytest.raises(InputError, match=says):
        tuning.read_grid(tmp_path / "grid.json", BASE)


def test_the_best_pooled_score_wins_and_equals_stay_in_order() -> None:
    gains = {3: 0.0, 4: 0.02, 5: 0.02, 6: -0.05}

    def play(number: int, settings: RoundSettings) -> dict[int, list[UserResult]]:
        assert settings.rate == BASE.rate
        return {0: [user(n, cloud=0.6, coda=0.6 + gains[settings.epochs]) for n in range(4)]}

    rows = tuning.search([{"epochs": epochs} for epochs in gains], BASE, play)
    assert [row.changes["epochs"] for row in rows] == [4, 5, 3, 6]
    assert rows[0].score.mean == pytest.approx(0.02) and (rows[0].worse, rows[-1].worse) == (0, 1)


def test_real_devices_tell_settings_apart(finished: Finished, tmp_path: Path) -> None:
    def play(number: int, settings: RoundSettings) -> dict[int, list[UserResult]]:
        work = Work(finished.place, settings, ("cloud", "coda"), False)
        return run(tasks(work, finished.parts.cases, [0], tmp_path), "loky", 1, lambda *_: None)

    rows = tuning.search([{"epochs": BASE.epochs}, {"epochs": 0, "row_steps": 0}], BASE, play)
    still = next(row for row in rows if row.changes["epochs"] == 0)
    assert still.score.mean == 0  # nothing moves, so every device scores as the cloud model does
    assert any(row.score.mean != 0 for row in rows)
