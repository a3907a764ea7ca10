"""A photo studio that draws its own data: objects of several kinds on a turntable, with exact masks.

geometry (meshes) → cars, shapes (what is built) → render (the object alone) → backdrop (the studio) → photo (one
picture and its mask) → layout (files). Everything follows from a seed, so it can be made anew anywhere.
"""

from __future__ import annotations

from maskloom.data.studio.layout import contact_sheet, write_studio
from maskloom.data.studio.photo import render
from maskloom.data.studio.shapes import KINDS, StudioObject, draw_object

__all__ = ["KINDS", "StudioObject", "contact_sheet", "draw_object", "render", "write_studio"]
