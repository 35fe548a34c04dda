"""What a person looks at: the report page, its player and charts, the live viewer. Reads results, computes none."""
