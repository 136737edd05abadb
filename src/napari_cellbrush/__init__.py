"""napari-cellbrush: paint a few strokes, press one button, get a segmentation."""

__version__ = "0.1.0"
