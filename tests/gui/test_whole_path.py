"""What the plugin is for, once from end to end, as a person does it."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from qtpy.QtCore import Qt

from napari_cellbrush import api
from napari_cellbrush.export.mask_tiff import read_provenance


@pytest.mark.usefixtures("specks")
def test_paint_fine_tune_watch_and_export(viewer, workspace, person, image, tmp_path):
    viewer.add_image(image, name="cells", scale=(0.5, 0.5), units=("um", "um"))
    person.click(workspace.annotate.new)
    for digit, rows in ((Qt.Key.Key_1, (2, 40, 80)), (Qt.Key.Key_2, (20, 60, 100))):
        person.key(digit)
        for row in rows:
            person.drag([(row / 2, column / 2) for column in (20, 25, 30)])
    person.wait(lambda: all(workspace.session.painted[:2]))

    workspace.show_tab("finetune")
    person.click(workspace.finetune.run.button)
    person.wait(lambda: workspace.session.segmentation.notice.kind == "success")
    classes = viewer.layers["cells classes"].data
    seen = classes > 0  # the view, which may cut off a few rows or columns
    assert seen.mean() > 0.5
    np.testing.assert_array_equal(classes[seen], api.segment(image, "cells model")[seen])

    workspace.show_tab("segment")
    for box, value in ((workspace.segment.scope, "layer"), (workspace.segment.output, "objects")):
        index = box.findData(value)
        box.setCurrentIndex(index)
        box.activated.emit(index)
    person.click(workspace.segment.run.button)
    person.wait(lambda: "objects." in workspace.session.segmentation.notice.text)
    assert viewer.layers["cells objects"].data.any()

    workspace.show_tab("export")
    path = tmp_path / "objects.tif"
    workspace.export.path.setText(str(path))
    person.click(workspace.export.run.button)
    person.wait(lambda: workspace.session.export.notice.kind == "success")
    np.testing.assert_array_equal(tifffile.imread(path), api.segment(
        image, "cells model", "objects", config=workspace.session.inference_config))
    assert read_provenance(path)["model"] == "cells model"
