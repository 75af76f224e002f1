"""A basis: masks shared by many tasks, which ImpressLearn combines."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from img2img.errors import InputError
from img2img.files.paths import expanded
from img2img.files.untrusted import naming
from img2img.masks.basis_file import MAX_MEMBERS, PARTS, Kind, read_basis_file, write_basis_file
from img2img.masks.layers import Layer, erdos_renyi, number_of_ones
from img2img.masks.tensors import pack_bits, unpack_bits, without_cast
from img2img.validation import one_of

MAX_DRAWN = 1 << 32
"""Values of all masks that are drawn at random, at most: a few bytes of a file say how many, and so many take minutes."""

# What is decoded at once. On a CPU 16 rows of 65,536 floats stay in the cache, so that decoding a basis for each step takes no
# longer than reading one that was decoded before, from memory, at 32 times the size.
_MEMBERS = 16
_ELEMENTS = {"cpu": 1 << 16}
_ELEMENTS_ELSEWHERE = 1 << 20


class Basis(nn.Module):
    """K masks of every masked weight of a network, packed; never trained.

    Attributes:
        kind: what the masks consist of.
        names: the K masks' names: the tasks that they are from, or "0", "1", ... of random ones.
        recipe: how random masks were drawn, `{"density": ..., "seed": ...}`, and their "allocation" if that is not "layer", which
            is all that a file holds of them; else None.
        sha256: over the kind, the weights' names and shapes and all masks; the same on any device.
    """

    def __init__(
        self,
        kind: Kind,
        names: Sequence[str],
        shapes: Mapping[str, torch.Size],
        parts: Mapping[str, Mapping[str, Tensor]],
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        """From what `pack` makes of each mask: `parts[weight][part]` has a row for each of `names`."""
        super().__init__()
        self.kind: Kind = kind
        self.names = tuple(names)
        self.recipe = None if recipe is None else dict(recipe)
        self._shapes = dict(shapes)
        for weight in self._shapes:
            for part in PARTS[kind]:
                self.register_buffer(_key(part, weight), parts[weight][part].contiguous())
        self.sha256 = self._hash()

    @classmethod
    def random(
        cls,
        layers: Mapping[str, Layer],
        *,
        count: int,
        density: float,
        seed: int,
        kind: Literal["binary", "signed"] = "binary",
        allocation: Literal["layer", "erdos_renyi"] = "layer",
    ) -> Self:
        """Masks drawn uniformly "without repetition until the desired sparsity is reached" (ImpressLearn, section 3).

        Args:
            layers: the weights, as `MaskedNetwork.layers` gives them; their order, device and memory format do not matter.
            count: K.
            density: the fraction in (0, 1] that is not zero: exactly `round(density * n)` of a weight's n values, at least one.
            seed: of a generator of the basis's own.
            kind: "signed" makes each one -1 or 1, half of the time each.
            allocation: "erdos_renyi" gives each weight a density of its own, `density` over all of them, see `SupSup`.

        Raises:
            InputError: an option is not allowed.
        """
        one_of("random basis kind", kind, ("binary", "signed"))
        one_of("random basis allocation", allocation, ("layer", "erdos_renyi"))
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_MEMBERS:
            raise InputError(f"random basis count={count!r}: expected a whole number of masks, 1 to {MAX_MEMBERS}, such as 10")
        values = count * sum(layer.weight.numel() for layer in layers.values())
        if values > MAX_DRAWN:
            raise InputError(f"random basis count={count}: {values:,} values in its masks, expected at most {MAX_DRAWN:,}: fewer")
        if not isinstance(density, int | float) or not 0 < density <= 1:
            raise InputError(f"random basis density={density!r}: expected a fraction above 0 and up to 1, such as 0.1")
        if not isinstance(seed, int) or isinstance(seed, bool) or not -(1 << 63) <= seed < 1 << 64:
            raise InputError(f"random basis seed={seed!r}: expected a whole number of 64 bits; the masks follow from it")
        generator = torch.Generator().manual_seed(seed)
        shapes = {name: layers[name].weight.shape for name in sorted(layers)}
        densities = dict.fromkeys(shapes, density) if allocation == "layer" else erdos_renyi(shapes, density)
        recipe = {"density": float(density), "seed": seed} | ({} if allocation == "layer" else {"allocation": allocation})
        parts = {}
        for name, shape in shapes.items():
            ones = number_of_ones(densities[name], shape.numel())
            rows = []
            for _ in range(count):
                mask = torch.zeros(shape.numel(), dtype=torch.int8)
                mask[torch.randperm(shape.numel(), generator=generator)[:ones]] = 1
                if kind == "signed":
                    mask[mask != 0] -= 2 * torch.randint(2, (ones,), generator=generator, dtype=torch.int8)
                rows.append(pack(kind, mask))
            parts[name] = stack(rows)
        return cls(kind, [str(i) for i in range(count)], shapes, parts, recipe)

    @property
    def count(self) -> int:
        """K, how many masks each weight has."""
        return len(self.names)

    def shape(self, weight: str) -> torch.Size:
        """The shape of a weight.

        Raises:
            InputError: the basis has no masks for it.
        """
        if weight not in self._shapes:
            known = ", ".join(list(self._shapes)[:5])
            raise InputError(f"the basis has no masks for {weight!r}, but for {known}, …: make it from the network it is used in")
        return self._shapes[weight]

    def masks(self, weight: str) -> Tensor:
        """The masks of one weight, (K, *shape): bool, int8 in {-1, 0, 1} or float16 by the basis's kind."""
        shape = self.shape(weight)
        if self.kind == "real":
            return self._part("values", weight).view(self.count, *shape).clone()
        bits = torch.stack([unpack_bits(row, shape) for row in self._part("bits", weight)])
        if self.kind == "binary":
            return bits
        negative = torch.stack([unpack_bits(row, shape) for row in self._part("negative", weight)])
        return bits.to(torch.int8) - 2 * negative.to(torch.int8)

    def combine(self, name: str, alpha: Tensor, weight: Tensor) -> Tensor:
        """`Σ_i α_i (M_i ∘ W)` (ImpressLearn, equation 1), differentiable by `alpha` alone.

        Args:
            name: the weight's name.
            alpha: (K,), float32.
            weight: `W`, in any memory format and type; the result has both.
        """
        out: Tensor = _Combined.apply(weight, alpha, self, name)
        return out

    @torch.no_grad()
    def multiplier(self, name: str, alpha: Tensor) -> Tensor:
        """`Σ_i α_i M_i`, float32, contiguous, of the weight's shape.

        Products and sums are rounded one by one, in the order of the masks: the same bits on any device and with any number of
        threads, which a matrix product would not promise.
        """
        shape = self.shape(name)
        total = torch.zeros(shape.numel(), dtype=torch.float32, device=alpha.device)
        for members, elements, rows in self._blocks(name):
            piece = total[elements]
            for row in rows.mul_(alpha[members].unsqueeze(1)):
                piece.add_(row)
        return total.view(shape)

    @torch.no_grad()
    def gradient(self, name: str, weight: Tensor, upstream: Tensor) -> Tensor:
        """`∂L/∂α_i = Σ M_i ∘ W ∘ G`, (K,) float32, of `G = ∂L/∂Weff`."""
        w, g = weight.reshape(-1), upstream.reshape(-1)
        total = torch.zeros(self.count, dtype=torch.float64, device=g.device)
        # The backward pass may run inside an autocast region, which would make the products bfloat16.
        with torch.autocast(g.device.type, enabled=False):
            for members, elements, rows in self._blocks(name):
                total[members] += rows @ (g[elements].float() * w[elements].float())
        return total.float()

    def _blocks(self, name: str) -> Iterator[tuple[slice, slice, Tensor]]:
        """The masks of one weight in pieces: which masks, in order, which elements, and their values, float32, fresh."""
        size = self.shape(name).numel()
        first = self._part(next(iter(PARTS[self.kind])), name)
        step = _ELEMENTS.get(first.device.type, _ELEMENTS_ELSEWHERE)
        for start in range(0, size, step):
            stop = min(start + step, size)
            for member in range(0, self.count, _MEMBERS):
                members = slice(member, min(member + _MEMBERS, self.count))
                if self.kind == "real":
                    rows = first[members, start:stop].float()
                else:
                    rows = self._bits("bits", name, members, start, stop)
                    if self.kind == "signed":
                        rows -= self._bits("negative", name, members, start, stop).mul_(2)
                yield members, slice(start, stop), rows

    def _bits(self, part: str, name: str, members: slice, start: int, stop: int) -> Tensor:
        # `start` is a multiple of 8.
        packed = self._part(part, name)[members, start // 8 : -(-stop // 8)]
        bits = unpack_bits(packed.flatten(), torch.Size((len(packed), 8 * packed.shape[1])))
        return bits[:, : stop - start].view(torch.uint8).float()

    def _part(self, part: str, weight: str) -> Tensor:
        return self.get_buffer(_key(part, weight))

    def _hash(self) -> str:
        digest = hashlib.sha256(f"{self.kind} {self.count}\n".encode())
        for weight in sorted(self._shapes):
            digest.update(f"{weight} {tuple(self._shapes[weight])}\n".encode())
            for part in PARTS[self.kind]:
                digest.update(self._part(part, weight).cpu().numpy().tobytes())
        return digest.hexdigest()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Cast masks would no longer be those of the checksum.
        return super()._apply(without_cast(fn), recurse)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the basis's file, atomically; of random masks only how they were drawn."""

        tensors = {}
        if self.recipe is None:
            tensors = {f"{p}/{w}": self._part(p, w).cpu() for w in self._shapes for p in PARTS[self.kind]}
        header = {
            "kind": self.kind,
            "names": list(self.names),
            "shapes": {name: list(shape) for name, shape in self._shapes.items()},
            "recipe": self.recipe,
            "sha256": self.sha256,
        }
        return write_basis_file(path, header, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str], layers: Mapping[str, Layer]) -> Self:
        """Read the file that `save` wrote, for a network with those `layers` (`MaskedNetwork.layers`).

        Raises:
            InputError: there is no such file, it is damaged, of another kind or newer, its masks are for other weights, or
                its random masks come out different here.
        """
        path = expanded(path)
        header, tensors = read_basis_file(path)
        shapes = {name: torch.Size(shape) for name, shape in header["shapes"].items()}
        expected = {name: layer.weight.shape for name, layer in layers.items()}
        if shapes != expected:
            odd = sorted(n for n in shapes.keys() | expected.keys() if shapes.get(n) != expected.get(n))
            raise InputError(
                f"{path} is a basis for other weights than this network's, {odd[0]} for one "
                f"({shapes.get(odd[0], 'none')} there, {expected.get(odd[0], 'none')} here): load the network it was made for"
            )
        recipe = header["recipe"]
        if recipe is not None:
            with naming(path):
                basis = cls.random(layers, count=len(header["names"]), kind=header["kind"], **recipe)
        else:
            parts = {name: {part: tensors[f"{part}/{name}"] for part in PARTS[header["kind"]]} for name in shapes}
            basis = cls(header["kind"], header["names"], shapes, parts)
        if basis.sha256 != header["sha256"]:
            why = "this PyTorch draws other random masks from the seed" if recipe else "the file is damaged"
            raise InputError(f"{path}: the masks are not those that were saved: {why}; use the version and file that made them")
        return basis


class _Combined(torch.autograd.Function):
    """`W ∘ Σ_i α_i M_i`. Nothing but `W`, which exists anyway, is saved for the gradient; the masks stay packed."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, alpha: Tensor, basis: Basis, name: str) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.basis, ctx.name = basis, name
        multiplier = basis.multiplier(name, alpha)
        if multiplier.dtype == weight.dtype and multiplier.stride() == weight.stride():
            return multiplier.mul_(weight)
        return torch.mul(weight, multiplier, out=torch.empty_like(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return None, ctx.basis.gradient(ctx.name, weight, grads[0]), None, None


def pack(kind: Kind, mask: Tensor) -> dict[str, Tensor]:
    """The parts that keep one mask of a weight, each a vector, in row-major order of the mask's shape."""
    if kind == "real":
        return {"values": mask.reshape(-1).half()}
    bits = {"bits": pack_bits(mask != 0)}
    return bits if kind == "binary" else bits | {"negative": pack_bits(mask < 0)}


def stack(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The parts of all masks of a weight, from those that `pack` makes of each: a row for each."""
    return {part: torch.stack([row[part] for row in rows]) for part in rows[0]}


def _key(part: str, weight: str) -> str:
    # Names of buffers may not contain a dot.
    return f"{part}/{weight.replace('.', '/')}"
