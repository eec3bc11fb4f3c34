"""Recurrent cells and scans."""

from pcls.nn.recurrent.layer import LAYERS, Layer, Recurrent

__all__ = ["LAYERS", "Layer", "Recurrent"]
