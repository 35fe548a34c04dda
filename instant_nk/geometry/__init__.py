"""Arrays in, arrays out: cameras, rotations, hulls, meshes, rasterising, spaces. No files, no training."""
