"""A teacher is another network, or an earlier state of the same one, whose outputs a fit learns from.

It is given to `probq.fit(..., teacher=...)`. With a weight `w` and a temperature `T`, what the data says of an example
is

    (1 - w) log p(y | x) - w T^2 KL(teacher || network),

where the divergence is that of both laws raised to `1 / T` and normalised: logits are divided by `T`, variances
multiplied by it. The factor `T^2` keeps the size of its gradient. At `T = 1` the bound of a fit is, up to the teacher's
entropy, the one of data whose targets are drawn from the teacher with probability `w`; the KL terms of widths and codes
keep their weight, as each example still counts once. At other temperatures it is a penalty in nats and no bound. What
`Step` records as `nll` and `kl` is about the targets alone, so that their sum stays the bound; `distillation` has
`T^2 KL(teacher || network)`.

Source: G. Hinton, O. Vinyals, J. Dean, 2015, "Distilling the Knowledge in a Neural Network".
"""

from probq.training.distillation.itself import itself
from probq.training.distillation.lessons import Lessons, Teacher
from probq.training.distillation.offline import as_teacher as as_teacher
from probq.training.distillation.offline import offline
from probq.training.distillation.online import online

__all__ = ["Lessons", "Teacher", "itself", "offline", "online"]
