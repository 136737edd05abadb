"""How good a model tuned on few strokes is, beside what else could be done with the same strokes.

    python benchmarks/from_strokes.py [--sets NAME...] [--strokes N...] [--rounds N] [--seeds N] [--arms ARM...]
    python benchmarks/from_strokes.py --ablation [--sets NAME...] [--strokes N] [--seeds N]

A simulated annotator paints N strokes per class on one or two images; with ``--rounds`` it then looks at the
plugin's answer and paints as many again on its largest errors, and everybody learns anew from all strokes; the plugin
is told which are corrections, unless ``--unaware``. With ``--segmented-first`` the first strokes, too, lie on the
largest errors: of the bundled model, by which a person may have segmented before painting anything
(``--only-errors-painted`` says so to the plugin). Mean intersection over union of the classes is measured on other
images, with the spread over seeds; where the truth has objects, their average precision at 0.5 over all images as well,
of objects made in the same way from the probabilities that each arm gives. No arm ever saw any of these images. The
arms:

- ``forest``: a random forest on multi-scale filters, as ilastik and Labkit have;
- ``cellbrush``: the bundled weights, tuned with the plugin's defaults;
- ``scratch``: the same network from random weights;
- ``full``: the bundled weights, tuned on the whole masks of the painted images: the ceiling;
- ``untuned``: the bundled weights as they are, where they know the classes.

``--ablation`` tunes with one ingredient of the recipe changed at a time, on the same strokes. Reads what
``accuracy.py`` reads.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any

import numpy as np
from accuracy import STROKE_SETS, as_classes, read
from annotator import correct, paint
from ingredients import INGREDIENTS
from numpy.typing import NDArray
from random_forest import RandomForest

from napari_cellbrush.config import (
    DEFAULT_CLASSES,
    ClassDefinition,
    InferenceConfig,
    ObjectsConfig,
    TrainingConfig,
    classes_from_names,
)
from napari_cellbrush.engine.device import choose_device
from napari_cellbrush.engine.inference import segment_array
from napari_cellbrush.engine.metrics import average_precision, iou_from_confusion, pixel_confusion
from napari_cellbrush.engine.model import Model, knows_all
from napari_cellbrush.engine.model_file import find_model, read_model
from napari_cellbrush.engine.objects import objects_from_probabilities
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.predictor import most_probable
from napari_cellbrush.engine.training import scratch_model, train
from napari_cellbrush.events import run_to_end

ARMS = ("untuned", "forest", "cellbrush", "scratch", "full")
#: Of a forest, probabilities are shares of trees, which are seldom as sure as a network.
FOREST_OBJECTS = ObjectsConfig(least_certainty=0.5)
#: The row of the ablation in which the answer is a mean over mirror images.
MIRRORED = "mirror images too"
#: What the recipe is without one of its ingredients, or with one more.
ABLATION: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "no elastic deformation": {"augmentation": {"elastic_sigma_px": 0}},
    "no undeformed patches": {"augmentation": {"plain_share": 0}},
    "no change of intensities": {"augmentation": {"gain": 0, "offset": 0, "gamma": 0, "noise": 0, "blur_px": 0}},
    "no augmentation": {"augmentation": {"elastic_sigma_px": 0, "rotation_deg": 0, "flips": False, "scale_range": 0,
                                         "gain": 0, "offset": 0, "gamma": 0, "noise": 0, "blur_px": 0}},
    "random first head": {"fit_head": False},
    "base not remembered": {"base_worth_strokes": 0},
    "no averaging": {"ema_decay": 0},
    "no class balance": {"class_balance": False},
    "no early stop, last weights": {"held_out_fraction": 0},
    "dropout 0.3": {"dropout": 0.3},
    "rate ÷ 3": {"learning_rate": 1e-4},
    "rate × 3": {"learning_rate": 9e-4},
    "border weights": {"border_weight": 10},
    "cross-entropy and Dice": {"loss": "cross_entropy_dice"},
    MIRRORED: {},
    **{name: {} for name in INGREDIENTS},
}


@dataclass(frozen=True)
class Task:
    """A set with its classes, the images that are painted and those that are measured."""

    name: str
    classes: tuple[ClassDefinition, ...]
    painted: tuple[Planes, ...]
    painted_truth: tuple[NDArray[np.uint8], ...]
    measured: tuple[Example, ...]


@dataclass(frozen=True)
class Example:
    """An image with its truth: classes, and objects where the set has any."""

    image: Planes
    classes: NDArray[np.uint8]
    objects: NDArray[Any] | None


@dataclass(frozen=True)
class Answer:
    """How an arm answers an image: with a class map, and with objects."""

    classes: Callable[[Planes], NDArray[np.uint8]]
    objects: Callable[[Planes], NDArray[Any]]

    @classmethod
    def of(cls, model: Model) -> Answer:
        """What the plugin answers."""
        return cls(partial(segment_array, model), lambda image: segment_array(model, image, "objects"))


#: Intersection over union of the classes, average precision of objects, and seconds; NaN where there is none.
Figures = tuple[float, float, float]


def main() -> None:
    """Print one table."""
    arguments = _arguments()
    base = read_model(find_model(arguments.model))
    print(f"Model {base.card.name}, {base.card.n_steps} steps, {choose_device().description}, at most "
          f"{arguments.minutes} min and {arguments.steps} steps\n", flush=True)
    if arguments.ablation:
        print_ablation(base, arguments)
    else:
        print_arms(base, arguments)


def print_arms(base: Model, arguments: argparse.Namespace) -> None:
    """Every arm on the same strokes, round by round."""
    print("| set | strokes per class | labelled | " + " | ".join(f"{arm} | AP50 | s" for arm in arguments.arms) + " |")
    print("|" + "---|" * (3 + 3 * len(arguments.arms)))
    for task in map(task_of, arguments.sets):
        for n_strokes in arguments.strokes:
            rows = defaultdict(list)
            for seed in range(arguments.seeds):
                for n_round, labelled, arms in rounds(base, task, n_strokes, seed, arguments):
                    rows[n_round].append((labelled, arms))
            for n_round, of_seeds in rows.items():
                labelled = np.mean([share for share, _ in of_seeds])
                cells = [_cell([arms[arm] for _, arms in of_seeds]) for arm in arguments.arms]
                print(f"| {task.name} | {n_strokes * n_round} | {100 * labelled:.2f} % | {' | '.join(cells)} |",
                      flush=True)


def rounds(base: Model, task: Task, n_strokes: int, seed: int, arguments: argparse.Namespace
           ) -> list[tuple[int, float, dict[str, Figures]]]:
    """Number of the round, labelled share, and each arm's figures."""
    random = np.random.default_rng(seed)
    share = -(-n_strokes // len(task.painted))
    labels = first_strokes(base, task, share, random, arguments)
    done: list[tuple[int, float, dict[str, Figures]]] = []
    unseen, tuned = labels, base
    for n_round in range(1, arguments.rounds + 1):
        arms, start = {}, tuned if arguments.continued else base
        corrections = None if arguments.unaware else [part != first for part, first in zip(labels, unseen, strict=True)]
        for arm in arguments.arms:
            began = time.perf_counter()
            answer, model = learnt(arm, start if arm == "cellbrush" else base, task, labels, corrections, seed,
                                   arguments)
            seconds = time.perf_counter() - began
            arms[arm] = (*score(answer, task), seconds) if answer else (float("nan"), float("nan"), seconds)
            tuned = model if arm == "cellbrush" and model else tuned
        fraction = sum(np.count_nonzero(part) for part in labels) / sum(part.size for part in labels)
        done.append((n_round, fraction, arms))
        if n_round < arguments.rounds:
            labels = [correct(part, truth, segment_array(tuned, image), share, random)
                      for part, truth, image in zip(labels, task.painted_truth, task.painted, strict=True)]
    return done


def first_strokes(base: Model, task: Task, share: int, random: np.random.Generator,
                  arguments: argparse.Namespace) -> list[NDArray[np.uint8]]:
    """So many strokes per class on each painted image."""
    if not arguments.segmented_first:
        return [paint(truth, share, random) for truth in task.painted_truth]
    if base.card.classes != task.classes:
        raise SystemExit(f"The untuned model has no answer in the classes of {task.name}: leave out --segmented-first")
    return [correct(np.zeros_like(truth), truth, segment_array(base, image), share, random)
            for truth, image in zip(task.painted_truth, task.painted, strict=True)]


def learnt(arm: str, base: Model, task: Task, labels: Sequence[NDArray[np.uint8]],
           corrections: Sequence[NDArray[np.bool_]] | None, seed: int,
           arguments: argparse.Namespace) -> tuple[Answer | None, Model | None]:
    """None where the arm has no answer; and the model, if it is one."""
    if arm == "forest":
        forest = RandomForest(seed=seed).fit([_cyx(image) for image in task.painted], labels)
        return _forest_answer(forest, task.classes), None
    config = TrainingConfig(seed=seed, max_minutes=arguments.minutes, max_steps=arguments.steps,
                            base_worth_strokes=arguments.base_worth, only_errors_painted=arguments.only_errors_painted)
    if arm == "untuned":
        model = base if knows_all(base, task.classes) else None
    elif arm == "scratch":
        model = tune(scratch_model(task.classes, task.painted[0].n_channels, config), task, labels, config)
    elif arm == "full":
        model = tune(base, task, task.painted_truth, config)
    else:
        model = tune(base, task, labels, config, corrections)
    return Answer.of(model) if model else None, model


def _forest_answer(forest: RandomForest, classes: Sequence[ClassDefinition]) -> Answer:
    def probabilities(image: Planes) -> NDArray[np.float32]:
        return forest.probabilities(_cyx(image), len(classes))

    return Answer(lambda image: most_probable(probabilities(image)),
                  lambda image: objects_from_probabilities(probabilities(image), classes, FOREST_OBJECTS))


def tune(base: Model, task: Task, labels: Sequence[NDArray[np.uint8]], config: TrainingConfig,
         corrections: Sequence[NDArray[np.bool_]] | None = None) -> Model:
    """The model that a click on the button gives."""
    return run_to_end(train(base, task.painted, labels, config, classes=task.classes, corrections=corrections)).model


def score(answer: Answer, task: Task) -> tuple[float, float]:
    """The classes' mean intersection over union, and average precision of all objects."""
    of_objects = [average_precision(answer.objects(example.image), example.objects, (0.5,))
                  for example in task.measured if example.objects is not None]
    return class_score(answer.classes, task), (float(reduce(add, of_objects).average_precision[0]) if of_objects
                                               else float("nan"))


def class_score(answer: Callable[[Planes], NDArray[np.uint8]], task: Task) -> float:
    """The classes' mean intersection over union, over the pixels of all measured images together.

    In the mean over images, a class that an image lacks would count as nothing found for one pixel said to be of it.
    """
    confusion = sum(pixel_confusion(answer(example.image), example.classes, len(task.classes))
                    for example in task.measured)
    return iou_from_confusion(confusion).mean


def print_ablation(base: Model, arguments: argparse.Namespace) -> None:
    """One row a change of the recipe: the score, and its difference to the defaults on the same strokes."""
    n_strokes = arguments.strokes[0]
    tasks = [task_of(name) for name in arguments.sets]
    print(f"{n_strokes} strokes per class, {arguments.seeds} seeds\n")
    print("| recipe | " + " | ".join(f"{task.name} | Δ" for task in tasks) + " |\n|" + "---|" * (1 + 2 * len(tasks)))
    scores: dict[str, NDArray[np.float64]] = {}
    for variant in arguments.variants:
        with INGREDIENTS.get(variant, nullcontext)():
            scores[variant] = np.array([[_ablated(base, task, variant, n_strokes, seed, arguments)
                                         for seed in range(arguments.seeds)] for task in tasks])
        change = scores[variant] - scores[arguments.variants[0]]
        cells = [f"{_spread(of)} | {_spread(delta, sign=True)}" for of, delta in
                 zip(scores[variant], change, strict=True)]
        print(f"| {variant} | {' | '.join(cells)} |", flush=True)


def _ablated(base: Model, task: Task, variant: str, n_strokes: int, seed: int, arguments: argparse.Namespace) -> float:
    change = ABLATION[variant]
    random = np.random.default_rng(seed)
    share = -(-n_strokes // len(task.painted))
    labels = first_strokes(base, task, share, random, arguments)
    config = TrainingConfig(seed=seed, max_minutes=arguments.minutes, max_steps=arguments.steps)
    nested = {"augmentation": {**config.augmentation.model_dump(), **change.get("augmentation", {})}}
    model = tune(base, task, labels, config.replace(**{**change, **nested}))
    inference = InferenceConfig(mirrored=variant == MIRRORED)
    return class_score(partial(segment_array, model, config=inference), task)


def task_of(name: str) -> Task:
    """Read a set."""
    axes, painted, measured, kind = STROKE_SETS[name]
    truths = tuple(as_classes(read(name, "masks", stem), kind) for stem in painted)
    classes = DEFAULT_CLASSES
    if name == "isbi2012":
        classes = classes_from_names(["membrane", "cell"])
    if name == "axondeepseg_sem":
        classes = classes_from_names(["background", "myelin", "axon"])
    return Task(name, classes, tuple(Planes(read(name, "images", stem), axes, stem) for stem in painted), truths,
                tuple(_example(name, stem, axes, kind) for stem in measured))


def _example(name: str, stem: str, axes: str, kind: str) -> Example:
    mask = read(name, "masks", stem)
    return Example(Planes(read(name, "images", stem), axes, stem), as_classes(mask, kind),
                    mask if kind == "objects" else None)


def _cyx(image: Planes) -> NDArray[np.float32]:
    return image.read((), slice(0, image.shape_yx[0]), slice(0, image.shape_yx[1]))


def _cell(of_seeds: Sequence[Figures]) -> str:
    scores, precisions, seconds = np.array(of_seeds).T
    return f"{_spread(scores)} | {_spread(precisions)} | {'–' if np.isnan(scores).all() else f'{seconds.mean():.0f}'}"


def _spread(values: NDArray[np.float64], sign: bool = False) -> str:
    return "–" if np.isnan(values).all() else f"{values.mean():{'+' if sign else ''}.3f} ± {values.std():.3f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cells")
    parser.add_argument("--sets", nargs="*", default=list(STROKE_SETS), choices=list(STROKE_SETS))
    parser.add_argument("--strokes", nargs="*", type=int, default=[5, 20])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--continued", action="store_true",
                        help="begin each further round of 'cellbrush' with the model tuned in the one before")
    parser.add_argument("--segmented-first", action="store_true",
                        help="paint the first strokes on errors of the untuned model, where classes are its own")
    parser.add_argument("--only-errors-painted", action="store_true", help="the setting of that name")
    parser.add_argument("--unaware", action="store_true", help="learn corrections as if they were any strokes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=ARMS)
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--variants", nargs="*", default=list(ABLATION), choices=list(ABLATION))
    parser.add_argument("--minutes", type=float, default=TrainingConfig().max_minutes)
    parser.add_argument("--base-worth", type=float, default=TrainingConfig().base_worth_strokes, metavar="STROKES")
    parser.add_argument("--steps", type=int, default=TrainingConfig().max_steps)
    return parser.parse_args()


if __name__ == "__main__":
    main()
