"""The report: what it says, what it refuses, that names cannot break out of it, and how a browser shows it."""

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from safetensors.numpy import save_file
from torch import nn

import probq
from probq.cli import command_line as cli
from probq.codebooks import ladder
from probq.evaluation.reporting import certificates
from probq.evaluation.reporting.page import Cell, Content, Figure, Paragraph, Section, Table
from probq.evaluation.reporting.page import page as write
from probq.export.certificate import certify
from probq.export.verification import Report
from probq.integer import IntegerModel, Node
from probq.likelihoods import Normal, PerOutput, categorical

HOSTILE = '</td><script>document.title="owned"</script><img src=x onerror=alert(1)>\ud800\u202e"'


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    pyplot.switch_backend("Agg")
    yield
    assert pyplot.get_fignums() == []


def posterior(fitted: bool = True) -> probq.Quantized:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    q = probq.quantize(net, torch.rand(8, 4), probq.Plan(weight=ladder(2, 4, 8)))
    with torch.no_grad():
        for _, quantizer in q.named_quantizers() if fitted else ():
            quantizer.logits.normal_()
    q.budget, q.calibrated = probq.Budget(percent=3), fitted
    return q


def hostile() -> IntegerModel:
    whole = HOSTILE.replace("\ud800", "")  # no model has half of a character, but a title may
    name = whole.replace("/", "")
    image = Node("x", "input", attributes={"shape": [2], "scale": 0.5, "lo": 0, "hi": 15})
    layer = Node(name, "linear", ("x",), tensors={"weight": np.array([[1, -2]]), "bias": np.array([3])})
    return IntegerModel([image, layer], name, 0.25, {"versions": {whole: whole}, "limit": [whole], "bops": 5})


class Page(HTMLParser):
    """Elements by tag, and the rows of its tables."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if not {"script", "style"} & set(self.open):
            self.text += data


def test_posterior(tmp_path: Path) -> None:
    q = posterior()
    page = Page(probq.report(q, tmp_path / "r.html"))
    a, frame = q.mode(), probq.table(q)
    assert not page.open
    limit = q.budget.absolute(q.layers)
    assert f"Budget kept: {a.cost():,.0f} of at most {limit:,.0f} BOPs." in page.text
    assert f"cost {a.percent():.4g} %" in page.text
    assert f"probability {frame.attrs['P(cost<=limit)']:.3g}" in page.text
    for row, name in zip(page.rows[1:], ("0", "2", "4"), strict=True):
        width = a.widths[f"{name}.weight"]
        shown = [name, "×".join(map(str, q.net.get_parameter(f"{name}.weight").shape)), str(width)]
        assert [row[0], row[1], row[3]] == shown
        assert float(row[4]) == pytest.approx(frame.loc[f"{name}.weight", f"P({width})"], abs=5e-4)
    assert sum(float(row[-1]) for row in page.rows[1:]) == pytest.approx(100, abs=0.2)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 7  # cost, depth of weights and inputs, forest, three weights
    assert all(image["alt"] for image in images)


@pytest.mark.parametrize("pairs", [None, np.zeros((6, 6))])
def test_energy(tmp_path: Path, pairs: Any) -> None:
    q = posterior()
    names, widths = ("0.weight", "2.weight"), ((2, 4, 8),) * 2
    q.energy = probq.Energy(names, widths, ([0.75, 0.5, 0.25],) * 2, pairs, HOSTILE.replace("\ud800", ""))
    decided = q.at(q.mode())
    page = Page(probq.report(decided, tmp_path / "r.html"))
    total = sum(0.75 - 0.25 * widths[0].index(int(q.mode().widths[name])) for name in names)
    assert f"together add {total:.3g} nats" in page.text
    assert ("for each pair" in page.text) == (pairs is not None)
    assert page.text.count("Energy") == 1
    assert sum(tag == "section" for tag, _ in page.tags) == 3
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    q.energy = None
    assert "Energy" not in Page(probq.report(q, tmp_path / "r.html")).text


def test_what_a_fit_measured_is_told_as_a_probability(tmp_path: Path) -> None:
    q, data = posterior(), [(torch.rand(16, 4), torch.arange(16) % 2)]
    probq.decide(q, probq.Budget(percent=4), data, progress=False)
    text = Page(probq.report(q, tmp_path / "r.html")).text
    assert "log-probability of being the best choice, whatever it costs, by measured losses" in text
    assert f"together take {q.energy(q.mode().widths):.3g} nats" in text


def test_page_asks_for_nothing(tmp_path: Path) -> None:
    page = Page(probq.report(posterior(), tmp_path / "r.html"))
    for _, attributes in page.tags:
        for key in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(key) or "data:").startswith("data:")
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_same_input_same_bytes(tmp_path: Path) -> None:
    probq.report(posterior(), tmp_path / "a.html")
    probq.report(posterior(), tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_names_cannot_break_out(tmp_path: Path) -> None:
    path = probq.report(hostile(), tmp_path / "r.html", title=HOSTILE)
    page = Page(path)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1
    assert tags.count("img") == 1  # the picture
    assert "onerror=alert(1)>" in page.rows[1][0]  # as text
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", path.read_text(encoding="utf-8"))


def test_every_text_of_every_element_is_escaped(tmp_path: Path) -> None:
    said = Content(HOSTILE, HOSTILE, (HOSTILE, HOSTILE), facts=[(HOSTILE, HOSTILE)], warnings=[HOSTILE])
    row = (Cell(HOSTILE), Cell(HOSTILE), Cell(HOSTILE, 1.5))
    table = Table(HOSTILE, (HOSTILE,) * 3, (row,), ("name", "text", ""))
    elements = [table, Figure(HOSTILE, HOSTILE, "AA=="), Paragraph(HOSTILE, HOSTILE), Paragraph(HOSTILE)]
    text = write(said, [Section(HOSTILE, elements), Section("Empty", [])], HOSTILE)
    (tmp_path / "r.html").write_text(text, encoding="utf-8")
    page = Page(tmp_path / "r.html")
    tags = [tag for tag, _ in page.tags]
    assert not page.open
    assert (tags.count("script"), tags.count("img"), tags.count("section"), tags.count("td")) == (1, 1, 1, 2)
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    shown = HOSTILE.replace("\ud800", "\ufffd").replace("\u202e", "\ufffd")
    assert page.rows == [[shown] * 3, [shown] * 3]
    given = {key: value for _, attributes in page.tags for key, value in attributes.items()}
    assert (given["aria-label"], given["alt"], given["data-sort"]) == (shown, f"{shown}. {shown}", "1.5")


def test_unfitted_posterior_warns(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="never fitted"):
        page = Page(probq.report(posterior(fitted=False), tmp_path / "r.html"))
    assert "never fitted" in page.text


def test_fixed_above_its_budget(tmp_path: Path) -> None:
    q = posterior()
    fixed = q.at(q.mode(probq.Budget(percent=6)))
    fixed.budget = probq.Budget(percent=0.5)
    assert "Budget not kept" in Page(probq.report(fixed, tmp_path / "r.html")).text


def test_calibration_of_posterior_and_integers(tmp_path: Path) -> None:
    q = posterior()
    x, y = torch.rand(40, 4), torch.arange(40) % 3
    batches = [(x[:30], y[:30]), (x[30:], y[30:])]
    page = Page(probq.report(q, tmp_path / "q.html", validation=batches, draws=3))
    probabilities = torch.cat([q.predict(x[:30], 3, seed=0), q.predict(x[30:], 3, seed=0)], 1).softmax(-1).mean(0)
    accuracy = 100 * float((probabilities.argmax(1) == y).double().mean())
    assert f"On 40 examples the accuracy is {accuracy:.4g} %" in page.text
    model = probq.lower(q)
    page = Page(probq.report(model, tmp_path / "m.html", validation=batches))
    accuracy = 100 * np.mean(model(x).argmax(1) == y.numpy())
    assert f"On 40 examples the accuracy is {accuracy:.4g} %" in page.text
    for wrong, message in (([], "no batch"), ([(x, y.float())], "classes"), ([x], "batches")):
        with pytest.raises(probq.ProbqError, match=message):
            probq.report(q, tmp_path / "w.html", validation=wrong)
    with pytest.raises(probq.ProbqError, match="predictions with targets"):
        probq.report(q, tmp_path / "w.html", predictions=[0.5])
    assert not (tmp_path / "w.html").exists()


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kind, self.side, self.place = nn.Linear(4, 3), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"kind": self.kind(x), "of": (self.place(x), self.side(x))}


@pytest.mark.filterwarnings("ignore:the posterior was never fitted", "ignore:.*draws have other widths")
def test_each_output_of_classes_has_a_calibration(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, kind, side = torch.rand(40, 4), torch.arange(40) % 3, torch.arange(40) % 2
    likelihood = PerOutput({"kind": categorical, "of": (Normal(0.5), categorical)})
    q = probq.quantize(Parts(), x, likelihood=likelihood)
    y = {"kind": kind, "of": (torch.rand(40, 2), side)}
    model, accuracies = probq.lower(q), {}
    for subject, found in ((q, q.predict(x, 3, seed=0)), (model, model.real_output(model(x)))):
        page = Page(probq.report(subject, tmp_path / "r.html", validation=[(x, y)], draws=3))
        for name, output, target in (("kind", found["kind"], kind), ("of.1", found["of"][1], side)):
            logits = torch.as_tensor(output).reshape(-1, 40, output.shape[-1])
            right = logits.softmax(-1).mean(0).argmax(1) == target
            accuracies[name] = 100 * float(right.double().mean())
            assert f"{name}: On 40 examples the accuracy is {accuracies[name]:.4g} %" in page.text
        assert "which these outputs have not: of.0." in page.text
    given = {"kind": np.full((3, 2), 0.5), "of": np.array([0.5])}
    page = Page(probq.report(model, tmp_path / "r.html", predictions=given, targets={"kind": [0, 1, 1], "of": [1]}))
    assert "kind: On 3 examples" in page.text
    assert "of: On 1 examples" in page.text
    wrong = ({"kind": y["of"][0]}, "kind have none"), ({"kind": [0, 1]}, "are tensors"), (kind, "several outputs")
    for target, message in wrong:
        with pytest.raises(probq.ProbqError, match=message):
            probq.report(model, tmp_path / "w.html", validation=[(x, target)])
    with pytest.raises(probq.ProbqError, match="the same keys"):
        probq.report(model, tmp_path / "w.html", predictions=given, targets={"kind": [0, 1, 1]})


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_calibration_needs_one_tensor(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.linear(x), x

    x = torch.rand(8, 4)
    q = probq.quantize(Pair(), x)
    fixed = q.at(q.mode())
    with pytest.raises(probq.ProbqError, match="returns a tuple"):
        probq.report(fixed, tmp_path / "w.html", validation=[(x, torch.arange(8) % 3)])


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A model and an artefact of it with a certificate."""
    model = probq.lower(posterior())
    model.save(tmp_path / "m.safetensors")
    (tmp_path / "m.h").write_text("int x;")
    certify(model, tmp_path / "m.h", Report("c", 500, 0, 0.1))
    (tmp_path / "other.json").write_text("[1]")
    return tmp_path


def test_certificates_are_found_and_their_artefacts_checked(exported: Path) -> None:
    page = Page(probq.report(exported / "m.safetensors", exported / "r.html"))
    assert ["m.h", "c", "unchanged", "500", "0", "6"] in page.rows
    assert "Every artefact gave the integers" in page.text
    (exported / "m.h").write_text("int y;")
    page = Page(probq.report(exported / "m.safetensors", exported / "r.html"))
    assert ["m.h", "c", "changed since", "500", "0", "6"] in page.rows
    assert "Not all is well: see m.h" in page.text


def test_certificates_that_are_none(exported: Path) -> None:
    entry = json.loads((exported / "m.h.json").read_text())
    for change, message in (({"model_sha256": "0"}, "another model"), ({"compared": "1"}, "wrong kind")):
        (exported / "c.json").write_text(json.dumps(entry | change))
        with pytest.raises(probq.ProbqError, match=message):
            probq.report(exported / "m.safetensors", exported / "r.html", certified=[exported / "c.json"])
    (exported / "c.json").write_text(json.dumps(entry | {"artefact": "../m.h"}))
    assert certificates.read(exported / "c.json").state == "not here"
    with pytest.raises(probq.ProbqError, match="not a certificate"):
        certificates.read(exported / "other.json")
    with pytest.raises(probq.ProbqError, match="no file"):
        certificates.read(exported / "none.json")


def test_command(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    posterior(fitted=False).save(exported / "q.safetensors")
    np.savez(exported / "p.npz", predictions=[0.9, 0.8], targets=[1, 1])
    out = str(exported / "r.html")
    assert cli.main(["report", str(exported / "q.safetensors"), "--out", out]) == 0
    seen = capsys.readouterr()
    assert seen.err.startswith("probq: warning: The posterior was never fitted")
    assert f"{Path(out).stat().st_size:,} bytes" in seen.out
    model, numbers = str(exported / "m.safetensors"), str(exported / "p.npz")
    assert cli.main(["report", model, "--out", out, "--predictions", numbers]) == 0
    assert "On 2 examples the accuracy is 100 %" in Page(Path(out)).text


def test_command_refuses_in_one_sentence(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"a": np.zeros(3)}, exported / "foreign")
    (exported / "text").write_text("hello")
    np.savez(exported / "p.npz", predictions=[0.9, np.nan], targets=[1, 1])
    model, out = str(exported / "m.safetensors"), ["--out", str(exported / "r.html")]
    for arguments, message in (
        ([str(exported / "none"), *out], "there is no file"),
        ([str(exported / "text"), *out], "not a safetensors file"),
        ([str(exported / "foreign"), *out], "probq"),
        ([model, "--out", model], "is the file itself"),
        ([model, "--out", str(exported / "none/r.html")], "cannot write"),
        ([model, *out, "--predictions", str(exported / "p.npz")], "nan at index 1"),
        ([model, *out, "--predictions", str(exported / "text")], "does not hold predictions"),
    ):
        assert cli.main(["report", *arguments]) == 2
        seen = capsys.readouterr()
        assert message in seen.err
        assert len(seen.err.splitlines()) == 1
    with pytest.raises(probq.ProbqError, match="a posterior, an integer model or a file"):
        probq.report(3, exported / "r.html")  # type: ignore[arg-type]


def test_posterior_that_diverged(tmp_path: Path) -> None:
    q = posterior()
    with torch.no_grad():
        q.quantizer("2.weight").logits[0] = float("nan")
    with pytest.raises(probq.ProbqError, match=r"2\.weight hold NaN"):
        probq.report(q, tmp_path / "r.html")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """A headless Chromium that records what a page asks of the network and what it complains about."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    for flag in (*flags.split(), "disable-component-update", "disable-sync", f"user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    opened.get("about:blank")
    opened.get_log("performance")  # what its own start page asked for
    yield opened
    opened.quit()


def test_in_a_browser(tmp_path: Path, browser: Any) -> None:
    q = posterior()
    page = probq.report(q, tmp_path / "r.html", predictions=[0.9, 0.4], targets=[1, 0])
    for wide in (1280, 400):
        command = {"width": wide, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", command)
        browser.get(page.as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= wide
        assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    column = "return [...document.querySelectorAll('tbody tr')].map(row => Number(row.cells[2].textContent))"
    macs = [layer.macs for layer in q.layers]
    assert browser.execute_script(column) == macs
    button = browser.find_elements("css selector", "thead button")[2]
    browser.execute_script("arguments[0].click()", button)
    assert browser.execute_script(column) == sorted(macs)
    browser.execute_script("arguments[0].click()", button)
    assert browser.execute_script(column) == sorted(macs, reverse=True)
    assert browser.find_element("css selector", "thead th[aria-sort]").get_attribute("aria-sort") == "descending"
    probq.report(hostile(), tmp_path / "h.html", title=HOSTILE)
    browser.get((tmp_path / "h.html").as_uri())
    assert browser.title.startswith("</td><script>")
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
    assert browser.get_log("browser") == []
