"""The machine's description and its measured peaks."""

import pytest

from headstart.evaluation.machine import (
    Machine,
    MachinePeaks,
    describe_machine,
    measure_peaks,
    thread_environment,
    usable_cores,
)


def test_description_is_of_this_machine() -> None:
    machine = describe_machine()
    assert machine.cpu and machine.os
    assert machine.cores == usable_cores() >= 1
    assert machine.memory > 1 << 20
    assert "/" not in machine.slug and machine.slug == machine.slug.lower()


@pytest.mark.parametrize(
    ("machine", "slug"),
    [
        (Machine(cpu="Intel(R) Xeon(R) Processor", cores=2, memory=24 << 30, os=""), "intel-xeon-processor-2c-24g"),
        (Machine(cpu="Łódź / №5", cores=1, memory=1 << 30, os=""), "d-5-1c-1g"),
        (Machine(cpu="..", cores=1, memory=1 << 30, os=""), "machine-1c-1g"),
        (Machine(cpu="x", cores=8, memory=64 << 30, os="", accelerators=["GPU 9"]), "gpu-9-8c-64g"),
    ],
)
def test_slug_names_a_file(machine: Machine, slug: str) -> None:
    assert machine.slug == slug


def test_peaks_are_measured_in_both_dtypes() -> None:
    peaks = measure_peaks(1, "quick")
    assert peaks.threads == 1
    assert set(peaks.matmul) == {"float32", "bfloat16"}
    assert min(*peaks.matmul.values(), peaks.copy_bandwidth, peaks.read_bandwidth) > 0
    assert peaks.best_matmul == max(peaks.matmul.values())


def test_best_of_takes_the_higher_of_each() -> None:
    a = MachinePeaks(threads=2, matmul={"float32": 1.0, "bfloat16": 4.0}, copy_bandwidth=5.0, read_bandwidth=1.0)
    b = MachinePeaks(threads=2, matmul={"float32": 2.0, "bfloat16": 3.0}, copy_bandwidth=4.0, read_bandwidth=2.0)
    best = MachinePeaks(threads=2, matmul={"float32": 2.0, "bfloat16": 4.0}, copy_bandwidth=5.0, read_bandwidth=2.0)
    assert a.best_of(b) == best == b.best_of(a)


def test_every_thread_pool_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    environment = thread_environment(3)
    assert {environment[f"{name}_NUM_THREADS"] for name in ("OMP", "MKL", "OPENBLAS")} == {"3"}
