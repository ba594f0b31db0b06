"""The command `probq report` writes one page about a posterior or an integer model."""

from __future__ import annotations

import argparse
import struct
import sys
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from probq.utils.errors import ProbqError, printable
from probq.utils.paths import checked_path

LARGEST = 2**30  # bytes of an array
DAMAGED = (  # what numpy and zipfile raise
    OSError, AttributeError, LookupError, TypeError, ValueError, EOFError, MemoryError, OverflowError, RuntimeError,
    SyntaxError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def add_command(commands: Any) -> None:
    """Add `report` to the subcommands of a parser."""
    report = commands.add_parser(
        "report",
        help="write one self-contained HTML page about a posterior or an integer model",
        description="Write one HTML page: budget, layers, pictures, calibration and certificates of exports.",
    )
    report.add_argument("file", type=Path, metavar="FILE", help="what q.save or model.save wrote")
    report.add_argument("--out", required=True, type=Path, metavar="HTML", help="the page; replaced if it exists")
    text = "a .npz file with arrays predictions ([N], or [N, C] of classes) and targets ([N])"
    report.add_argument("--predictions", type=Path, metavar="NPZ", help=text)
    text = "a certificate that export --verify wrote; may be repeated (default: those beside an integer model)"
    report.add_argument("--certificate", type=Path, action="append", metavar="JSON", help=text)
    report.set_defaults(command=_report)


def _report(options: argparse.Namespace) -> int:
    import matplotlib

    from probq.evaluation.reporting import report

    matplotlib.use("Agg")
    file, out = checked_path(options.file), checked_path(options.out)
    if out.exists() and file.exists() and out.samefile(file):
        raise ProbqError(f"{out} is the file itself; name another with --out")
    predictions, targets = (None, None) if options.predictions is None else arrays(options.predictions)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        path = report(file, out, predictions=predictions, targets=targets, certified=options.certificate)
    for warning in caught:
        print(f"probq: warning: {printable(str(warning.message))}", file=sys.stderr)
    print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


def arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the predictions and targets of a numpy archive; what pickle wrote is not read.

    Raises:
        ProbqError: if there is no such file, or it does not hold both.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if max(member.file_size for member in archive.zip.infolist()) > LARGEST:
                raise ValueError(f"an array has more than {LARGEST:,} bytes")
            return archive["predictions"], archive["targets"]
    except FileNotFoundError as error:
        raise ProbqError(f"there is no file {path}; write it with numpy.savez") from error
    except DAMAGED as error:
        message = "write it with numpy.savez(path, predictions=..., targets=...)"
        raise ProbqError(f"{path} does not hold predictions and targets ({error!s:.80}); {message}") from error
