"""Exporters of the animated mesh: one module per format, all in the capture's world coordinates, all whole or not at all.

No exporter turns axes: a vertex's numbers in every file are its world coordinates. glTF declares +y as up, USD files say
the axis they are told, PLY, OBJ and PC2 say nothing; a capture that is not y-up appears tilted in a viewer that assumes it.
"""
