"""Processes, devices and where arrays lie on them."""
