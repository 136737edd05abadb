"""Give trained weights their place in the package, with what they can do on their card.

    python pretraining/ship.py run/cells.safetensors src/napari_cellbrush/weights/cells.safetensors [--mean-with FILE…]

Measures the model on ``bench`` images as ``benchmarks/accuracy.py zero-shot`` does, prints that table, and writes the
figures into the description that ``cellbrush models info`` shows. Replaces the file that is there. ``--mean-with``
ships the mean of several weights that went on from the same ones, or of those and these: where all lie in one basin, it
errs less than each (Wortsman et al. 2022, "Model soups", ICML).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pretrain import DESCRIPTION

from napari_cellbrush.engine.model import Model, build_network
from napari_cellbrush.engine.model_file import read_model, save_model

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
import accuracy

#: What each set shows.
WORDS = {"dsb2018_fluo": "nuclei in fluorescence (DSB 2018)", "bbbc039_nuclei_dev": "U2OS nuclei (BBBC039)",
         "dsb2018_brightfield": "nuclei in bright field", "dsb2018_histology": "stained tissue",
         "usiigaci_phase": "fibroblasts in phase contrast", "baby_yeast_5z": "budding yeast"}
#: Below this average precision a set is named as a limit.
WEAK = 0.5


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path)
    parser.add_argument("shipped", type=Path)
    parser.add_argument("--mean-with", type=Path, nargs="+", default=[], metavar="FILE",
                        help="weights with the same origin, or those that the trained ones went on from")
    arguments = parser.parse_args()
    model = mean_of([read_model(file) for file in [arguments.trained, *arguments.mean_with]])
    scores = {}
    print(accuracy.HEADING, flush=True)
    for name in accuracy.SETS:
        found = accuracy.measured(model, name, 0)
        scores[name] = found.figures[0]
        print(accuracy.row_of(name, found), flush=True)
    card = model.card.replace(description=f"{DESCRIPTION} {in_words(scores)}")
    save_model(Model(model.network, card), arguments.shipped, half=True, overwrite=True)


def mean_of(models: Sequence[Model]) -> Model:
    """The first model with the mean of the weights of all, in the half precision that is shipped."""
    states = [model.network.state_dict() for model in models]
    state = {name: sum(other[name] for other in states).div(len(states)).half().float()
             if tensor.is_floating_point() else tensor for name, tensor in states[0].items()}
    network = build_network(models[0].card)
    network.load_state_dict(state)
    return Model(network.eval(), models[0].card)


def in_words(scores: dict[str, float]) -> str:
    """What was measured, and what that says against using the model without strokes."""
    figures = ", ".join(f"{WORDS[name]} {score:.2f}" for name, score in scores.items())
    weak = [WORDS[name] for name, score in scores.items() if score < WEAK]
    limits = f" Limits: paint before you trust it on {', '.join(weak)}." if weak else ""
    return (f"Average precision at an intersection over union of 0.5, on images it never saw, diameters measured: "
            f"{figures}.{limits} It was made for objects 8 to 120 px across.")


if __name__ == "__main__":
    main()
