"""Exporters of the animated mesh: one module per format, all in the capture's world coordinates, all whole or not at all.

No exporter turns axes: a vertex's numbers in every file are its world coordinates. glTF calls +y up and USD +y or +z; where
the capture's up is another, the node above the mesh is turned, so that viewers show it standing. PLY, OBJ and PC2 say nothing.
"""
