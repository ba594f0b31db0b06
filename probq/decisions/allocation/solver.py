"""Integer programmes with a known solution are solved until it is proven best or the time is up."""

from __future__ import annotations

from dataclasses import dataclass

import highspy
import numpy as np
from scipy.sparse import csr_array


@dataclass(frozen=True)
class Rows:
    """Rows of an integer programme say `lower <= matrix x <= upper`.

    Attributes:
        matrix: `[rows, columns]`.
        lower, upper: `[rows]`.
    """

    matrix: csr_array
    lower: np.ndarray
    upper: np.ndarray


def minimise(
    objective: np.ndarray, rows: Rows, upper: np.ndarray, integral: np.ndarray, start: np.ndarray, seconds: float
) -> tuple[np.ndarray, float]:
    """Return the best solution found of `min objective x`, `0 <= x <= upper`, and the proven lower bound.

    Args:
        objective: `[columns]`.
        rows: the constraints.
        upper: greatest value of each column.
        integral: whether a column takes whole numbers.
        start: a solution.
        seconds: after which it stops.
    """
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = len(objective), len(rows.lower)
    model.col_cost_, model.col_lower_, model.col_upper_ = objective, np.zeros(len(objective)), upper
    model.row_lower_, model.row_upper_ = rows.lower, rows.upper
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_, model.a_matrix_.index_ = rows.matrix.indptr, rows.matrix.indices
    model.a_matrix_.value_ = rows.matrix.data
    kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
    model.integrality_ = [kinds[int(whole)] for whole in integral]
    solver = highspy.Highs()
    for option, value in {"output_flag": False, "time_limit": seconds, "mip_rel_gap": 0.0, "mip_abs_gap": 1e-9}.items():
        solver.setOptionValue(option, value)
    solver.passModel(model)
    known = highspy.HighsSolution()
    known.col_value = list(start)
    solver.setSolution(known)
    solver.run()
    found = np.array(solver.getSolution().col_value)
    return found if len(found) == len(start) else start, float(solver.getInfo().mip_dual_bound)
