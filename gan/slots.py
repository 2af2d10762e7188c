"""The searches of a call: those that wait, those under way in a block of slots, the best found."""

import math
from itertools import groupby

import torch
from torch import Tensor

from gan.search_loss import LossTerms, SearchLoss, SearchSettings, fill

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


class Waiting:
    """Searches that have not begun: number n is start n % K of image n // K.

    Features of the images are computed in blocks of the one size, when the first image of a block
    is taken.
    """

    def __init__(self, loss: SearchLoss, image_BCHW: Tensor, start_BKZ: Tensor) -> None:
        self._loss, self._images = loss, image_BCHW.split(loss.settings.block)
        self._starts, self._num_starts = start_BKZ.flatten(0, 1), start_BKZ.shape[1]
        self._next = 0
        self._staged: tuple[int, list[Tensor]] = (-1, [])

    def take(self, count: int) -> tuple[list[int], list[Tensor]]:
        """At most `count` searches: their numbers, and rows of start, image and feature maps."""
        numbers = list(range(self._next, min(self._next + count, len(self._starts))))
        self._next += len(numbers)
        parts = []
        for block, group in groupby(numbers, key=self._block):
            first = block * self._loss.settings.block
            rows = [number // self._num_starts - first for number in group]
            parts.append([tensor[rows] for tensor in self._stage(block)])
        if not numbers:
            return [], []
        starts = self._starts[numbers].to(self._loss.device)
        return numbers, [starts, *(torch.cat(rows) for rows in zip(*parts, strict=True))]

    def _block(self, number: int) -> int:
        return number // self._num_starts // self._loss.settings.block

    @torch.no_grad()
    def _stage(self, block: int) -> list[Tensor]:
        if self._staged[0] != block:
            image = self._images[block].to(self._loss.device)
            image = fill(image, self._loss.settings.block)
            self._staged = (block, [image, *self._loss.maps(image)])
        return self._staged[1]


class Slots:
    """A block of searches under way, each with its own Adam (Kingma & Ba 2015) and its own best."""

    def __init__(self, numbers: list[int], rows: list[Tensor], settings: SearchSettings) -> None:
        self._settings = settings
        size = settings.block
        # Slots beyond the searches there are compute along, for the sake of the size.
        self.number = numbers + [-1] * (size - len(numbers))
        self.age = torch.zeros(size, dtype=torch.int64)
        self.latent, self.image, *self.maps = (fill(row, size) for row in rows)
        self._mean, self._square = torch.zeros_like(self.latent), torch.zeros_like(self.latent)
        zero = self.latent.new_zeros(size)
        # What a search has seen is set by its first score, so that nothing here needs clearing.
        self.best = LossTerms(zero, zero, zero, torch.zeros_like(self.image))
        self.best_latent = torch.zeros_like(self.latent)
        self.best_step = torch.zeros_like(zero, dtype=torch.int64)
        self._mark, self._stale = zero, self.best_step

    def busy(self) -> bool:
        """Whether any slot holds a search."""
        return any(number >= 0 for number in self.number)

    def at_last_step(self) -> bool:
        """Whether every search is only to be scored once more."""
        ages = zip(self.number, self.age.tolist(), strict=True)
        return all(number < 0 or age == self._settings.steps for number, age in ages)

    def keep(self, terms: LossTerms) -> None:
        """Note the terms at the current latents where they are better than all before."""
        age = self.age.to(terms.loss.device)
        new = age == 0
        better = new | (terms.loss < self.best.loss)

        def keep(old: Tensor, row: Tensor) -> Tensor:
            return torch.where(better.view(-1, *[1] * (row.dim() - 1)), row, old)

        self.best = LossTerms(*map(keep, self.best, terms))
        self.best_latent = keep(self.best_latent, self.latent.detach())
        self.best_step = keep(self.best_step, age)
        improved = new | (terms.loss < self._mark * (1 - self._settings.tolerance))
        self._mark = torch.where(improved, terms.loss, self._mark)
        self._stale = torch.where(improved, 0, self._stale + 1)

    def done(self) -> list[int]:
        """Slots whose search has ended."""
        ended = self.age == self._settings.steps
        if self._settings.patience:
            ended |= self._stale.cpu() >= self._settings.patience
        return [slot for slot in ended.nonzero().flatten().tolist() if self.number[slot] >= 0]

    def step(self, gradient_BZ: Tensor) -> None:
        """One step of Adam on all latents."""
        self.age += 1
        count = self.age.double().unsqueeze(1)
        correction1, correction2 = ((1 - beta**count).to(gradient_BZ) for beta in (_BETA1, _BETA2))
        self._mean.lerp_(gradient_BZ, 1 - _BETA1)
        self._square.mul_(_BETA2).addcmul_(gradient_BZ, gradient_BZ, value=1 - _BETA2)
        scale = (self._square / correction2).sqrt() + _EPSILON
        moved = self._settings.step_size * (self._mean / correction1) / scale
        self.latent = self.latent.detach() - moved

    def load(self, done: list[int], numbers: list[int], rows: list[Tensor]) -> None:
        """Let new searches take the place of those that are done; the other places stay empty."""
        for slot, number in zip(done, numbers + [-1] * (len(done) - len(numbers)), strict=True):
            self.number[slot] = number
        if not numbers:
            return
        slots = done[: len(numbers)]
        self.latent = self.latent.detach()
        for own, row in zip((self.latent, self.image, *self.maps), rows, strict=True):
            own[slots] = row
        for own in (self._mean, self._square, self.age):
            own[slots] = 0


class Found:
    """The best search of each image so far, in the memory where the caller's images are.

    Attributes:
        terms: L at the best latent with its terms, and G there.
        latent: Float [B, Z], the best latent.
        step: Integer [B], the step at which it was seen.
        steps: Integer [B], gradient steps taken for the image.
    """

    def __init__(self, image_BCHW: Tensor, start_BKZ: Tensor) -> None:
        num_images, self._num_starts, _ = start_BKZ.shape
        # By loss, then by start: which search ends first depends on what else is in the block.
        self._rank = [(math.inf, self._num_starts)] * num_images
        self.latent = torch.zeros_like(start_BKZ[:, 0], device=image_BCHW.device)
        worst = self.latent.new_full((num_images,), math.inf)
        made = torch.zeros_like(image_BCHW)
        self.terms = LossTerms(worst, worst.clone(), worst.clone(), made)
        self.step, self.steps = (torch.zeros_like(worst, dtype=torch.int64) for _ in range(2))

    def note(self, slots: Slots, done: list[int]) -> None:
        """Take over what is better than all before, out of slots whose search has ended."""
        if not done:
            return
        winners = {}
        scores, ages = slots.best.loss[done].tolist(), slots.age[done].tolist()
        for slot, score, age in zip(done, scores, ages, strict=True):
            image, start = divmod(slots.number[slot], self._num_starts)
            self.steps[image] += age
            if (score, start) < self._rank[image]:
                self._rank[image], winners[image] = (score, start), slot
        own = (*self.terms, self.latent, self.step)
        best = (*slots.best, slots.best_latent, slots.best_step)
        for kept, row in zip(own, best, strict=True):
            kept[list(winners)] = row[list(winners.values())].to(kept.device)
