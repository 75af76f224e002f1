"""What a study measures on one network at one density; each function gives plain rows for `results.json`."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from img2img.masks import KSM, Basis, ImpressLearn, MaskMethod, Piggyback, SupSup, basis_of_tasks
from img2img.masks.analysis import similarity_by_layer
from img2img.masks.task_inference import InferredTask, by_entropy, by_gradient
from img2img.masks.task_inference import accuracy as found_fraction
from img2img.research.impresslearn.options import Kind
from img2img.research.impresslearn.study_network import Job, StudyNetwork

Row = dict[str, Any]

_PAIRS_OF = 10
"""Masks whose overlaps are measured, each with each other."""


def own_masks(bench: StudyNetwork) -> list[Row]:
    """SupSup: a mask of its own for each new task, and its accuracy there; also bytes on disk."""
    jobs = [Job(f"own_{number}", number) for number in bench.study.new_numbers()]

    def measure() -> list[Row]:
        bench.learn(jobs, _supsup(bench), epochs=bench.study.train.mask_epochs, folder="supsup")
        return [_row(bench, job, "supsup") for job in jobs]

    return bench.unit("own_masks", [jobs], measure)


def learn_basis_masks(bench: StudyNetwork) -> None:
    """Have the masks of all basis tasks in the network, and as many of the first one; the measurements then find them there."""
    study, method, epochs = bench.study, _supsup(bench), bench.study.train.mask_epochs
    if "heterogeneous" in study.kinds or study.basis_tasks:
        bench.learn(_sources("heterogeneous", study.masks), method, epochs=epochs, folder="supsup")
    if "homogeneous" in study.kinds:
        bench.learn(_sources("homogeneous", study.masks), method, epochs=epochs, folder="supsup")


def wrong_masks(bench: StudyNetwork) -> list[Row]:
    """Basis masks used alone on new tasks, which they were not trained for: the control of section 4."""
    study = bench.study
    jobs = _sources("heterogeneous", min(study.wrong_masks, study.masks))

    def measure() -> list[Row]:
        bench.learn(jobs, _supsup(bench), epochs=study.train.mask_epochs, folder="supsup")
        return [
            {"mask": job.number, "mask_label": bench.family.label(job.number)} | _of_task(bench, job.task, number)
            for job in jobs
            for number in study.new_numbers()
        ]

    return bench.unit("wrong_masks", [jobs, study.new_numbers()], measure)


def combinations(bench: StudyNetwork, kind: Kind, count: int) -> list[Row]:
    """New tasks learned by combining `count` masks of one kind (equation 1)."""
    study = bench.study
    name = f"{kind}_{count}"
    jobs = [Job(f"{name}_on_{number}", number) for number in study.new_numbers()]

    def measure() -> list[Row]:
        _add_basis(bench, name, kind, count)
        bench.learn(jobs, _combine(bench, name), epochs=study.train.alpha_epochs, folder=name)
        return [_row(bench, job, name) | {"kind": kind, "count": count} for job in jobs]

    return bench.unit(name, [jobs], measure)


def basis_tasks(bench: StudyNetwork, count: int) -> list[Row]:
    """Basis tasks without their label (figure 6): coefficients trained on them, their own mask (GG), the mask inferred (GN).

    A row has the accuracy with trained coefficients ("alpha"), with the task's own mask ("own"), and of predictions by the mask
    that entropy finds batch by batch: in one shot ("one_shot") or by running every mask ("every_mask"). And whether the mask is
    found: by the largest mean |α| over layers, and in which fraction of batches.
    """
    study = bench.study
    sources = _sources("heterogeneous", count)
    chosen = sources[: min(study.basis_tasks, count)]
    name = f"basis_{count}"
    jobs = [Job(f"{name}_on_{source.number}", source.number) for source in chosen]
    options = study.inference

    def measure() -> list[Row]:
        _add_basis(bench, name, "heterogeneous", count)
        bench.learn(jobs, _combine(bench, name), epochs=study.train.alpha_epochs, folder=name)
        rows = []
        for source, job in zip(chosen, jobs, strict=True):
            alphas = torch.stack([mask.values()["alpha"] for _, mask in bench.network.state(job.task).named_masks()])
            names = [s.task for s in sources]
            one_shot, by_one_shot = _inferred(bench, source, partial(by_gradient, bench.network, tasks=names))
            every, by_every = _inferred(bench, source, partial(by_entropy, bench.network, tasks=names))
            row = _of_task(bench, job.task, job.number)
            rows.append(
                {
                    "count": count,
                    "task": row["task"],
                    "label": row["label"],
                    "alpha": row["accuracy"],
                    "own": bench.accuracy(source.task, source.number),
                    "one_shot": by_one_shot,
                    "every_mask": by_every,
                    "alpha_finds": int(alphas.abs().mean(0).argmax()) == source.number - 1,
                    "one_shot_finds": one_shot,
                    "every_mask_finds": every,
                }
            )
        return rows

    return bench.unit(name, [jobs, options.batches, options.batch_size], measure)


def inference(bench: StudyNetwork, epochs: int) -> Row:
    """How often the task of a batch is found among many that combine one basis (GN).

    "one_shot" and "halving" are `by_gradient`'s, and "every_task" takes the most certain of all tasks' outputs (`by_entropy`).
    "accuracy" is the mean over as many of the tasks as the study's `new_tasks`.
    """
    options = bench.study.inference
    name = f"inference_{epochs}" if options.kind == "heterogeneous" else f"inference_{options.kind}_{epochs}"
    jobs = [Job(f"{name}_on_{number}", number) for number in bench.study.new_numbers(options.tasks)]
    tested = jobs[: bench.study.new_tasks]

    def measure() -> Row:
        _add_basis(bench, name, options.kind, options.count)
        bench.learn(jobs, _combine(bench, name), epochs=epochs, folder=name)
        names = [job.task for job in jobs]
        batches = {job.task: _test_batches(bench, job.number) for job in jobs}
        ways = {
            "one_shot": partial(by_gradient, bench.network, tasks=names),
            "halving": partial(by_gradient, bench.network, tasks=names, halving=True),
            "every_task": partial(by_entropy, bench.network, tasks=names),
        }
        return {
            "kind": options.kind,
            "epochs": epochs,
            "tasks": len(jobs),
            "count": options.count,
            "batches": sum(map(len, batches.values())),
            "accuracy": statistics.fmean(bench.accuracy(job.task, job.number) for job in tested),
            **{way: found_fraction(infer, batches).accuracy for way, infer in ways.items()},
        }

    return bench.unit(name, [jobs, len(tested), options.count, options.batches, options.batch_size], measure)


def variants(bench: StudyNetwork, count: int) -> list[Row]:
    """Section 5 and appendix A.5: hybrid, signed and real-valued masks, beside the plain ones of `combinations`.

    Signed masks are ternary ones and real-valued ones soft (`KSM`), of each basis task, trained as the others; the paper does not
    say how it gets either. Random signed masks have the density of the others, and a sign by chance.
    """
    study, options = bench.study, bench.study.train
    trained: dict[str, MaskMethod] = {"signed": Piggyback(start="uniform", ternary=True), "real": KSM()}

    def measure() -> list[Row]:
        rows = []
        for kind in study.kinds:
            name = f"hybrid_{kind}_{count}"
            _add_basis(bench, name, kind, count)
            rows += _learned(bench, name, _combine(bench, name, hybrid=True), {"variant": f"hybrid, {kind}", "count": count})
        for variant, method in trained.items():
            name = f"{variant}_{count}"
            sources = [Job(f"{variant}_{number}", number) for number in range(1, count + 1)]
            bench.learn(sources, method, epochs=options.mask_epochs, folder=variant, lr=study.variants.lr)
            bench.network.add_basis(name, basis_of_tasks(bench.network, [s.task for s in sources], kind=variant))  # type: ignore[arg-type]
            rows += _learned(bench, name, _combine(bench, name), {"variant": variant, "count": count})
        name = f"random_signed_{count}"
        basis = Basis.random(bench.network.layers(), count=count, density=bench.density, seed=bench.seed, kind="signed")
        bench.network.add_basis(name, basis)
        return rows + _learned(bench, name, _combine(bench, name), {"variant": "random signed", "count": count})

    return bench.unit(f"variants_{count}", [study.new_numbers(), study.kinds, study.variants.lr], measure)


def overlaps(bench: StudyNetwork) -> list[Row]:
    """How often two masks keep the same weight, by layer, relative to chance: over pairs of masks of one task, or of several."""

    def measure() -> list[Row]:
        rows = []
        for kind in [kind for kind in bench.study.kinds if kind != "random"]:
            jobs = _sources(kind, min(_PAIRS_OF, bench.study.masks))
            bench.learn(jobs, _supsup(bench), epochs=bench.study.train.mask_epochs, folder="supsup")
            by_layer: dict[str, list[float]] = {}
            for i, first in enumerate(jobs):
                for second in jobs[:i]:
                    for row in similarity_by_layer(bench.network, first.task, second.task):
                        if row.overlap is not None:
                            by_layer.setdefault(row.layer.removesuffix(".weight"), []).append(row.overlap)
            rows += [
                {"kind": kind, "layer": layer, "pairs": len(found), "overlap": sum(found) / len(found), "most": max(found)}
                for layer, found in by_layer.items()
            ]
        return rows

    return bench.unit("overlaps", [bench.study.masks, bench.study.kinds], measure)


# ---------------------------------------------------------------------- parts


def _supsup(bench: StudyNetwork) -> SupSup:
    return SupSup(density=bench.density)


def _combine(bench: StudyNetwork, basis: str, *, hybrid: bool = False) -> ImpressLearn:
    penalty = bench.study.train.penalty_weight
    return ImpressLearn(basis=basis, penalty_weight=penalty, hybrid=hybrid, hybrid_density=bench.density)


def _sources(kind: Kind, count: int) -> list[Job]:
    """The trainings that give a basis its masks."""
    if kind == "heterogeneous":
        return [Job(f"mask_{number}", number) for number in range(1, count + 1)]
    return [Job(f"again_{repeat}", 1, repeat) for repeat in range(1, count + 1)]


def _add_basis(bench: StudyNetwork, name: str, kind: Kind, count: int) -> None:
    if kind == "random":
        basis = Basis.random(bench.network.layers(), count=count, density=bench.density, seed=bench.seed)
    else:
        jobs = _sources(kind, count)
        bench.learn(jobs, _supsup(bench), epochs=bench.study.train.mask_epochs, folder="supsup")
        basis = basis_of_tasks(bench.network, [job.task for job in jobs])
    bench.network.add_basis(name, basis)


def _learned(bench: StudyNetwork, name: str, method: MaskMethod, more: Row) -> list[Row]:
    jobs = [Job(f"{name}_on_{number}", number) for number in bench.study.new_numbers()]
    bench.learn(jobs, method, epochs=bench.study.train.alpha_epochs, folder=name)
    return [_row(bench, job, name) | more for job in jobs]


def _of_task(bench: StudyNetwork, task: str, number: int) -> Row:
    return {"task": number, "label": bench.family.label(number), "accuracy": bench.accuracy(task, number)}


def _row(bench: StudyNetwork, job: Job, folder: str) -> Row:
    return _of_task(bench, job.task, job.number) | {"bytes": bench.path(folder, job).stat().st_size}


def _test_batches(bench: StudyNetwork, number: int) -> Sequence[torch.Tensor]:
    """The first test images of a task, in batches."""
    options = bench.study.inference
    return bench.family.test(number)[0][: options.batches * options.batch_size].split(options.batch_size)


def _inferred(bench: StudyNetwork, source: Job, infer: Callable[[torch.Tensor], InferredTask]) -> tuple[float, float]:
    """The fraction of batches of a basis task whose mask is found, and the accuracy of what the masks found predict."""
    classes = bench.family.test(source.number)[1]
    batches = _test_batches(bench, source.number)
    found, right, seen = 0, 0, 0
    for x in batches:
        task = infer(x).task
        found += task == source.task
        right += int((bench.outputs(task, x).argmax(1) == classes[seen : seen + len(x)]).sum())
        seen += len(x)
    return found / len(batches), right / seen
