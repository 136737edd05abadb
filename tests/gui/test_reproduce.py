"""What the window makes, the command line makes again."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from napari_cellbrush.cli import main


@pytest.mark.parametrize("output", ["classes", "objects"])
def test_a_mask_exported_from_the_window_is_reproduced_bit_for_bit(output, viewer, workspace, image, person,
                                                                   tmp_path, capsys):
    tifffile.imwrite(tmp_path / "cells.tif", np.round(image * 100 + 50).clip(0).astype(np.uint16))
    viewer.open(str(tmp_path / "cells.tif"), plugin="napari")
    bench, session = workspace.segment.bench, workspace.session
    session.choose_model("cells")
    session.set_options(output=output, scope="layer", device_name="cpu")
    person.wait(lambda: not session.why_not_segment())
    bench.segmenting.start()
    person.wait(lambda: not session.segmentation.busy)
    mask = next(mask for mask in session.masks if mask.output == output)
    bench.exporting.start(mask, tmp_path / "mask.tif", "YX", overwrite=False)
    person.wait(lambda: (tmp_path / "mask.tif").exists() and not session.export.busy)
    assert len(np.unique(tifffile.imread(tmp_path / "mask.tif"))) > 2
    code = main(["reproduce", str(tmp_path / "mask.tif"), "--image", str(tmp_path / "cells.tif"), "--device", "cpu"])
    assert (code, capsys.readouterr().out.split(":")[0]) == (0, "identical")
