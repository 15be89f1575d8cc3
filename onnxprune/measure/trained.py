"""What came of training: what it started from against what it reached, on samples that it did not train on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trained:
    """One step of training, judged.

    Attributes:
        step: what was done, as users name it: "distill", "tune", "csgd", …
        kept: "trained", or "start" where training is not better by more than chance: then it left no trace.
        figure: what was compared, the lower the better: "KL" of the class scores, "error" (squared, relative) of other
            outputs, "loss" of a recipe's labels.
        before, after: its mean for the start, and for the best that training reached; None: nobody could look.
        noise: the least fall of it that counts, see `measure.chance`.
        samples: what it was looked at on: held-out samples, or batches of a recipe; 0: there were too few.
        at, steps: where the best was reached, of how many steps.
        rate: the highest learning rate.
        start: what training started from, in words.
        why: where nothing was compared, why not.
        augment: how samples varied, as `--augment` takes it.
    """

    step: str
    kept: str
    figure: str
    before: float | None
    after: float | None
    noise: float | None
    samples: int
    at: int
    steps: int
    rate: float | None
    start: str = "the start"
    why: str = ""
    augment: str = ""

    def in_words(self) -> str:
        """`improved held-out KL 0.31 → 0.12 at step 340 of 400`."""
        if self.before is None or self.after is None:
            return f"kept {self.start}: {self.why}" if self.kept == "start" else self.why
        figures = f"held-out {self.figure} {self.before:.3g} → {self.after:.3g}"
        if self.kept == "trained":
            varied = f", --augment {self.augment}" if self.augment else ""
            return f"improved {figures} at step {self.at} of {self.steps} ({self.samples} judged{varied})"
        least = "" if self.noise is None else f"; a fall by less than {self.noise:.2g} may be chance"
        return f"kept {self.start}: {self.steps} steps did not help ({figures} on {self.samples}{least})"
