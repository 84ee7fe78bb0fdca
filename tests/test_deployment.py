"""The benchmark of deployments: what holds for any rounding holds for the copy, and the same seeds train the same network."""

from __future__ import annotations

from benchmarks.deployment import SCHEMES, shares, trained


def test_any_rounding_beside_the_copy() -> None:
    network, points, accuracy = trained("iris")
    again, _, _ = trained("iris")
    assert again == network
    assert accuracy > 0.9
    found = {scheme: shares(network, points, scheme) for scheme in SCHEMES}
    for own in found.values():
        assert own.certified <= min(own.decided, own.copy)
        assert own.decided == 1
    assert found["int4"].certified < found["int8"].certified <= found["fp16"].certified
