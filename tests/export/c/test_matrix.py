"""The models that every target is tried on, and all of them in one C program. The cells are in `tests/conformance`."""

import numpy as np
from c_programs import differing
from deployed_models import NETWORKS, PROFILES, lowered


def test_profiles_differ_in_their_multipliers():
    for network in NETWORKS:
        for profile in PROFILES:
            model, _, expected = lowered(network, profile)
            weights = {m for node in model.nodes if node.op == "requantize" for m in node.tensors["multiplier"].flat}
            loops = any(node.op == "loop" for node in model.nodes)  # whose bodies have multipliers of their own
            assert profile == "shift" or loops or any(m & (m - 1) for m in weights)
            assert len(np.unique(expected)) > 2


def test_c_in_one_program(tmp_path):
    """All of them in one program."""
    cells = {(network, profile): lowered(network, profile) for network in NETWORKS for profile in PROFILES}
    models = {f"m{k}": (model, x) for k, (model, x, _) in enumerate(cells.values())}
    found = differing(models, tmp_path, ("-O1", "-Werror"))
    assert dict(zip(cells, found.values(), strict=True)) == dict.fromkeys(cells, 0)
