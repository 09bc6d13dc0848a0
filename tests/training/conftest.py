"""What training does on the side takes longer than a small run itself."""

import pytest


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing and measure no peak, except for tests that ask for `pictures`."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("headstart.training.run.plot_run", lambda directory: None)
        monkeypatch.setattr("headstart.training.run.measured_peak", lambda device, dtype: 1e12)


@pytest.fixture
def pictures() -> None:
    """Let runs draw and measure as they do."""
