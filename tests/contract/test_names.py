"""What users type stays: public names, signatures, and the options of the command line, as `names.txt` has them."""

from public_names import FILE, lines, name_of

RECORDED = FILE.read_text(encoding="utf-8").splitlines()


def problems(recorded: list[str], found: list[str]) -> list[str]:
    """A sentence for every name that is gone, has changed, or is not recorded."""
    gone, new = set(recorded) - set(found), set(found) - set(recorded)
    now: dict[str, list[str]] = {}
    for line in sorted(new):
        now.setdefault(name_of(line), []).append(line)
    said = []
    for line in sorted(gone):
        instead = now.pop(name_of(line), None)
        if instead:
            said.append(f"the public {line} has become {instead[0]}; users rely on it, so let it be as it was")
        else:
            said.append(f"the public {line} is gone; users rely on it, so give it its place again")
    added = [line for names in now.values() for line in names]
    return said + [
        f"{line} is public and not in names.txt; run tests/contract/public_names.py, or name it _so" for line in added
    ]


def test_public_names_are_those_recorded() -> None:
    found = problems(RECORDED, lines(RECORDED))
    assert not found, "\n".join(found)


def test_what_is_recorded_is_what_matters() -> None:
    assert "probq.quantize(net, example, plan=None, likelihood=None)" in RECORDED
    assert "probq.Quantized.mode(self, budget=None, measured=True)" in RECORDED
    assert "probq.Budget.percent: attribute" not in RECORDED  # its constructor says it
    assert "$ probq export --out DIR required" in RECORDED
    assert sorted(set(RECORDED)) == RECORDED


def test_each_change_is_said() -> None:
    before = ["probq.fit(q, batches)", "probq.load(path)", "probq.Plan: class"]
    after = ["probq.fit(q, data)", "probq.Plan: class", "probq.save(path)"]
    changed, gone, added = problems(before, after)
    assert changed.startswith("the public probq.fit(q, batches) has become probq.fit(q, data)")
    assert gone.startswith("the public probq.load(path) is gone")
    assert added.startswith("probq.save(path) is public and not in names.txt")
    assert problems(before, before) == []
