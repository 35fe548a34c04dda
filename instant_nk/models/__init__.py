"""What is trained or moved: fields, networks, the deformation graph, the warp. No losses, no files."""
