"""What the window makes, the command line makes again."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from napari_cellbrush.cli import main
from napari_cellbrush.export.mask_tiff import read_provenance


@pytest.fixture
def segmented(viewer, workspace, image, person, tmp_path):
    """Segments an image that lies in a file, as classes or objects; gives the mask's entry."""
    def segment(output):
        tifffile.imwrite(tmp_path / "cells.tif", np.round(image * 100 + 50).clip(0).astype(np.uint16))
        viewer.open(str(tmp_path / "cells.tif"), plugin="napari")
        bench, session = workspace.segment.bench, workspace.session
        session.choose_model("cells")
        session.set_options(output=output, scope="layer", device_name="cpu")
        person.wait(lambda: not session.why_not_segment())
        bench.segmenting.start()
        person.wait(lambda: not session.segmentation.busy)
        return next(mask for mask in session.masks if mask.output == output)

    return segment


@pytest.fixture
def reproduced(workspace, person, tmp_path, capsys):
    """Exports a mask and makes it again; gives exit code, answer and what was said."""
    def reproduce(mask):
        workspace.segment.bench.exporting.start(mask, tmp_path / "mask.tif", "YX", overwrite=True)
        person.wait(lambda: not workspace.session.export.busy)
        mask_file, image_file = str(tmp_path / "mask.tif"), str(tmp_path / "cells.tif")
        code = main(["reproduce", mask_file, "--image", image_file, "--device", "cpu"])
        return code, *capsys.readouterr()

    return reproduce


@pytest.mark.parametrize("output", ["classes", "objects"])
def test_a_mask_exported_from_the_window_is_reproduced_bit_for_bit(output, segmented, reproduced, tmp_path):
    code, answer, _ = reproduced(segmented(output))
    assert len(np.unique(tifffile.imread(tmp_path / "mask.tif"))) > 2
    assert (code, answer.split(":")[0]) == (0, "identical")


def test_a_mask_says_what_was_checked_by_hand(segmented, reproduced, workspace, tmp_path):
    mask = segmented("objects")
    proofreading, session = workspace.segment.bench.proofreading, workspace.session
    proofreading.start(mask.key)
    proofreading.accept_all()
    n, first = session.correction.n_objects, min(session.accepted_in(mask.key).ids)
    proofreading.go_to(first)
    n_pixels = int((workspace.segment.bench.book.layer(mask.key).data == first).sum())
    proofreading.delete()
    code, answer, said = reproduced(mask)
    assert (code, answer.split(":")[0]) == (3, "different")
    note = read_provenance(tmp_path / "mask.tif")
    assert (note["objects_accepted_by_hand"], note["pixels_emptied_by_hand"]) == (n - 1, n_pixels)
    assert f"objects were accepted ({n - 1}) or deleted ({n_pixels} pixels)" in said
