r"""Exact occlusion by what changes.

A covered copy of an image differs from it inside the patch alone, so at each layer only a window of the feature map
changes: of a convolution, those outputs whose inputs reach into the changed window of the map before. One pass of the
uncovered image keeps its maps; for each batch of positions of the patch, each step then computes its window alone,
reading the pixels around the changed ones from the maps kept. Nothing is approximated. The idea is that of Nakandala,
Kumar & Papakonstantinou, *Incremental and Approximate Inference for Faster Occlusion-based Deep CNN Explanations*
(SIGMOD 2019).

Steps that see whole maps (attention, squeeze and excitation, flattening) get them: the uncovered image's with the
window laid over; from there on the network is computed as ever.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_viz.functional import winograd
from lit_viz.functional.batches import BATCH_ELEMENTS
from lit_viz.functional.occlusion.plan import Plan, Work, plan
from lit_viz.functional.occlusion.program import Program, as_written, outputs
from lit_viz.functional.occlusion.rules import ELEMENT, Concatenation, Extent, Mean, Rule, channels, rule_for, size_of
from lit_viz.functional.occlusion.spans import Spans
from lit_viz.functional.occlusion.tape import INPUT, PerImage, Ref, Step, aten
from lit_viz.functional.occlusion.windows import Place, cut, lay

OVERHEAD = 8e6
"""Of each step of a batch, in multiply-adds."""

MOST_TOGETHER = 128
"""Positions in a batch."""

LARGEST_MAP = 24 * 2**20
"""Bytes of a batch's largest map on a CPU.

Half as much takes a tenth longer where there are many small layers; past 32 MiB, glibc's allocator takes new pages from
the system each time, which costs as much as a pass over them.
"""


class Incremental:
    """A network prepared for covered copies of images of one size.

    Args:
        program: The network.
        rows: Rows [top, bottom) of the patch for each of its positions along rows.
        columns: Columns [left, right) likewise.
        memory: Bytes that the maps of a batch may take.
        together: Most positions in a batch.

    Attributes:
        extents: The results that change in windows, and where, for each position of the patch.
        rules: How the steps that read windows do so.
        kept: The uncovered image's maps that batches read.
        plan: Which positions go together.
    """

    def __init__(
        self,
        program: Program,
        rows: list[tuple[int, int]],
        columns: list[tuple[int, int]],
        *,
        memory: float = 512 * 2**20,
        together: int = MOST_TOGETHER,
    ) -> None:
        self.program, self.memory, self.together = program, memory, together
        _, _, height, width = program.tape.shape
        self.extents: dict[Ref, Extent] = {INPUT: (_spans(rows, height), _spans(columns, width))}
        self.rules: dict[int, Rule] = {}
        for number, step in program.steps.items():
            rule = rule_for(program, number, self.extents)
            if rule is None:
                continue
            self.rules[number] = rule
            if rule.windowed:
                extent = rule.spans(0), rule.spans(1)
                self.extents.update({Ref(number, i): extent for i in range(len(step.shapes))})
        self.kept = self._kept()
        self.joint = self._joint()
        self.plan = self._plan()

    @property
    def base_bytes(self) -> int:
        """Memory of the uncovered image's maps at most, since one may be kept with two kinds of margins."""
        sizes = (math.prod(self.program.tape.per_image(ref) or (0,)) for ref in self.kept)
        return 2 * sum(sizes) * self.program.tape.dtype.itemsize

    def bases(self, image: Tensor) -> Bases:
        """A pass of an uncovered image (1, C, H, W)."""
        with as_written(image.device):
            return Bases(self, image)

    def run(self, bases: Bases, cover: Tensor, advance: Callable[[int], Any] = lambda count: None) -> Tensor:
        """Scores of an image covered at each position.

        Args:
            bases: Of the image.
            cover: (1, C, H, W), what the patch shows.
            advance: Is told how many positions are done, each time.

        Returns:
            (P, K), positions along columns first.
        """
        scores: list[Tensor] = []
        numbers: list[np.ndarray] = []
        waiting: list[Tensor] = []
        with as_written(cover.device):
            for which, value in self.batches(bases, cover):
                numbers.append(which)
                if self.joint is None:
                    scores.append(value)
                else:
                    waiting.append(value)
                    if sum(v.nbytes for v in waiting) > self._most_bytes:
                        waiting = [self._finish(torch.cat(waiting), scores)]
                advance(len(which))
            if waiting:
                self._finish(torch.cat(waiting), scores, all_of_it=True)
        order = torch.from_numpy(np.argsort(np.concatenate(numbers))).to(cover.device)
        return torch.cat(scores)[order]

    def batches(self, bases: Bases, cover: Tensor) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Numbers of positions (B,) int64, and what the network has of them where windows end, (B, …)."""
        cover = cover[0].permute(1, 2, 0).contiguous()
        per_row = len(self.extents[INPUT][1].low)
        for group in self._groups:
            sizes = self._sizes(*group)
            for rows, columns in chunks(*group, self._most(sizes)):
                numbers = (rows[:, None] * per_row + columns).reshape(-1)
                yield numbers, Batch(self, bases, cover, rows, columns, sizes).run()

    def _finish(self, values: Tensor, scores: list[Tensor], *, all_of_it: bool = False) -> Tensor:
        """From where windows end to the scores, for many batches at once: few large matrix products.

        Returns:
            What is left because it doesn't fill a batch, if not all of it is asked for.
        """
        assert self.joint is not None
        most = self._fitting({}, after=self.joint.step - 1)
        end = len(values) if all_of_it else len(values) - len(values) % most
        for start in range(0, end, most):
            found = {self.joint: values[start : start + most]}
            self.program.go_on(found, len(found[self.joint]), after=self.joint.step)
            scores.append(found[self.program.tape.output])
        return values[end:].clone()  # of its own, so that the rest is let go of

    def _most(self, sizes: dict[Ref, tuple[int, int]]) -> int:
        """How many positions go together."""
        return min(self.together, self._fitting(sizes))

    def _fitting(self, sizes: dict[Ref, tuple[int, int]], after: int = -1) -> int:
        """How many positions fit into the memory at once, in the steps after one."""
        largest = 1
        for number, step in self.program.steps.items():
            ref = Ref(number)
            shape = self.program.tape.per_image(ref)
            if shape is not None and step.depends and number > after:
                area = math.prod(sizes[ref]) * channels(self.program, ref) if ref in sizes else math.prod(shape)
                largest = max(largest, area)
        each = largest * self.program.tape.dtype.itemsize
        return max(1, int(self._most_bytes / each))

    @property
    def _most_bytes(self) -> float:
        """Of one result of a batch: a step holds its input, cut out and as it was, and its result."""
        most = self.memory / 4
        return min(most, LARGEST_MAP) if self.program.tape.device.type == "cpu" else most

    def _sizes(self, rows: np.ndarray, columns: np.ndarray) -> dict[Ref, tuple[int, int]]:
        """Height and width of each result's windows for a group of positions."""
        return {
            ref: (max(1, int(along[0].sizes[rows].max())), max(1, int(along[1].sizes[columns].max())))
            for ref, along in self.extents.items()
        }

    def _kept(self) -> set[Ref]:
        kept = set()
        for number, step in self.program.steps.items():
            rule = self.rules.get(number)
            if rule is None or rule.reads_around:
                kept.update(ref for ref in step.refs if ref in self.extents)
            if isinstance(rule, (Mean, Concatenation)):
                kept.add(Ref(number))
        return kept

    def _joint(self) -> Ref | None:
        """The one result that all later steps need, the first that is no window; None if there is no such place."""
        tape, last = self.program.tape, self.program.last
        for number in self.program.steps:
            crossing = {ref for ref, reader in last.items() if ref.step <= number < reader}
            images = {ref for ref in crossing if tape.depends(ref)}
            # Batches are put together along the first dimension, which needn't be the images': instance norm takes
            # (1, N·C, H, W).
            by_image = all(tape.per_image(ref) is not None for ref in images)
            if len(images) == 1 and by_image and not images & self.extents.keys():
                return images.pop() if len(crossing) == 1 else None
        return None

    def _plan(self) -> Plan:
        works, constant = [], 0.0
        for number, step in self.program.steps.items():
            rule = self.rules.get(number)
            if rule is None or not rule.windowed:
                constant += whole_cost(step)
                continue
            height, width = size_of(self.program, Ref(number))
            cost = rule.cost()
            works.append(Work(rule.spans(0).sizes, rule.spans(1).sizes, cost, cost * height * width, (height, width)))
        rows, columns = (len(spans.low) for spans in self.extents[INPUT])
        if not works:
            whole = constant * rows * columns
            return Plan([np.arange(rows)], [np.arange(columns)], whole, whole)

        def batches(rows: int, columns: int) -> int:
            return len(list(chunks(np.arange(rows), np.arange(columns), self.together)))

        return plan(works, constant, batches, self._overhead)

    @property
    def _overhead(self) -> float:
        """Of a batch, in multiply-adds."""
        return OVERHEAD * len(self.program.steps)

    @property
    def gain(self) -> float:
        """How many times as fast as passes of the whole image this should be; these come in batches as well."""
        copies = math.prod(len(spans.low) for spans in self.extents[INPUT])
        passes = copies * math.prod(self.program.tape.shape[1:]) / BATCH_ELEMENTS
        # More than the plan has where large maps leave room for few positions.
        batches = sum(len(list(chunks(*group, self._most(self._sizes(*group))))) for group in self._groups)
        return (self.plan.whole + passes * self._overhead) / (self.plan.computed + batches * self._overhead)

    @property
    def _groups(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Rows and columns of the positions whose windows are of one size."""
        return list(itertools.product(self.plan.rows, self.plan.columns))


class Bases:
    """The maps of one uncovered image.

    Attributes:
        scores: (1, K), of the network.
    """

    def __init__(self, engine: Incremental, image: Tensor) -> None:
        self._maps: dict[Ref, Tensor] = {INPUT: image.contiguous(memory_format=torch.channels_last)}
        self._margined: dict[tuple[Ref, float], tuple[Tensor, tuple[int, int, int, int]]] = {}
        self._finite: dict[Ref, bool] = {}

        def keep(ref: Ref, value: Any) -> None:
            if ref in engine.kept:
                self._maps[ref] = value

        values: dict[Ref, Any] = {INPUT: self._maps[INPUT]}
        engine.program.go_on(values, 1, keep=keep)
        self.scores: Tensor = values[engine.program.tape.output]

    def whole(self, ref: Ref) -> Tensor:
        """A result as it is, (1, …)."""
        return self._maps[ref]

    def finite(self, ref: Ref) -> bool:
        """Whether a result holds no infinity and no NaN."""
        if ref not in self._finite:
            self._finite[ref] = bool(self._maps[ref].isfinite().all())
        return self._finite[ref]

    def map(self, ref: Ref) -> Tensor:
        """A map, (H, W, C)."""
        whole = self._maps[ref]
        return whole.reshape(-1, *whole.shape[-2:]).permute(1, 2, 0)

    def margined(self, ref: Ref, margins: tuple[int, int, int, int], fill: float) -> tuple[Tensor, int, int]:
        """A map (H', W', C), contiguous, with margins of at least (left, right, top, bottom) filled.

        Returns:
            The map, and how many columns and rows of margin it has at the left and at the top.
        """
        found = self._margined.get((ref, fill))
        if found is None or any(has < asked for has, asked in zip(found[1], margins, strict=True)):
            # One copy of each, large enough for all who asked.
            margins = margins if found is None else tuple(map(max, found[1], margins))
            padded = torch.nn.functional.pad(self.map(ref), (0, 0, *margins), value=fill).contiguous()
            found = self._margined[ref, fill] = padded, margins
            # The map itself becomes a view of it, so that it isn't kept twice.
            height, width = self._maps[ref].shape[-2:]
            inside = padded[margins[2] :, margins[0] :][:height, :width]
            self._maps[ref] = inside.permute(2, 0, 1).view(self._maps[ref].shape)
        return found[0], found[1][0], found[1][2]


class Batch:
    """Some positions of the patch, all rows with all columns, on their way through the network.

    Attributes:
        values: What is computed: windows (B, C, h, w), or results of whole maps.
        places: Where the windows lie; results without one are whole.
    """

    def __init__(
        self,
        engine: Incremental,
        bases: Bases,
        cover: Tensor,
        rows: np.ndarray,
        columns: np.ndarray,
        sizes: dict[Ref, tuple[int, int]],
    ) -> None:
        self.engine, self.bases, self.program = engine, bases, engine.program
        self.rows, self.columns, self.sizes = rows, columns, sizes
        self.count = len(rows) * len(columns)
        self.places: dict[Ref, Place] = {INPUT: self.place(INPUT)}
        self.values: dict[Ref, Any] = {INPUT: self._covered(cover)}
        self._whole: dict[Ref, Tensor] = {}

    def run(self) -> Tensor:
        """What the network has of the batch where windows end, (B, …)."""
        end = self.program.tape.output if self.engine.joint is None else self.engine.joint
        for number, step in self.program.steps.items():
            if number > end.step:
                break
            rule, ref = self.engine.rules.get(number), Ref(number)
            place = None
            if rule is not None and all(r in self.places for r in rule.inputs):
                place = self.place(ref) if rule.windowed else None
                if place is not None and place.covers(*size_of(self.program, ref)):
                    rule = place = None
            else:
                rule = None
            out = self.call(step, {r: self.whole(r) for r in step.refs}) if rule is None else rule.run(self, place)
            for i, tensor in enumerate(outputs(out)):
                self.values[Ref(number, i)] = tensor
                if place is not None:
                    self.places[Ref(number, i)] = place
            for r in step.refs:
                if self.program.last[r] == number:
                    self.values.pop(r, None)
                    self._whole.pop(r, None)
        return self.values[end]

    def place(self, ref: Ref) -> Place:
        """Where the windows of a result lie: at the first pixel that changes, but inside the map."""
        (rows, columns), (height, width) = self.engine.extents[ref], self.sizes[ref]
        tops = np.minimum(rows.low[self.rows], rows.length - height)
        lefts = np.minimum(columns.low[self.columns], columns.length - width)
        return Place(tops, lefts, height, width)

    def call(self, step: Step, values: dict[Ref, Any]) -> Any:
        """Runs the operation of a step on what is given."""
        return self.program.call(step, values, self.count)

    def window(self, ref: Ref, place: Place, fill: float = 0.0) -> Tensor:
        """A result at a place, (B, C, height, width)."""
        return self.values[ref] if self.places[ref] == place else self.read(ref, place, fill=fill)

    def read(self, ref: Ref, place: Place, fill: float = 0.0) -> Tensor:
        """A part of a map that reaches beyond the changed window, or beyond the map."""
        out = self.cut(ref, place, fill)
        self.lay(ref, out, place)
        return self.image_order(out, ref)

    def cut(self, ref: Ref, place: Place, fill: float = 0.0) -> Tensor:
        """A part of the uncovered image's map, (R, L, h, w, C)."""
        height, width = size_of(self.program, ref)
        bottom = int(place.tops.max()) + (place.height - 1) * place.steps[0] + 1 - height
        right = int(place.lefts.max()) + (place.width - 1) * place.steps[1] + 1 - width
        margins = (-int(place.lefts.min()), right, -int(place.tops.min()), bottom)
        base, left, top = self.bases.margined(ref, tuple(max(0, m) for m in margins), fill)
        return cut(base, Place(place.tops + top, place.lefts + left, place.height, place.width, place.steps))

    def lay(self, ref: Ref, over: Tensor, place: Place) -> None:
        """Lays the changed windows over a part of the map."""
        lay(self.map_order(self.values[ref], ref), self.places[ref], over, place)

    def whole(self, ref: Ref) -> Any:
        """A result for the whole of each covered image."""
        if ref not in self.places:
            return self.values[ref]
        if ref not in self._whole:
            height, width = size_of(self.program, ref)
            place = Place(np.zeros_like(self.rows), np.zeros_like(self.columns), height, width)
            self._whole[ref] = self.read(ref, place)
        return self._whole[ref]

    def map_order(self, windows: Tensor, ref: Ref) -> Tensor:
        """From (B, C, h, w) to (R, L, h, w, C)."""
        flat = windows.reshape(self.count, -1, *windows.shape[-2:]).permute(0, 2, 3, 1)
        return flat.reshape(len(self.rows), len(self.columns), *flat.shape[1:])

    def image_order(self, windows: Tensor, ref: Ref | None = None) -> Tensor:
        """From (R, L, h, w, C) to (B, C, h, w), or what stands for C."""
        images = windows.flatten(0, 1).permute(0, 3, 1, 2)
        shape = None if ref is None else self.program.tape.per_image(ref)
        if shape is None or len(shape) == 3:
            return images
        return images.reshape(self.count, *shape[:-2], *images.shape[-2:])

    def _covered(self, cover: Tensor) -> Tensor:
        """The input's windows, with the patch in them."""
        place = self.place(INPUT)
        windows = self.cut(INPUT, place)
        patch = cut(cover, place)
        inside = []
        for spans, chosen, starts, length in (
            (self.engine.extents[INPUT][0], self.rows, place.tops, place.height),
            (self.engine.extents[INPUT][1], self.columns, place.lefts, place.width),
        ):
            at = starts[:, None] + np.arange(length)
            inside.append(torch.from_numpy((at >= spans.low[chosen, None]) & (at < spans.high[chosen, None])))
        mask = inside[0][:, None, :, None, None] & inside[1][None, :, None, :, None]
        return self.image_order(torch.where(mask.to(cover.device), patch, windows))


def chunks(rows: np.ndarray, columns: np.ndarray, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A group of rows and one of columns in batches of at most so many positions, all of about one size."""
    across = min(len(columns), most)
    across = math.ceil(len(columns) / math.ceil(len(columns) / across))
    down = max(1, most // across)
    down = math.ceil(len(rows) / math.ceil(len(rows) / min(down, len(rows))))
    for r in range(0, len(rows), down):
        for c in range(0, len(columns), across):
            yield rows[r : r + down], columns[c : c + across]


def whole_cost(step: Step) -> float:
    """Cost of a step for one whole image, in multiply-adds."""
    shape = step.shapes[0]
    # Of one image, also where images and their tokens lie in one dimension.
    size = 0 if shape is None else math.prod(n.at(1) if isinstance(n, PerImage) else n for n in shape)
    if step.op in (aten.addmm.default, aten.mm.default) and isinstance(step.args[-1], Tensor):
        return size * float(len(step.args[-1]))
    if step.op is aten.convolution.default and isinstance(step.args[1], Tensor):
        return size * float(step.args[1][0].numel())
    if step.op is winograd.convolution:
        _, inner, out = step.args[1].shape
        return size / out * winograd.cost(inner, out)
    return ELEMENT * size


def _spans(intervals: list[tuple[int, int]], length: int) -> Spans:
    low, high = np.array(intervals, dtype=np.int64).reshape(-1, 2).T
    return Spans(low, high, length)
