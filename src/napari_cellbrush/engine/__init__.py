"""Everything that learns, predicts, measures, reads and writes. It knows neither Qt nor napari."""
