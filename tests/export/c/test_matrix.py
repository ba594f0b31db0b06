"""The models that every target is tried on, and all of them in one C program. The cells are in `tests/conformance`."""

import numpy as np
from c_programs import differing
from deployed_models import NETWORKS, PROFILES, STRUCTURES, lowered

from probq.integer.loops.body import every_node


def test_profiles_differ_in_their_multipliers():
    for network in NETWORKS:
        for profile in PROFILES:
            model, _, expected = lowered(network, profile)
            nodes = [node for node in every_node(model.nodes) if node.op in ("requantize", "multiply")]
            weights = {m for node in nodes for m in node.tensors["multiplier"].flat}
            assert profile == "shift" or any(m & (m - 1) for m in weights)
            assert max(len(np.unique(each)) for each in expected) > 2


def test_c_in_one_program(tmp_path):
    """All of them in one program."""
    single = [network for network in NETWORKS if network not in STRUCTURES]
    cells = {(network, profile): lowered(network, profile) for network in single for profile in PROFILES}
    models = {f"m{k}": (model, x) for k, (model, x, _) in enumerate(cells.values())}
    found = differing(models, tmp_path, ("-O1", "-Werror"))
    assert dict(zip(cells, found.values(), strict=True)) == dict.fromkeys(cells, 0)
