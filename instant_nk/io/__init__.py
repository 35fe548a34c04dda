"""What lies on disk: captures as they come, artifacts between stages, exports; checked when read, whole when written."""
