"""The comparison of denoisers at known noise: it goes on where it stopped, and its differences are paired."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import compress
from benchmarks.compress import Protocol, main


def record(positions: range, survived: int) -> dict[str, list[Any]]:
    """All right at the anchor; the first ``survived`` images stand, with margins of 1, not 0.1."""
    stands = [i < survived for i in range(len(positions))]
    return {
        "survived": stands,
        "attack_rate": [0.5 for _ in positions],
        "right": [True for _ in positions],
        "rate": [0.25 for _ in positions],
        "margin": [1.0 if s else 0.1 for s in stands],
        "budget": [0.3 for _ in positions],
    }


def test_comparison_goes_on_and_pairs_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str, range]] = []
    broken: list[int] = [3]

    def fake(weights: str, positions: range, protocol: Protocol) -> dict[str, list[Any]]:
        if len(measured) == broken[0]:
            raise KeyboardInterrupt
        measured.append((weights, positions))
        return record(positions, 16 if weights == "vanilla" else 24)

    monkeypatch.setattr(compress, "subject_of", lambda weights, protocol: weights)
    monkeypatch.setattr(compress, "measured", fake)
    words = [str(tmp_path), "--models", "vanilla", "better=some.safetensors", "--images", "64", "--law"]
    with pytest.raises(KeyboardInterrupt):
        main(words)
    broken[0] = -1
    rows = main(words)
    assert [(w, r.start) for w, r in measured] == [
        ("vanilla", 0),
        ("vanilla", 32),
        ("some.safetensors", 0),
        ("some.safetensors", 32),
    ]
    assert rows["vanilla"]["dw_both"]["value"] == 0.5
    assert rows["better"]["dw_both, difference"]["value"] == 0.25
    assert rows["better"]["dw_both, difference"]["low"] > 0.1
    assert rows["better"]["clean, difference"]["value"] == 0
    # 0.25 * 0.3 is below both margins, 0.5 * 0.3 above the small one
    assert rows["better"]["predicted, rate random"]["value"] == 1
    assert rows["better"]["predicted, rate attack"]["value"] == 0.75
    assert set(main([*words[:-1], "--images", "32"])["vanilla"]) == {*rows["vanilla"]}


@pytest.mark.slow
def test_a_batch_of_the_embedded_denoiser_is_measured() -> None:
    protocol = Protocol(images=2, sampler="one_step", iterations=2, law=True)
    found = compress.measured(compress.subject_of("vanilla", protocol), range(0, 2), protocol)
    assert found["right"] == [True, True]
    assert all(0 < rate < 1 for rate in found["rate"])
    assert all(0 < rate < 2 for rate in found["attack_rate"])
    assert all(size > 0 for size in found["budget"])
