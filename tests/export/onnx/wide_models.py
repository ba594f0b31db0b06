"""Integer models made at random whose integers pass 31 bits, for runtimes that compare 64 bits wrongly."""

import numpy as np
from random_models import Maker, random_model, uniform

from probq.integer import IntegerModel


class Wide(Maker):
    """Integers beyond 31 bits: what is clipped, pooled and looked up reaches around 2^31, 2^32 and up to 2^62."""

    most = 2**45

    def requantize(self, x: str, bits: int | None = None) -> str:
        """To codes, from products whose shift leaves any number of bits, with limits near 2^31 and 2^32 too."""
        bits, kind = (
            bits or self.width(1, 2, 4, 8),
            self.choose((), (self.shape(x)[0], *[1] * (len(self.shape(x)) - 1))),
        )
        bound = int(max(abs(self.low[x]).max(), abs(self.high[x]).max())).bit_length()
        wide = self.draw(max(1, 31 - bound), 61 - bound)
        multiplier = self.random.integers(-(2**wide) // 3, 2**wide, kind)
        kept = self.choose(bits, self.draw(31, 34), self.draw(31, 61))  # bits that the shift leaves, about
        shift = max(0, bound + wide - kept)
        low = self.choose(0, -(2 ** (bits - 1)), self.far(min(kept, 40)))
        limits = {"lo": low, "hi": low + 2**bits - 1}
        add = self.random.integers(-(2**60), 2**60, kind) >> self.draw(0, 60)
        return self.node("requantize", [x], limits, multiplier=multiplier, add=add, shift=np.full(kind, shift))

    def far(self, reach: int) -> int:
        """A number near zero, a power of two or its negative."""
        return int(self.choose(-1, 0, 1)) * 2 ** self.draw(min(31, reach), reach) + self.draw(-300, 300)

    def arithmetic(self, x: str) -> str:
        if self.draw(0, 2) == 0:
            wide = 2 ** self.draw(1, 34)
            shape = self.choose((), self.shape(x)[-1:])
            return self.node("multiply", [x], multiplier=self.random.integers(-wide, wide, shape))
        lo, hi = sorted((self.far(33), self.far(33)))
        if self.draw(0, 1):
            return self.node("clip", [x], {"lo": self.choose(lo, None), "hi": self.choose(hi, None)})
        return super().arithmetic(x)


def wide(seed: int, length: int = 8) -> IntegerModel:
    """A model whose integers pass 31 bits in front of clips, maxima and look-ups."""
    return random_model(uniform(seed), length, maker=Wide)
